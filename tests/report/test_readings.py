"""Mean and deviation over seeds, and which round each of the three accuracies is of."""

from __future__ import annotations

from statistics import fmean, stdev
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feddlp.report.readings import accuracy, measure, picked, shown

percent = st.floats(0, 100)


@given(st.lists(percent | st.none(), max_size=6))
def test_mean_and_sample_deviation_of_what_is_known(values):
    known, found = [value for value in values if value is not None], measure(values)
    if not known:
        assert found is None
        return
    assert found.mean == pytest.approx(fmean(known))
    assert (found.count, found.runs) == (len(known), len(values))
    assert found.std == (pytest.approx(stdev(known), abs=1e-9) if len(known) > 1 else None)


def test_numbers_are_written_with_their_spread():
    assert shown(measure([96, 97, 98])) == "97.00 ± 1.00"  # ddof 1; the population's would be 0.82
    assert shown(measure([96])) == "96.00"
    assert shown(measure([None])) == "–"
    assert shown(measure([1234.5]), 0) == "1,234"


@given(st.lists(percent | st.none(), max_size=6), st.randoms())
def test_the_order_of_the_seeds_changes_nothing(values, random):
    assert measure(random.sample(values, len(values))) == measure(values)


def row(number: int, test: float | None, validation: float | None) -> dict[str, Any]:
    parts = {"test": test, "validation": validation}
    return {"round": number} | {name: None if value is None else {"pooled": value} for name, value in parts.items()}


few = st.sampled_from([0.0, 30.0, 99.5, None])  # so that ties are frequent


@given(st.lists(st.tuples(few, few), min_size=1, max_size=8))
def test_the_three_accuracies_are_of_three_rounds_and_the_earliest_wins_a_tie(pairs):
    rows = [row(number, *pair) for number, pair in enumerate(pairs)]
    found = picked(rows)
    assert found.final is rows[-1]
    for one, place in ((found.best_test, 0), (found.validation_chosen, 1)):
        values = [-1 if pair[place] is None else pair[place] for pair in pairs]
        assert one is (None if max(values) == -1 else rows[values.index(max(values))])


def test_what_is_not_recorded_has_no_accuracy():
    assert accuracy(None, "test") is None
    assert accuracy({"round": 1}, "test") is None
    assert accuracy(row(1, None, 50.0), "test") is None
    assert accuracy(row(1, None, 50.0), "validation") == 50.0
    assert accuracy(row(1, 50.0, None), "test", "client_std") is None
