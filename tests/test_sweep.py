"""Sweeps: chosen on validation data, never played twice, interrupted anywhere, and one failure is one failure."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console

from feddlp import experiment
from feddlp import sweep as module
from feddlp.config import load_config, read_table
from feddlp.errors import UserError
from feddlp.experiment import Entry, execute
from feddlp.federation.rounds import Federation
from feddlp.materials import prepare
from feddlp.printing import print_sweep
from feddlp.records import RunFolder
from feddlp.report.sweeps import is_sweep, read_result, run_folders
from feddlp.sweep import run_sweep
from feddlp.sweepfile import Job, check_sweep, job_config
from feddlp.training.cohort import Cohort

QUICK = {
    "model": {"adapt": "text", "dtype": "float64"},
    "data": {"partition": "few_shot_iid", "shots": 4, "clients": 2, "validation_share": 0.3},
    "training": {"rounds": 2, "batch_size": 16},
}


CLOCKS = ("seconds", "peak_mib", "lanes", "wave")


class Silent:
    """A reporter that remembers, and that may interrupt at its n-th step."""

    def __init__(self, stop_at=0, stop_after_rounds=0):
        self.stop_at, self.stop_after = stop_at, stop_after_rounds
        self.started, self.rounds, self.steps, self.warnings = [], 0, 0, []

    def preparing(self, what, done, total): ...

    def note(self, message): ...

    def warn(self, message):
        self.warnings.append(message)

    def run_started(self, folder): ...

    def method_started(self, method, rounds, steps, done):
        self.started.append(method)

    def stepped(self):
        self.steps += 1
        if self.steps == self.stop_at:
            raise KeyboardInterrupt

    def round_finished(self, row):
        self.rounds += 1
        if self.rounds == self.stop_after:
            raise KeyboardInterrupt


@pytest.fixture(autouse=True, scope="module")
def prepared_once():
    """The same materials for every run of this file; encoding the digits again would take most of the time."""
    kept = {}

    def cached(config, reporter):
        key = json.dumps([config.data.model_dump(), config.model.model_dump()])
        kept[key] = kept.get(key) or prepare(config, reporter)
        return kept[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("feddlp.materials.prepare", cached)
        yield


def table(tmp_path, methods="flora", **changes):
    config = {**QUICK, **changes.pop("config", {})}
    return {"runs_dir": str(tmp_path), "methods": methods, "seeds": [0, 1], "config": config, **changes}


def grid(tmp_path, **changes):
    """Two learning rates, tuned for one round, two seeds for two rounds."""
    tune = {"grid": {"lr": [1e-3, 3e-2]}, "seeds": [0], "rounds": 1}
    return check_sweep(table(tmp_path, **{"tune": tune, **changes}))


def rows_of(folder: Path):
    kept = RunFolder(folder).read_rounds()
    return [{key: value for key, value in row.items() if key not in CLOCKS} for row in kept]


def records(sweep):
    """Everything that a sweep left, but for clocks: rounds and clients of every run, and what was chosen."""
    runs = sorted(path.parent for path in sweep.folder.rglob("config.toml"))
    found = {str(run.relative_to(sweep.folder)): (rows_of(run), clients_of(run)) for run in runs}
    return found, json.loads((sweep.folder / "sweep.json").read_text())


def clients_of(run: Path):
    with (run / "clients.csv").open() as file:
        return [{key: value for key, value in row.items() if key != "train_loss"} for row in csv.DictReader(file)]


def assert_same_records(found, expected):
    """To rounding: what stood side by side before an interruption may stand alone after it."""
    (runs, result), (other_runs, other_result) = found, expected
    assert result["choices"] == other_result["choices"]
    assert runs.keys() == other_runs.keys()
    for name, (rows, clients) in runs.items():
        assert clients == other_runs[name][1]
        assert len(rows) == len(other_runs[name][0])
        for row, other in zip(rows, other_runs[name][0], strict=True):
            assert row.pop("train_loss") == pytest.approx(other["train_loss"], abs=1e-9)
            assert row == {key: value for key, value in other.items() if key != "train_loss"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A sweep played without any disturbance."""
    sweep = grid(tmp_path_factory.mktemp("finished"))
    reporter = Silent()
    run_sweep(sweep, reporter)
    assert not any("failed" in warning for warning in reporter.warnings)
    return sweep


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of it, to be tampered with."""
    shutil.copytree(finished.runs_dir, tmp_path, dirs_exist_ok=True)
    return grid(tmp_path)


def run_folder(sweep, trial, seed):
    config = job_config(sweep, Job(0, sweep.methods[0], (("lr", trial),), seed, None))
    return RunFolder(Path(config.runs_dir) / config.name)


# What is played


def test_every_trial_is_tuned_and_the_chosen_one_played_on_every_seed(finished):
    runs, result = records(finished)
    (choice,) = result["choices"]
    chosen = choice["chosen"]["lr"]
    (other,) = {1e-3, 3e-2} - {chosen}
    lengths = {name: len(rows) for name, (rows, _) in runs.items()}
    assert lengths == {f"all/flora/lr{chosen:g}_seed{s}": 2 for s in (0, 1)} | {f"all/flora/lr{other:g}_seed0": 1}
    assert choice["runs"] == [f"all/flora/lr{chosen:g}_seed0", f"all/flora/lr{chosen:g}_seed1"]
    assert choice["validation"].keys() == {"lr0.001", "lr0.03"}
    assert result["failed"] == {}


def test_the_score_is_the_mean_of_the_last_rounds_on_validation_data(finished):
    _, result = records(finished)
    for lr, score in result["choices"][0]["validation"].items():
        (row,) = run_folder(finished, float(lr.removeprefix("lr")), 0).read_rounds()[:1]
        assert score == row["validation"]["pooled"]


def test_a_second_run_plays_nothing_and_finds_the_same(copied):
    before = {path: path.read_bytes() for path in copied.folder.rglob("*") if path.is_file()}
    reporter = Silent()
    run_sweep(copied, reporter)
    assert reporter.started == []
    assert {path: path.read_bytes() for path in copied.folder.rglob("*") if path.is_file()} == before


def test_a_run_of_a_sweep_equals_the_same_run_by_itself(finished, tmp_path):
    """Lanes, extension after tuning, resumed or not: a run is what its own config.toml plays."""
    _, result = records(finished)
    lr = result["choices"][0]["chosen"]["lr"]
    for seed in (0, 1):  # seed 0 was tuned for one round and carried on, seed 1 played at once
        folder = run_folder(finished, lr, seed)
        config = load_config(folder.config)
        alone = RunFolder.create(tmp_path, f"alone{seed}", config.to_toml())
        execute(Entry(alone, config), module.preparation.prepare(config, Silent()), Silent())
        assert clients_of(alone.path) == clients_of(folder.path)
        for row, other in zip(rows_of(alone.path), rows_of(folder.path), strict=True):
            assert row.pop("train_loss") == pytest.approx(other.pop("train_loss"), abs=1e-9)
            assert row == other
        state, other = (one.load_checkpoint("flora") for one in (alone, folder))
        assert state[0] == other[0] == 2
        assert max((state[1][name].double() - other[1][name].double()).abs().max() for name in state[1]) < 1e-9


# How a trial is chosen


def doctor(folder: RunFolder, part: str, value: float):
    rows = folder.read_rounds()
    for row in rows:
        row[part] = dict.fromkeys(row[part], value)
    folder.rounds.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("favourite", [1e-3, 3e-2])
def test_the_choice_looks_at_validation_data_and_never_at_test_data(favourite, copied, monkeypatch):
    """The records of both trials are doctored: test accuracies against the favourite, validation accuracies for it."""
    monkeypatch.setattr(module, "play_together", lambda *_: None)
    unchanged = records(copied)[1]["choices"][0]["chosen"]
    for lr in (1e-3, 3e-2):
        doctor(run_folder(copied, lr, 0), "test", 1.0 if lr == unchanged["lr"] else 99.0)
    assert run_sweep(copied, Silent())["choices"][0]["chosen"] == unchanged
    for lr in (1e-3, 3e-2):
        doctor(run_folder(copied, lr, 0), "test", 1.0 if lr == favourite else 99.0)
        doctor(run_folder(copied, lr, 0), "validation", 80.0 if lr == favourite else 79.0)
    assert run_sweep(copied, Silent())["choices"][0]["chosen"] == {"lr": favourite}


def test_the_first_of_equals_is_chosen_and_rounds_after_tuning_do_not_count(copied, monkeypatch):
    monkeypatch.setattr(module, "play_together", lambda *_: None)
    for lr in (1e-3, 3e-2):
        folder = run_folder(copied, lr, 0)
        rows = folder.read_rounds()
        for row in rows:
            row["validation"]["pooled"] = 50.0 if row["round"] == rows[0]["round"] else 100.0 * (lr > 0.01)
        folder.rounds.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run_sweep(copied, Silent())["choices"][0]["chosen"] == {"lr": 1e-3}


# Interruptions


@pytest.mark.parametrize(
    "stop",
    [{"stop_at": 1}, {"stop_at": 3}, {"stop_after_rounds": 1}, {"stop_after_rounds": 2}, {"stop_after_rounds": 3}],
    ids=str,
)
def test_interrupted_and_started_again_it_ends_as_undisturbed(stop, finished, tmp_path):
    sweep = grid(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(sweep, Silent(**stop))
    assert not is_sweep(sweep.folder) or not read_result(sweep.folder).finished
    run_sweep(sweep, Silent())
    assert_same_records(records(sweep), records(finished))


@pytest.mark.parametrize("method", ["record_round", "save_checkpoint"])
@pytest.mark.parametrize("call", [1, 2])
def test_interrupted_between_the_folders_of_a_bundle(method, call, finished, tmp_path, monkeypatch):
    """Two runs train side by side, and only the first has its round written."""
    original, calls = getattr(RunFolder, method), []

    def stopping(self, *arguments):
        original(self, *arguments)
        calls.append(self.path.name)
        if len(calls) == call:
            raise KeyboardInterrupt

    sweep = grid(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, method, stopping)
        with pytest.raises(KeyboardInterrupt):
            run_sweep(sweep, Silent())
    run_sweep(sweep, Silent())
    assert_same_records(records(sweep), records(finished))


# Failures


def break_seed(monkeypatch, seed, times=10**6):
    original, left = Federation.play_round, [times]

    def failing(self, *arguments):
        if any(lane.seed == seed for lane in self.lanes) and left[0]:
            left[0] -= 1
            raise RuntimeError("out of\nmemory")
        return original(self, *arguments)

    monkeypatch.setattr(Federation, "play_round", failing)


def test_a_run_that_fails_is_named_and_the_others_end_as_undisturbed(finished, tmp_path, monkeypatch):
    sweep, reporter = grid(tmp_path), Silent()
    with monkeypatch.context() as patch:
        break_seed(patch, 1)
        result = run_sweep(sweep, reporter)
    ((path, reason),) = result["failed"].items()
    assert Path(path).name.endswith("_seed1")
    assert reason == "RuntimeError: out of memory"
    assert [Path(run).name[-5:] for run in result["choices"][0]["runs"]] == ["seed0"]
    assert any("failed and is left behind" in warning for warning in reporter.warnings)
    run_sweep(sweep, Silent())  # once more, now that nothing stands in its way
    assert_same_records(records(sweep), records(finished))


def test_a_bundle_that_fails_together_is_played_one_by_one(finished, tmp_path, monkeypatch):
    break_seed(monkeypatch, 0, times=1)  # as where three runs do not fit into memory, but one does
    sweep = grid(tmp_path)
    assert run_sweep(sweep, Silent())["failed"] == {}
    assert_same_records(records(sweep), records(finished))


@pytest.mark.parametrize("file", ["rounds.jsonl", "checkpoint/flora/state.json"])
def test_a_run_with_a_damaged_record_is_left_behind_and_the_others_are_played(file, copied):
    best = records(copied)[1]["choices"][0]["chosen"]["lr"]
    damaged, missing = (run_folder(copied, best, seed).path for seed in (0, 1))
    (damaged / file).write_text("{damaged\n")
    shutil.rmtree(missing)
    result = run_sweep(copied, Silent())
    assert list(result["failed"]) == [str(damaged)]
    assert "damaged" in result["failed"][str(damaged)]
    (choice,) = result["choices"]
    assert choice["validation"][f"lr{best:g}"] is None
    assert all(len(rows_of(copied.folder / run)) == 2 for run in choice["runs"])


def test_a_trial_that_fails_is_not_chosen(finished, tmp_path, monkeypatch):
    best = records(finished)[1]["choices"][0]["chosen"]["lr"]
    original = Federation.play_round

    def failing(self, *arguments):
        if any(lane.method.lr == best for lane in self.lanes):
            raise RuntimeError("diverged")
        return original(self, *arguments)

    monkeypatch.setattr(Federation, "play_round", failing)
    (choice,) = run_sweep(grid(tmp_path), Silent())["choices"]
    assert choice["chosen"]["lr"] != best
    assert choice["validation"][f"lr{best:g}"] is None


def test_a_trial_that_diverges_is_named_and_the_others_end_as_undisturbed(finished, tmp_path, monkeypatch):
    (choice,) = records(finished)[1]["choices"]
    best = choice["chosen"]["lr"]
    (other,) = {1e-3, 3e-2} - {best}
    original = Cohort.fit

    def fit(cohort, *rest):
        losses = original(cohort, *rest)
        rates = torch.tensor([slot.method.lr for slot in cohort.slots], dtype=losses["adapter"].dtype)
        return {"adapter": torch.where(rates == other, math.nan, losses["adapter"])}

    monkeypatch.setattr(Cohort, "fit", fit)
    result = run_sweep(grid(tmp_path), Silent())
    assert result["choices"][0]["chosen"]["lr"] == best
    assert result["choices"][0]["validation"][f"lr{other:g}"] is None
    assert result["choices"][0]["validation"][f"lr{best:g}"] == choice["validation"][f"lr{best:g}"]
    (reason,) = result["failed"].values()
    assert reason.startswith("FLoRA, round 1: client 0 diverged to NaN or infinity")


@pytest.mark.parametrize("vary", [{}, {"data.shots": [500, 600]}], ids=["one setting", "two"])
def test_data_that_cannot_be_used_leave_no_run_folder(vary, tmp_path):
    config = {"data": {**QUICK["data"], "shots": 500}} if not vary else {}
    sweep = check_sweep(table(tmp_path, config=config, vary=vary))
    if vary:
        assert len(run_sweep(sweep, Silent())["failed"]) == 2
    else:
        with pytest.raises(UserError, match=r"data\.shots"):
            run_sweep(sweep, Silent())
    assert {path.name for path in sweep.folder.iterdir()} <= {".lock", "sweep.json"}


# Bundles


def count_lanes(monkeypatch):
    sizes, original = [], experiment.play

    def counting(entries, *arguments):
        sizes.append(len(entries))
        original(entries, *arguments)

    monkeypatch.setattr(module, "play", counting)
    return sizes


@pytest.mark.parametrize(("side_by_side", "expected"), [(1, [1, 1, 1, 1]), (2, [2, 1, 1]), (3, [2, 1, 1])])
def test_runs_train_side_by_side_where_they_can(side_by_side, expected, finished, tmp_path, monkeypatch):
    """Tuning: two trials. Then the chosen one goes on from round 1 while another seed starts: not together."""
    sizes = count_lanes(monkeypatch)
    sweep = grid(tmp_path, side_by_side=side_by_side)
    run_sweep(sweep, Silent())
    assert sizes == expected
    assert_same_records(records(sweep), records(finished))


def test_runs_that_take_ranks_away_train_alone(tmp_path, monkeypatch):
    sizes = count_lanes(monkeypatch)
    config = {"method": {"compact": True}, "training": {**QUICK["training"], "rounds": 1}}
    run_sweep(check_sweep(table(tmp_path, methods="sora_local", config=config)), Silent())
    assert sizes == [1, 1]


def test_trials_in_fields_that_do_not_stack_train_apart(tmp_path, monkeypatch):
    sizes = count_lanes(monkeypatch)
    tune = {"grid": {"lora_alpha": [8.0, 16.0]}, "rounds": 1}
    config = {"training": {**QUICK["training"], "rounds": 1}}
    run_sweep(check_sweep(table(tmp_path, tune=tune, config=config, seeds=[0])), Silent())
    assert sizes == [1, 1]


def test_a_method_that_trains_nothing_is_played_once(tmp_path):
    sweep = check_sweep(table(tmp_path, methods="zero_shot", tune={"grid": {"lr": [0.1, 0.2]}}))
    (choice,) = run_sweep(sweep, Silent())["choices"]
    assert choice["runs"] == ["all/zero_shot/seed0"]
    assert len(rows_of(sweep.folder / "all/zero_shot/seed0")) == 1


def test_newcomers_of_a_run_that_was_carried_on_meet_the_last_round(tmp_path):
    """Tuned for one round and carried on to two, the record of those who join at the end is that of the end."""
    data = {**QUICK["data"], "newcomers": 1}
    tuned, fresh = (tmp_path / name for name in ("tuned", "fresh"))
    config = {"data": data, "training": {**QUICK["training"], "rounds": 2}}
    options = {"config": config, "seeds": [0]}
    run_sweep(grid(tuned, **options, tune={"grid": {"lr": [0.03, 1e-4]}, "rounds": 1}), Silent())
    run_sweep(grid(fresh, **options, tune={"grid": {"lr": [0.03, 1e-4]}}), Silent())
    lengths = set()
    for path in tuned.rglob("newcomers.jsonl"):
        other = fresh / path.relative_to(tuned)
        lengths.add(len(rows_of(path.parent)))
        if len(rows_of(path.parent)) == 2:
            assert path.read_text() == other.read_text()
    assert lengths == {1, 2}


def test_newcomers_are_welcomed_although_the_sweep_was_stopped_before(tmp_path, monkeypatch):
    config = {"data": {**QUICK["data"], "newcomers": 1}, "training": {**QUICK["training"], "rounds": 1}}
    sweep = check_sweep(table(tmp_path, config=config, seeds=[0]))

    def stopping(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "record_newcomers", stopping)
        with pytest.raises(KeyboardInterrupt):
            run_sweep(sweep, Silent())
    reporter = Silent()
    run_sweep(sweep, reporter)
    assert reporter.rounds == 0  # all rounds had been played
    assert RunFolder(sweep.folder / "all/flora/seed0").read_newcomers()["flora"]["clients"] == 1
    run_sweep(sweep, again := Silent())
    assert again.started == []


def test_a_choice_without_any_score_is_announced(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "play_together", lambda *_: None)
    reporter = Silent()
    (choice,) = run_sweep(grid(tmp_path), reporter)["choices"]
    assert choice["chosen"] == {"lr": 1e-3}
    assert any("2 of 2 trials have no score" in warning for warning in reporter.warnings)


# What is shown


def test_a_sweep_is_shown_from_one_reading_of_its_runs(copied, monkeypatch, capsys):
    read, original = [], RunFolder.read_rounds
    monkeypatch.setattr(RunFolder, "read_rounds", lambda self: read.append(self.path) or original(self))
    print_sweep(copied.folder, Console())
    assert sorted(read) == sorted(run.path for run in run_folders(copied.folder))
    assert "mean ± sample standard deviation" in capsys.readouterr().out
    (first, second) = csv.DictReader((copied.folder / "results.csv").read_text().splitlines())
    assert (first["method"], first["seed"], second["seed"]) == ("flora", "0", "1")


@pytest.mark.parametrize(
    "content", [b"{", b"\xff\xfe", b"3", b"{}", b'{"choices": 3}', b'{"choices": [3]}', b'{"choices": [{"runs": []}]}']
)
@pytest.mark.parametrize("reading", [read_result, run_folders, lambda path: print_sweep(path, Console())])
def test_a_damaged_result_is_named_in_one_line(reading, content, tmp_path):
    (tmp_path / "sweep.json").write_bytes(content)
    with pytest.raises(UserError, match=r"sweep\.json is damaged") as caught:
        reading(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_result_is_no_sweep(tmp_path):
    with pytest.raises(UserError, match=r"is not the folder of a sweep"):
        read_result(tmp_path)


def test_a_sweep_of_another_version_is_named(copied):
    (run, *_) = run_folders(copied.folder)
    rows = [{key: value for key, value in row.items() if key != "bytes_up"} for row in run.read_rounds()]
    run.rounds.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match="another version"):
        print_sweep(copied.folder, Console())


# A changed file


@pytest.mark.parametrize(
    "config",
    [
        {"training": {**QUICK["training"], "batch_size": 8}},
        {"data": {**QUICK["data"], "shots": 5}},
        {"method": {"lora_alpha": 2.0}},
        {"preset": "authors"},
        {"data": {**QUICK["data"], "dataset": "folder:elsewhere"}},
        {"model": {**QUICK["model"], "checkpoint": "another/clip"}, "preset": "tuned"},
    ],
    ids=str,
)
def test_a_changed_sweep_is_refused_and_nothing_is_touched(config, copied, tmp_path, monkeypatch):
    """Also where only the place of data or model changed, and every run of it is finished."""
    monkeypatch.setattr("feddlp.hyperparameters.EMBEDDED", {"another/clip": "", "tiny-clip": ""})
    before = {path: path.read_bytes() for path in copied.folder.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="holds a run with another configuration"):
        run_sweep(grid(tmp_path, config=config), Silent())
    assert {path: path.read_bytes() for path in copied.folder.rglob("*") if path.is_file()} == before


def test_fewer_rounds_than_were_played_are_refused(copied, tmp_path):
    shorter = {"training": {**QUICK["training"], "rounds": 1}}
    with pytest.raises(UserError, match=r"2 rounds"):
        run_sweep(grid(tmp_path, config=shorter), Silent())


def test_more_rounds_seeds_and_trials_go_on_from_what_is_there(copied, tmp_path):
    more = grid(
        tmp_path,
        config={"training": {**QUICK["training"], "rounds": 3}},
        seeds=[0, 1, 2],
        tune={"grid": {"lr": [1e-3, 3e-2]}, "seeds": [0], "rounds": 1},
    )
    reporter = Silent()
    (choice,) = run_sweep(more, reporter)["choices"]
    assert [len(rows_of(more.folder / run)) for run in choice["runs"]] == [3, 3, 3]
    assert reporter.rounds == 1 + 3  # seeds 0 and 1 side by side, seed 2 from the start


def test_every_run_folder_holds_the_configuration_that_plays_it(finished):
    for path in finished.folder.rglob("config.toml"):
        config = load_config(path)
        assert config.name == path.parent.name
        assert Path(config.runs_dir) / config.name == path.parent
        assert read_table(path)["training"]["rounds"] == config.training.rounds == len(rows_of(path.parent))


def test_two_processes_never_play_one_sweep(finished):
    from filelock import FileLock

    with FileLock(finished.folder / ".lock"), pytest.raises(UserError, match="in use by another feddlp process"):
        run_sweep(finished, Silent())
