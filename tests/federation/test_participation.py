"""Who takes part and who reports: exact counts, and every draw at its own address."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from feddlp.config import TrainingConfig
from feddlp.federation.participation import draw

often = settings(max_examples=60, deadline=None)


def drawn(seed=0, round=0, clients=10, **training):
    ids = clients if isinstance(clients, list) else range(clients)
    return draw(seed, round, ids, TrainingConfig(**training))


@often
@given(st.integers(1, 40), st.integers(1, 100), st.integers(0, 5))
def test_exactly_as_many_join_as_asked_for_half_up_and_one_at_least(clients, percent, round):
    joins, reports = drawn(round=round, clients=clients, participation=percent / 100)
    wanted = Fraction(percent, 100) * clients
    assert joins.sum() == max(1, int(wanted + Fraction(1, 2)))
    assert torch.equal(reports, joins)  # nothing is lost unless asked for
    assert joins.dtype == reports.dtype == torch.bool
    assert len(joins) == len(reports) == clients


@often
@given(st.integers(1, 20), st.floats(0.05, 1), st.floats(0, 1), st.integers(0, 9))
def test_only_who_joined_reports(clients, participation, rate, round):
    joins, reports = drawn(round=round, clients=clients, participation=participation, report_rate=rate)
    assert not (reports & ~joins).any()


def test_all_join_and_report_unless_told_otherwise_and_none_report_at_rate_zero():
    joins, reports = drawn()
    assert joins.all()
    assert reports.all()
    joins, reports = drawn(report_rate=0.0)
    assert joins.all()
    assert not reports.any()


def test_a_draw_is_the_same_every_time_and_differs_by_round_and_seed():
    options = {"clients": 40, "participation": 0.5, "report_rate": 0.5}
    first = torch.stack(drawn(3, 7, **options))
    assert torch.equal(first, torch.stack(drawn(3, 7, **options)))
    for seed, round in ((3, 8), (4, 7), (7, 3)):
        assert not torch.equal(first, torch.stack(drawn(seed, round, **options)))


@often
@given(st.permutations(range(8)), st.integers(1, 8), st.integers(0, 20))
def test_a_clients_report_does_not_depend_on_the_others(order, count, round):
    """Whoever else is there and in whatever place: the fate of a report is the client's own."""
    _, everyone = drawn(round=round, clients=8, report_rate=0.5)
    some = order[:count]
    _, reports = drawn(round=round, clients=some, report_rate=0.5)
    assert reports.tolist() == [bool(everyone[client]) for client in some]


def test_who_joins_does_not_depend_on_the_report_rate_nor_reports_on_participation():
    for round in range(10):
        joins, reports = drawn(round=round, participation=0.4, report_rate=0.5)
        assert torch.equal(joins, drawn(round=round, participation=0.4)[0])
        everyone = drawn(round=round, report_rate=0.5)[1]
        assert torch.equal(reports, joins & everyone)


def test_fewer_reports_arrive_at_a_lower_rate_and_never_others():
    for round in range(10):
        low, high = (drawn(round=round, clients=50, report_rate=rate)[1] for rate in (0.3, 0.6))
        assert not (low & ~high).any()


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_shares_come_out_in_the_long_run_for_every_client(share):
    """No client is favoured: within four standard deviations of the share over 400 rounds."""
    joined, reported = torch.zeros(10), torch.zeros(10)
    for round in range(400):
        joined += drawn(round=round, participation=share)[0]
        reported += drawn(round=round, report_rate=share)[1]
    deviation = 4 * (share * (1 - share) / 400) ** 0.5
    assert ((joined / 400 - share).abs() < deviation).all()
    assert ((reported / 400 - share).abs() < deviation).all()
