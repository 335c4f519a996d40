"""Clocks around the engine: the parts add up, and nothing is left behind."""

from __future__ import annotations

import pytest
import torch

from feddlp.bench.timers import TRAINING, Timers
from feddlp.federation.aggregation import Server, WeightedMean
from feddlp.methods.feddlp import FedDLP
from feddlp.training.cohort import Cohort
from feddlp.training.optim import AdamW

CPU = torch.device("cpu")
PATCHED = [(Cohort, "fit"), (Cohort, "correct"), (AdamW, "step"), (Server, "step"), (torch.autograd, "grad")]


def current() -> list:
    return [vars(owner)[name] for owner, name in PATCHED] + [
        FedDLP.losses,
        WeightedMean.add,
        WeightedMean.result,
    ]


def test_the_parts_of_a_round_add_up(make_federation):
    federation, timers, before = make_federation(FedDLP()), Timers(CPU), current()
    with timers.watching(FedDLP):
        federation.play_round()
    split = timers.split()
    assert sum(split.values()) == pytest.approx(timers.seconds["round"])
    assert all(split[name] > 0 for name in (*TRAINING, "evaluation", "aggregation"))
    assert split["other training"] >= 0
    assert split["other"] >= 0
    assert current() == before


def test_padding_is_counted(make_federation):
    """Three clients with 11, 3 and 8 samples in batches of four: 22 samples on 3 x 3 x 4 places less what is cut."""
    federation, timers = make_federation(FedDLP()), Timers(CPU)
    with timers.watching(FedDLP):
        federation.play_round()
    assert timers.samples == 22
    assert 22 <= timers.places <= 36


def test_without_parts_only_the_sections_of_the_round_are_timed(make_federation):
    federation, timers = make_federation(FedDLP()), Timers(CPU, parts=False)
    with timers.watching(FedDLP):
        federation.play_round()
    assert set(timers.seconds) == {"round", "training", "evaluation", "aggregation"}


def test_a_section_within_another_one_than_its_own_is_not_split():
    timers = Timers(CPU)
    with timers.section("round", ""), timers.section("evaluation", "round"), timers.section("forward", "training"):
        pass
    assert set(timers.seconds) == {"round", "evaluation"}


def test_the_engine_is_put_back_after_an_error():
    before = current()
    with pytest.raises(KeyboardInterrupt), Timers(CPU).watching(FedDLP):
        raise KeyboardInterrupt
    assert current() == before


def test_a_watched_round_gives_the_same_result(make_federation):
    plain, watched = make_federation(FedDLP()), make_federation(FedDLP())
    with Timers(CPU).watching(FedDLP):
        (seen,) = watched.play_round()
    (expected,) = plain.play_round()
    assert torch.equal(seen.losses["local"], expected.losses["local"])
    assert torch.equal(seen.test_correct, expected.test_correct)
