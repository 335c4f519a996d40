"""The rendered characters: the same images whatever their number, legible, and quick to load."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from PIL import Image

from feddlp.data.characters import MASK_SIZE
from feddlp.data.datasets import Dataset, find, load, to_pictures
from feddlp.data.glyphs import BLOCK, CHARACTERS, blocks, place, render_block, render_shapes
from feddlp.errors import UserError

COUNT = BLOCK + 3 * len(CHARACTERS) + 5


@pytest.fixture(scope="module")
def shapes() -> torch.Tensor:
    return render_shapes()


@pytest.fixture(scope="module")
def rendered(backbones) -> Dataset:
    return load(find(f"glyphs:{COUNT}"), backbones["image"].resize)


def test_an_image_does_not_depend_on_how_many_there_are(rendered):
    fewer = torch.cat(list(blocks(BLOCK - 7)))
    assert torch.equal(fewer, rendered.images[: BLOCK - 7])
    assert find("glyphs:100").labels == rendered.labels[:100].tolist()


def test_an_image_does_not_depend_on_threads_or_on_what_was_drawn_before(shapes, rendered):
    torch.manual_seed(3)
    torch.set_num_threads(2)
    try:
        assert torch.equal(render_block(shapes, 1)[: COUNT - BLOCK], rendered.images[BLOCK:])
    finally:
        torch.set_num_threads(1)


def test_no_two_images_are_alike(shapes):
    images = torch.cat([render_block(shapes, number) for number in (0, 1, 1000)])
    assert len(images.flatten(1).unique(dim=0)) == 3 * BLOCK


def test_the_classes_are_balanced(rendered):
    assert rendered.images.shape == (COUNT, 3, 32, 32)
    assert rendered.images.dtype == torch.uint8
    counts = rendered.labels.bincount(minlength=len(CHARACTERS))
    assert counts.max() - counts.min() == 1
    assert len(set(rendered.class_names)) == len(CHARACTERS)


def test_without_a_number_there_are_ten_thousand():
    assert len(find("glyphs").labels) == len(find("glyphs:").labels) == 10_000


def test_the_embedded_model_reads_what_the_labels_say(rendered, backbones):
    backbone = backbones["image"]
    prompts = [rendered.template.format(name) for name in rendered.class_names]
    with torch.no_grad():
        names = backbone.encode_texts(backbone.tokenize(prompts))
        predicted = (backbone.encode_images(rendered.images) @ names.T).argmax(-1)
    assert (predicted == rendered.labels).float().mean() > 0.85


def test_every_case_and_every_font_is_shown(shapes):
    """A shape of its own for each place in the table, so that an index can be read off the picture."""
    table = torch.arange(len(shapes.flatten(0, 1))).remainder(251).to(torch.uint8)
    flat = table[:, None, None].expand(-1, MASK_SIZE, MASK_SIZE).contiguous()
    chosen = torch.arange(len(table))
    placed = place(flat, chosen, torch.Generator().manual_seed(0))
    assert torch.equal(placed, table[:, None, None].expand_as(placed))


@pytest.mark.parametrize("argument", ["abc", "0", "-3", "48", "1.5", "1e9", "10000001", "9" * 5000])
def test_a_number_that_makes_no_data_set_is_refused_in_one_line(argument):
    with pytest.raises(UserError, match=r"data\.dataset=glyphs:.* from 49 .* to 10000000; write for example") as caught:
        find(f"glyphs:{argument}")
    assert "\n" not in str(caught.value)


def shrink(images: Sequence[Image.Image]) -> torch.Tensor:
    arrays = [np.asarray(image.resize((4, 4), Image.Resampling.BOX)) for image in images]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("size", ["as rendered", "another"])
def test_blocks_of_pixels_are_loaded_as_single_pictures_are(backbones, size):
    resize = backbones["image"].resize if size == "as rendered" else shrink
    source = find(f"glyphs:{COUNT}")
    one_by_one = [resize([picture]) for block in source.blocks() for picture in to_pictures(block)]
    assert torch.equal(load(source, resize).images, torch.cat(one_by_one))


def test_pixels_that_need_no_resizing_are_not_resized_one_by_one(backbones):
    asked = []

    def resize(images: Sequence[Image.Image]) -> torch.Tensor:
        asked.append(len(images))
        return backbones["image"].resize(images)

    load(find(f"glyphs:{2 * BLOCK}"), resize)
    assert asked == [1, 1]
