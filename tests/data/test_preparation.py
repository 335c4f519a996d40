"""Pictures to pixels: in order, on all cores, chunk by chunk, bad ones left out without a gap."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures_factory import encoded, noise, picture, resize

from feddlp.data import preparation
from feddlp.data.pictures import PictureBytes
from feddlp.data.preparation import Filled, fill, in_memory, row_shape


def some_pictures(bad: Sequence[bool]) -> list[PictureBytes]:
    """Picture i is red to degree i."""
    good = [encoded("PNG", picture((number, 0, 0))) for number in range(len(bad))]
    return [PictureBytes(str(number), b"broken" if broken else good[number]) for number, broken in enumerate(bad)]


@settings(max_examples=25, deadline=None)
@given(bad=st.lists(st.booleans(), max_size=40), chunk=st.integers(1, 9))
def test_rows_stand_in_order_without_gaps(bad, chunk):
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparation, "CHUNK", chunk)
        pixels = in_memory(some_pictures(bad), resize, lambda done, total: seen.append((done, total)))
    assert pixels.images[:, 0, 0, 0].tolist() == [number for number, broken in enumerate(bad) if not broken]
    assert [index for index, _ in pixels.bad] == [number for number, broken in enumerate(bad) if broken]
    assert seen == [(min(done + chunk, len(bad)), len(bad)) for done in range(0, len(bad), chunk)]


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_preparation_goes_on_where_it_stood(stop, monkeypatch):
    monkeypatch.setattr(preparation, "CHUNK", 3)
    pictures = some_pictures([number % 4 == 1 for number in range(11)])
    images = torch.zeros(11, 3, 4, 4, dtype=torch.uint8)
    *_, half = (filled for filled, _ in zip(fill(images, pictures, resize, Filled()), range(stop), strict=False))
    opened, read = [], PictureBytes.open
    monkeypatch.setattr(PictureBytes, "open", lambda self: opened.append(int(self.name)) or read(self))
    *_, filled = fill(images, pictures, resize, half)
    assert sorted(opened) == list(range(3 * stop, 11))
    expected = in_memory(pictures, resize, lambda *_: None)
    assert torch.equal(images[: filled.rows], expected.images)
    assert filled.bad == expected.bad


def test_notes_of_the_decoders_are_kept_quiet_and_the_filters_come_back():
    def loud(images):
        warnings.warn("well", stacklevel=1)
        return resize(images)

    before = list(warnings.filters)
    images = torch.zeros(3, 3, 4, 4, dtype=torch.uint8)
    assert len(list(fill(images, some_pictures([False] * 3), loud, Filled()))) == 1
    assert warnings.filters == before


def test_the_row_is_what_the_checkpoint_reads(backbones):
    assert row_shape(backbones["image"].resize) == (3, 32, 32)


def test_one_by_one_is_as_all_together(backbones):
    images = [noise(), noise((33, 90)), picture(size=(1, 1)), picture(size=(100, 3))]
    pictures = [PictureBytes("", encoded("PNG", image)) for image in images]
    one_by_one = in_memory(pictures, backbones["image"].resize, lambda *_: None)
    assert torch.equal(one_by_one.images, backbones["image"].resize(images))
