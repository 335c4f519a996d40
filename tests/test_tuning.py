"""Learning rates: said at the start, tuned alike on validation data where asked for, a caveat where they were not."""

from __future__ import annotations

import tomllib

import pytest

from fakegrid import Listener, small
from feddlp import experiment, tuning
from feddlp.config import load_config, validate
from feddlp.errors import UserError
from feddlp.federation.flower.serving import check_fit
from feddlp.provenance import learning_rates
from feddlp.report.page import render
from feddlp.report.rates import caveat, described
from feddlp.sweepfile import check_sweep
from terminal import assert_mistake

REAL = "openai/clip-vit-base-patch32"  # a name only
METHODS = ("flora", "zero_shot", "local")


class Quitter(Listener):
    """Who interrupts the run after so many steps, those of the trials included."""

    def __init__(self, steps):
        super().__init__()
        self.left = steps

    def stepped(self):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def config(tmp_path, **changes):
    training = {"rounds": 2, "diagnostics": False, **changes.pop("training", {})}
    table = {"methods": METHODS, "runs_dir": str(tmp_path), "model": {"adapt": "text"}, "tune": True}
    return small(**{**table, "methods": list(table["methods"]), **changes}, training=training)


@pytest.fixture(autouse=True)
def two_rates(monkeypatch):
    monkeypatch.setattr(tuning, "RATES", [1e-6, 1e-3, 3e-3])


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "RATES", [1e-6, 1e-3, 3e-3])
        listener = Listener()
        return experiment.run(config(tmp_path_factory.mktemp("tuned")), listener), listener


# Chosen on validation data


def test_every_method_that_learns_is_tuned_on_the_same_grid_on_validation_data(tuned):
    run, listener = tuned
    found = load_config(run.config)
    assert not found.tune
    assert found.rates.keys() == {"flora", "local"}
    for name, rate in found.rates.items():
        scores = {}
        for lr in (1e-6, 1e-3, 3e-3):
            trial = run.path / "tuning" / "all" / name / f"lr{lr:g}_seed0" / "rounds.jsonl"
            played = [row["validation"]["pooled"] for row in type(run)(trial.parent).read_rounds()]
            assert len(played) == 2  # no more than the run
            scores[lr] = sum(played) / 2
        assert dict(zip(rate.grid, rate.scores, strict=True)) == pytest.approx(scores)
        assert rate.lr == max(scores, key=scores.get)
        assert rate.tuned
        assert rate.edge == (rate.lr in (1e-6, 3e-3))
        assert found.build_methods()[name].lr == rate.lr
    assert any(note.startswith("Learning rates: ") and "chosen on validation data" in note for note in listener.notes)


def test_the_scores_do_not_depend_on_test_data(tuned, tmp_path, monkeypatch):
    """With the test labels spoilt the same rates are chosen."""
    from feddlp.federation import host

    score = host.score
    monkeypatch.setattr(host, "score", lambda *about: {**score(*about), "test": 0 * score(*about)["test"]})
    other = load_config(experiment.run(config(tmp_path), Listener()).config)
    assert other.rates == load_config(tuned[0].config).rates


def test_the_run_is_the_one_that_its_configuration_gives_again(tuned, tmp_path):
    run, _ = tuned
    again = experiment.run(load_config(run.config, [f"runs_dir={tmp_path}"]), Listener())
    assert (again.path / "clients.csv").read_text() == run.clients.read_text()
    assert not (again.path / "tuning").exists()


@pytest.mark.parametrize("share", [0.2, 0.5])  # of the steps: in the trials of the first method; of the second
def test_a_run_that_was_interrupted_while_tuning_goes_on(tuned, tmp_path, share):
    steps = sum(event == "stepped" for event, _ in tuned[1].told)
    with pytest.raises(KeyboardInterrupt):
        experiment.run(config(tmp_path), Quitter(int(share * steps)))
    (folder,) = tmp_path.iterdir()
    written = tomllib.loads((folder / "config.toml").read_text())
    assert written["tune"]
    assert not any("lr" in table for table in written["method"].values())
    listener = Listener()
    run = experiment.resume(folder, listener)
    assert run.clients.read_text() == tuned[0].clients.read_text()
    assert load_config(run.config).rates == load_config(tuned[0].config).rates


def test_a_rate_that_the_user_gave_a_method_stays(tmp_path):
    run = experiment.run(config(tmp_path, method={"local": {"lr": 2e-4}}, methods=["local", "flora"]), Listener())
    found = load_config(run.config)
    assert found.build_methods()["local"].lr == 2e-4
    assert (found.rates["local"].source, found.rates["local"].tuned) == ("as configured", False)
    assert found.rates["flora"].tuned
    assert not (run.path / "tuning" / "all" / "local").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["method.lr=1e-3"], "tune=true chooses method.lr; leave that out, or give single methods a rate"),
        (["data.validation_share=0"], "tune=true needs validation data, and data.validation_share=0 leaves none"),
        (["preset=authors"], "tune=true needs validation data, and data.validation_share=0 leaves none"),
        (["tune=7"], "tune=7: "),
    ],
)
def test_what_leaves_nothing_to_tune_is_refused(feddlp, words, told):
    assert_mistake(feddlp("run", "tune=true", *words), told)


def test_elsewhere_tune_is_refused():
    with pytest.raises(UserError, match="tune=true is for runs in one process"):
        check_fit(validate({"tune": True}))
    with pytest.raises(UserError, match="tune is not for config or vary"):
        check_sweep({"methods": "flora", "config": {"tune": True}})


# Said


@pytest.mark.parametrize(
    ("table", "sources"),
    [
        ({}, {"flora": ("preset tuned: chosen for tiny-clip on the digits", True)}),
        ({"data": {"dataset": "glyphs"}}, {"flora": ("preset tuned: chosen for tiny-clip on the digits", False)}),
        ({"method": {"lr": 7e-5}}, {"flora": ("as configured", False), "feddlp": ("as configured", False)}),
        (
            {"model": {"checkpoint": REAL}},
            {"flora": ("preset paper: a middle of those published for other data", False)},
        ),
        (
            {"model": {"checkpoint": REAL}, "data": {"known_as": "pets"}, "preset": "authors"},
            {"flora": ("preset authors: published for pets", False)},
        ),
    ],
    ids=str,
)
def test_where_a_rate_comes_from_is_written_down_and_survives(table, sources, tmp_path):
    config = validate({"methods": ["flora", "feddlp", "zero_shot"], **table})
    rates = learning_rates(config)
    assert rates.keys() == {"flora", "feddlp"}
    for name, (source, tuned) in sources.items():
        assert (rates[name].source, rates[name].tuned) == (source, tuned)
    (tmp_path / "c.toml").write_text(config.to_toml())
    assert learning_rates(load_config(tmp_path / "c.toml")) == rates
    changed = load_config(tmp_path / "c.toml", ["data.dataset=glyphs"])  # what was tuned, was tuned for other images
    assert not any(rate.tuned for rate in learning_rates(changed).values())


def test_the_page_the_terminal_and_the_start_say_the_rates_and_the_caveat(tmp_path, feddlp, capsys):
    """The rates of an unknown model: FedDLP's is five times the others', and after two rounds it alone has moved."""
    method = {"flora": {"lr": 1e-5}, "local": {"lr": 5e-5}}
    listener = Listener()
    run = experiment.run(config(tmp_path, tune=False, method=method, methods=["flora", "local"]), listener)
    line = "Learning rates: flora 1e-05, local 5e-05 (as configured)"
    assert line in listener.notes
    assert any("were not tuned on this data" in warning for warning in listener.warnings)
    page = render([run])
    against = "; rates differ by method and were not tuned on this data (flora 1e-05, local 5e-05); tune=true chooses"
    assert against in page
    assert f"<li>{line}.</li>" in page
    shown = feddlp("show", str(run.path))
    assert f"{line}." in " ".join(shown.out.split())


def test_a_caveat_is_due_unless_all_was_tuned_here():
    rates = {"a": {"lr": 1e-3, "source": "x", "tuned": True}, "b": {"lr": 3e-3, "source": "x", "tuned": True}}
    assert caveat(rates) == caveat({}) == ""
    assert "rates differ by method and were not tuned" in caveat({**rates, "c": {"lr": 1e-3, "source": "y"}})
    equal = {name: {"lr": 1e-3, "source": "y", "tuned": False} for name in "ab"}
    assert caveat(equal).startswith("rates are equal and were not tuned on this data (a 0.001, b 0.001)")
    assert caveat({"a": equal["a"]}) == "its learning rate was not tuned on this data (a 0.001)"
    rates["b"]["edge"] = True
    assert caveat(rates) == "the best rate tried for b is the smallest or largest of the grid"
    assert described(rates) == "Learning rates: a 0.001, b 0.003, the edge of what was tried (x)"
