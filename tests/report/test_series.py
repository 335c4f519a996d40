"""Which runs may be averaged, which may be compared, and what a reader is told of the rest."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import pytest
from records_factory import environment, make_run, set_option

from feddlp import states
from feddlp.errors import UserError
from feddlp.record_types import Environment
from feddlp.report.series import flatten, group, natural, read_run

SHORT = {"methods": ("flora", "feddlp"), "rounds": 2}


def test_runs_that_differ_in_the_seed_are_one_setting(tmp_path):
    (setting,) = group([make_run(tmp_path, f"s{seed}", seed=seed) for seed in (42, 0, 1)])
    assert setting.title == ""
    assert setting.seeds == [0, 1, 42]
    assert [track.seed for track in setting.tracks["feddlp"]] == [0, 1, 42]
    assert list(setting.tracks) == ["zero_shot", "local", "flora", "feddlp"]
    assert setting.notes == ()


@pytest.mark.parametrize("key", ["name", "runs_dir", "seed", "model.device"])
def test_names_places_and_seeds_make_no_setting(tmp_path, key):
    runs = [make_run(tmp_path, name, seed=seed, **SHORT) for seed, name in enumerate("ab")]
    set_option(runs[1], key, 7 if key == "seed" else "other")
    assert len(group(runs)) == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.dirichlet_beta", 0.5),
        ("model.adapt", "text"),
        ("data.dataset", "x"),
        ("training.rounds", 3),
        ("data.partition_seed", 2),  # a key that the other run's version did not record
    ],
)
def test_what_changes_the_task_makes_a_setting_named_in_its_title(tmp_path, key, value):
    runs = [make_run(tmp_path, name, **SHORT) for name in "ab"]
    set_option(runs[1], key, value)
    settings = group(runs)
    assert len(settings) == 2
    assert f"{key} = {value}" in [setting.title for setting in settings]


def test_a_key_that_one_run_does_not_record_is_named_in_both_titles(tmp_path):
    runs = [make_run(tmp_path, name, **SHORT) for name in "ab"]
    set_option(runs[1], "method.flora.rank", 4)
    assert [setting.title for setting in group(runs)] == ["rank = 4 (flora)", "rank = not recorded (flora)"]


def test_a_long_title_is_cut(tmp_path):
    runs = [make_run(tmp_path, name, overrides={f"data.k{n}": name for n in range(30)}, **SHORT) for name in "ab"]
    assert all(setting.title.endswith("and 22 more") for setting in group(runs))


def test_titles_name_only_what_differs_and_sort_by_number(tmp_path):
    betas = (1.0, 0.5, 10.0)
    runs = [make_run(tmp_path, f"b{beta}", overrides={"data.dirichlet_beta": beta}, **SHORT) for beta in betas]
    assert [setting.title for setting in group(runs)] == [f"data.dirichlet_beta = {beta}" for beta in sorted(betas)]


def test_a_method_a_folder_is_one_setting(tmp_path):
    runs = [make_run(tmp_path, f"{m}-{s}", methods=[m], seed=s, rounds=2) for m in ("flora", "feddlp") for s in (0, 1)]
    (setting,) = group(runs)
    assert {method: [track.seed for track in tracks] for method, tracks in setting.tracks.items()} == {
        "feddlp": [0, 1],
        "flora": [0, 1],
    }


def test_one_methods_variants_stand_apart_each_beside_the_untouched_ones(tmp_path):
    make = lambda name, method, **more: make_run(tmp_path, name, methods=[method], rounds=2, overrides=more)  # noqa: E731
    weights = [make(f"kd{w}", "feddlp", **{"method.feddlp.kd_weight": w}) for w in (0.1, 1.0)]
    settings = group([make("base", "flora"), *weights])
    assert [setting.title for setting in settings] == ["kd_weight = 0.1 (feddlp)", "kd_weight = 1.0 (feddlp)"]
    assert [set(setting.tracks) for setting in settings] == [{"flora", "feddlp"}] * 2


def test_an_option_that_several_methods_share_is_named_once(tmp_path):
    runs = [make_run(tmp_path, f"lr{lr}", overrides={f"method.{m}.lr": lr for m in SHORT["methods"]}, **SHORT)
            for lr in (0.1, 0.2)]  # fmt: skip
    assert [setting.title for setting in group(runs)] == ["lr = 0.1 (flora, feddlp)", "lr = 0.2 (flora, feddlp)"]


def test_the_order_of_the_folders_does_not_matter(tmp_path):
    runs = [
        make_run(tmp_path, f"r{n}", seed=n % 2, overrides={"data.dirichlet_beta": n // 2 + 0.1}, **SHORT)
        for n in range(4)
    ]
    first = group(runs)
    assert len(first) == 2
    assert all(group(order) == first for order in permutations(runs))


def test_a_folder_named_twice_counts_once(tmp_path):
    run = make_run(tmp_path, **SHORT)
    (setting,) = group([run, run])
    assert len(setting.runs) == 1
    assert setting.notes == ()


def test_of_two_runs_of_one_seed_the_longer_one_is_shown_and_said(tmp_path):
    long = make_run(tmp_path, "b", methods=["flora"], rounds=4)
    short = make_run(tmp_path, "a", methods=["flora"], rounds=4, finished={"flora": 2})
    (setting,) = group([short, long])
    assert [track.run.name for track in setting.tracks["flora"]] == [str(long.path)]
    assert any("seed 0" in note and str(long.path) in note for note in setting.notes)


def test_a_reader_is_told_what_is_unfinished_or_missing(tmp_path):
    first = make_run(tmp_path, "a", finished={"flora": 3, "feddlp": 0})
    second = make_run(tmp_path, "b", seed=1, methods=("local", "zero_shot"))
    (setting,) = group([first, second])
    notes = " ".join(setting.notes)
    assert "flora, seed 0: 3 of 4 rounds" in notes
    assert "feddlp has no finished round" in notes
    assert "flora was not run with seed 1" in notes
    assert "local, seed" not in notes
    assert "zero_shot" not in notes  # its one round is all it has
    assert "feddlp" not in setting.tracks


def test_other_data_under_the_same_name_are_noticed(tmp_path):
    runs = [make_run(tmp_path, f"s{seed}", seed=seed, **SHORT) for seed in (0, 1)]
    states.write(runs[0].path / "environment.json", Environment(**environment(0) | {"data": "0ther"}))
    assert any("digests of the data differ" in note for note in group(runs)[0].notes)


def test_only_the_last_round_of_clients_and_ranks_is_kept(tmp_path):
    run = read_run(make_run(tmp_path, rounds=3, finished={"flora": 2}, clients=2))
    assert {row["round"] for row in run.clients["flora", 0]} == {"2"}
    assert {row["round"] for row in run.clients["feddlp", 0]} == {"3"}
    assert [row["client"] for row in run.clients["feddlp", 0]] == ["0", "1"]
    assert run.ranks["feddlp", 0]["round"] == 3


def test_lines_that_are_still_being_written_are_left_out(tmp_path):
    folder = make_run(tmp_path, rounds=3)
    for name in ("rounds.jsonl", "ranks.jsonl", "clients.csv"):
        with (folder.path / name).open("a", encoding="utf-8") as file:
            file.write('{"method": "fed' if name != "clients.csv" else "feddlp,0,4,")
    assert read_run(folder).rows["feddlp", 0][-1]["round"] == 3


@pytest.mark.parametrize(
    "name", ["config.toml", "rounds.jsonl", "ranks.jsonl", "partition.json", "environment.json", "newcomers.jsonl"]
)
def test_a_damaged_record_is_named(tmp_path, name):
    folder = make_run(tmp_path, **SHORT)
    (folder.path / name).write_bytes(b"\xff{]\n")
    with pytest.raises(UserError, match=name):
        read_run(folder)


def test_a_run_without_a_finished_round_is_named(tmp_path):
    good, bad = make_run(tmp_path, "good", **SHORT), make_run(tmp_path, "bad", **SHORT)
    bad.rounds.unlink()
    with pytest.raises(UserError, match=str(Path("bad"))):
        group([good, bad])


def test_numbers_in_names_sort_as_numbers():
    assert sorted(["run-10", "run-2", "a1b", "run"], key=natural) == ["a1b", "run", "run-2", "run-10"]
    assert flatten({"a": {"b": {"c": 1}}, "d": []}) == {"a.b.c": 1, "d": []}
