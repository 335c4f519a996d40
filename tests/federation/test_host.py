"""What a client keeps is finite, or the run ends with what it kept before."""

from __future__ import annotations

import math

import pytest

from fakegrid import Listener, small
from feddlp import experiment
from feddlp.errors import UserError
from feddlp.records import RunFolder
from feddlp.training.cohort import Cohort


@pytest.mark.parametrize(("value", "wave"), [(math.nan, 1), (math.inf, 3)])
def test_a_client_that_diverges_ends_the_run_with_a_line_and_spoils_nothing(value, wave, tmp_path, monkeypatch):
    config = small(runs_dir=str(tmp_path), training={"wave": wave})
    expected = experiment.run(config, Listener())
    original = Cohort.fit

    def fit(cohort, *rest):
        losses = original(cohort, *rest)
        if cohort.progress == 1 and 2 in (clients := [slot.client for slot in cohort.slots]):
            cohort.theta["global"][next(iter(cohort.theta["global"]))].data[clients.index(2)].view(-1)[3] = value
        return losses

    with monkeypatch.context() as patch:
        patch.setattr(Cohort, "fit", fit)
        with pytest.raises(UserError) as caught:
            experiment.run(config, Listener())
    assert str(caught.value) == (
        "FedDLP, round 2: client 2 diverged to NaN or infinity; nothing of this round is kept; begin a new run with a "
        "smaller learning rate (method.lr)"
    )
    (path,) = (run for run in tmp_path.iterdir() if run != expected.path)
    assert len(RunFolder(path).read_rounds()) == 1
    experiment.resume(path, Listener())  # the cause is gone
    (_, found), (_, wanted) = (run.load_checkpoint("feddlp") for run in (RunFolder(path), expected))
    assert found.keys() == wanted.keys()
    assert all((found[key] == wanted[key]).all() for key in wanted)
