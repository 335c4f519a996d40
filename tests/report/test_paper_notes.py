"""Only runs that follow the paper's partition may stand beside its numbers."""

from __future__ import annotations

import pytest
from records_factory import make_run, set_option

from feddlp.report.paper_notes import deviations

PAPERS = {
    "data.clients": 10, "data.partition": "dirichlet", "data.test_set": "own", "data.test_share": 0.25,
    "data.newcomers": 0, "training.participation": 1.0, "training.report_rate": 1.0,
}  # fmt: skip
PRINTED = {"training.participation": 1, "training.report_rate": 1}


def test_a_run_that_follows_the_paper(tmp_path):
    run = make_run(tmp_path, methods=["local"], rounds=1, overrides=PAPERS)
    assert deviations([run]) == ()
    assert deviations([]) == ()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.clients", 9),
        ("data.partition", "iid"),
        ("data.test_set", "common"),
        ("data.test_share", 0.2),
        ("data.newcomers", 1),
        ("training.participation", 0.5),
        ("training.report_rate", 0.9),
    ],
)
def test_one_run_that_differs_is_enough_and_is_said_once(tmp_path, key, value):
    runs = [make_run(tmp_path, name, methods=["local"], rounds=1, overrides=PAPERS) for name in "abc"]
    for run in runs[1:]:
        set_option(run, key, value)
    assert deviations(runs) == (f"{key} = {value} (the paper: {PRINTED.get(key, PAPERS[key])})",)


def test_what_is_not_recorded_is_not_taken_for_granted(tmp_path):
    run = make_run(tmp_path, methods=["local"], rounds=1, overrides={**PAPERS, "data": {}})
    assert "data.clients = not recorded (the paper: 10)" in deviations([run])
