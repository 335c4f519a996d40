"""Addressed randomness: one generator for one address, for ever."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from feddlp.randomness import address_seed, generator

parts = st.one_of(st.integers(0, 10**6), st.text("abcdefghijklmnopqrstuvwxyz._", min_size=1, max_size=12))
addresses = st.tuples(st.integers(0, 10**9), st.lists(parts, max_size=5).map(tuple))


def test_the_seeds_are_the_same_for_ever():
    assert address_seed(0, "shuffle", 3, 7) == 2_979_485_227_380_217_858
    assert address_seed(1, "split", 0) == 7_825_413_537_403_066_412


@given(addresses)
def test_a_seed_fits_every_generator(address):
    seed, rest = address
    assert 0 <= address_seed(seed, *rest) < 2**63


@given(addresses, addresses)
def test_different_addresses_have_different_seeds(one, other):
    same = (one[0], *map(str, one[1])) == (other[0], *map(str, other[1]))
    assert (address_seed(one[0], *one[1]) == address_seed(other[0], *other[1])) == same


def test_neighbouring_numbers_do_not_run_together():
    seeds = {address_seed(*address) for address in [(1, 23), (12, 3), (1, 2, 3), (123,), (1, 2, 3, 0)]}
    assert len(seeds) == 5


@given(addresses, st.integers(0, 5))
def test_a_draw_depends_on_its_address_alone(address, drawn_before):
    seed, rest = address
    first = torch.rand(4, generator=generator(seed, *rest))
    torch.rand(drawn_before)
    generator(seed, "another", *rest)
    assert torch.equal(first, torch.rand(4, generator=generator(seed, *rest)))


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    torch.rand(3, generator=generator(0, "shuffle"))
    assert torch.equal(before, torch.get_rng_state())
