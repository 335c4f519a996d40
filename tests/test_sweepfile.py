"""A sweep file: every combination has its run, and what is wrong is refused before anything is played."""

from __future__ import annotations

import pytest

from feddlp.errors import UserError
from feddlp.sweepfile import Job, check_sweep, job_config, load_sweep, slug

DATA = {"partition": "few_shot_iid", "clients": 2, "validation_share": 0.3}


def table(tmp_path, methods="flora", **changes):
    config = {"data": DATA, "training": {"rounds": 2}, **changes.pop("config", {})}
    return {"runs_dir": str(tmp_path), "methods": methods, "seeds": [0, 1], "config": config, **changes}


def grid(tmp_path, **changes):
    """A sweep that searches two learning rates."""
    return check_sweep(table(tmp_path, **{"tune": {"grid": {"lr": [1e-3, 3e-2]}, "rounds": 1}, **changes}))


def refusal(tmp_path, **changes):
    with pytest.raises(UserError) as caught:
        check_sweep(table(tmp_path, **changes))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# The grid


def test_without_validation_data_there_is_no_grid(tmp_path):
    message = refusal(
        tmp_path,
        tune={"grid": {"lr": [1e-3, 1e-2]}},
        config={"data": {**DATA, "validation_share": 0.0}},
    )
    assert "validation_share" in message


def test_a_field_of_a_variant_is_not_searched_and_other_methods_fields_neither(tmp_path):
    sweep = grid(
        tmp_path,
        methods=["zero_shot", "flora", "feddlp", "combined_published", "feddat_original"],
        tune={"grid": {"lr": [0.1, 0.2], "kd_weight": [1.0, 2.0]}},
    )
    assert {name: len(sweep.trials(name)) for name in sweep.methods} == {
        "zero_shot": 1,
        "flora": 2,
        "feddlp": 4,
        "combined_published": 2,  # its kd_weight makes it what it is
        "feddat_original": 4,
    }


def test_what_the_file_sets_for_one_method_is_not_searched(tmp_path):
    sweep = grid(tmp_path, config={"method": {"flora": {"lr": 0.5}}}, methods=["flora", "local"])
    assert sweep.trials("flora") == [()]
    assert len(sweep.trials("local")) == 2
    assert job_config(sweep, Job(0, "flora", (), 0, None)).build_methods()["flora"].lr == 0.5


def test_a_users_own_variant_may_be_searched(tmp_path):
    own = {"method": {"wide": {"variant_of": "flora", "rank": 8}}}
    sweep = grid(tmp_path, methods=["flora", "wide"], config=own)
    assert len(sweep.trials("wide")) == 2
    method = job_config(sweep, Job(0, "wide", (("lr", 0.03),), 0, None)).build_methods()["wide"]
    assert (method.rank, method.lr) == (8, 0.03)


def test_only_a_method_with_adapters_trains_whatever_its_name(tmp_path):
    own = {"method": {"frozen": {"variant_of": "zero_shot"}}}
    sweep = grid(tmp_path, methods=["zero_shot", "frozen", "flora", "flora_released"], config=own)
    assert [name for name in sweep.methods if sweep.trains(name)] == ["flora", "flora_released"]
    assert sweep.trials("frozen") == [()]


def test_a_common_key_reaches_the_methods_that_have_it(tmp_path):
    """As in a run: [method] kd_weight is for FedDLP, and no obstacle to FLoRA beside it."""
    sweep = grid(tmp_path, methods="flora, feddlp", config={"method": {"kd_weight": 7.0, "lora_alpha": 3.0}})
    flora, feddlp = (job_config(sweep, Job(0, name, (), 0, None)).build_methods()[name] for name in ("flora", "feddlp"))
    assert feddlp.kd_weight == 7.0
    assert flora.lora_alpha == feddlp.lora_alpha == 3.0


def test_what_varies_is_not_searched_as_well(tmp_path):
    for key, expected in (("method.lr", (1, 1)), ("method.flora.lr", (1, 2)), ("method.lora_alpha", (2, 2))):
        sweep = grid(tmp_path, methods="flora, local", vary={key: [0.1, 0.2]})
        assert (len(sweep.trials("flora")), len(sweep.trials("local"))) == expected
        second = job_config(sweep, Job(1, "flora", sweep.trials("flora")[0], 0, None)).build_methods()["flora"]
        assert getattr(second, key.rpartition(".")[2]) == 0.2


# What varies


def test_every_combination_is_a_setting_with_a_folder_of_its_own(tmp_path):
    sweep = check_sweep(table(tmp_path, vary={"data.shots": [2, 3], "model.adapt": ["text", "image"]}))
    assert len(sweep.settings()) == 4
    folders = {job_config(sweep, Job(i, "flora", (), 0, None)).runs_dir for i in range(4)}
    assert len(folders) == 4
    config = job_config(sweep, Job(3, "flora", (), 1, 1))
    assert (config.data.shots, config.model.adapt, config.seed, config.training.rounds) == (3, "image", 1, 1)


def test_a_setting_is_named_by_its_keys_and_values():
    assert slug({"data.dirichlet_beta": 0.1, "model.adapt": "image"}) == "dirichlet_beta-0.1_adapt-image"
    assert slug({"data.dataset": "folder:a/b"}) == "dataset-folder-a-b"
    assert slug({}) == "all"


def test_settings_that_would_share_a_folder_are_refused(tmp_path):
    message = refusal(tmp_path, vary={"data.dataset": ["folder:a/b", "folder:a-b"]})
    assert "dataset-folder-a-b" in message
    assert "vary.data.shots" in refusal(tmp_path, vary={"data.shots": [2, 2]})


# The file


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"sedes": [0]}, "did you mean seeds"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [0, -1]}, "seeds"),
        ({"seeds": [0, 0]}, "seeds"),
        ({"seeds": ["one"]}, "seeds"),
        ({"methods": "flroa"}, "did you mean flora"),
        ({"methods": "flora, flora"}, "twice"),
        ({"methods": []}, "methods"),
        ({"name": "../up"}, "name"),
        ({"side_by_side": 0}, "side_by_side"),
        ({"tune": {"gird": {}}}, "did you mean grid?"),
        ({"tune": {"grid": {"lr": []}}}, "tune.grid.lr"),
        ({"tune": {"grid": {"learning_rate": [1.0]}}}, "tune.grid.learning_rate"),
        ({"tune": {"grid": {"kd_weight": [1.0]}}}, "tune.grid.kd_weight"),
        ({"tune": {"grid": {"lr": [1e-3, 0.0]}}}, "lr=0"),
        ({"tune": {"grid": {"lr": [1e-3, 1e-2]}, "seeds": [-2]}}, "tune.seeds"),
        ({"tune": {"grid": {"lr": [1e-3, 1e-2]}, "rounds": 3}}, "tune.rounds"),
        ({"vary": {"data.clinets": [2]}}, "did you mean"),
        ({"vary": {"data.clients": [2, 0]}}, "data.clients=0"),
        ({"vary": {"data.clients": []}}, "vary"),
        ({"vary": {"training.rounds.x": [1]}}, "training.rounds.x"),
        ({"vary": {"seed": [1, 2]}}, "seed"),
        ({"vary": {"methods": ["flora"]}}, "methods"),
        ({"config": {"trainign": {}}}, "did you mean"),
        ({"config": {"method": 3}}, "method"),
        ({"config": {"method": {"flora": {"lrr": 1.0}}}}, "lrr"),
        ({"config": {"seed": 3}}, "seed"),
        ({"config": {"name": "mine"}}, "name"),
    ],
    ids=str,
)
def test_a_wrong_key_or_value_is_refused_in_one_line(changes, named, tmp_path):
    assert named in refusal(tmp_path, **changes)


def test_a_sweep_file_is_read_and_refused_as_one(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('methods = "flora"\nseeds = [0]\n[config.training]\nrounds = 2\n[vary]\n"data.clients" = [2, 3]\n')
    assert len(load_sweep(file).settings()) == 2
    file.write_text("methods = ")
    with pytest.raises(UserError, match="not valid TOML"):
        load_sweep(file)
