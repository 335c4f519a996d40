"""The pre-training tool: what it draws, what it writes, and that it knows no other data."""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path

import pytest
import torch

from feddlp.data import characters as characters_module
from feddlp.data.characters import FONTS, characters, render_masks
from terminal import forked, script

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture(autouse=True)
def tools_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))


def test_batches_are_reproducible_and_show_each_character_once_a_group():
    from glyphs import GlyphBatches

    first, again, other = (GlyphBatches(FONTS[:2], groups=2, seed=seed) for seed in (0, 0, 1))
    images, captions = first.draw()
    same_images, same_captions = again.draw()
    assert torch.equal(images, same_images)
    assert captions == same_captions
    assert not torch.equal(images, other.draw()[0])
    assert images.shape == (2 * len(characters()), 3, 32, 32)
    assert images.dtype == torch.uint8


def test_every_glyph_of_every_font_leaves_ink():
    for glyph, masks in render_masks(FONTS).items():
        assert (masks.flatten(1).max(1).values > 0.5).all(), glyph


def test_the_stream_of_captions_stays_as_it_was():
    """What made the checkpoint can be made again; pixels may differ in rounding from one machine to another."""
    from glyphs import GlyphBatches

    batches = GlyphBatches(FONTS[:7], groups=2, seed=0)
    captions = [caption for _ in range(2) for caption in batches.draw()[1]]
    digest = hashlib.sha256("\n".join(captions).encode()).hexdigest()
    assert digest == "804ddbbdd1bc49a524228976f8b4c6472444ce6823bf261c42ae8c73c69c8efe"


def test_no_data_set_is_read():
    for file in (TOOLS / "glyphs.py", TOOLS / "pretrain_tiny_clip.py", Path(characters_module.__file__)):
        imported = {
            name
            for node in ast.walk(ast.parse(file.read_text()))
            for name in (
                [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", None) or ""]
            )
        }
        assert not {name.split(".")[0] for name in imported} & {"sklearn", "datasets"}, file
        assert {name for name in imported if name.startswith("feddlp")} <= {"feddlp.data.characters"}, file


def test_two_steps_write_a_checkpoint_that_the_package_loads(tmp_path):
    words = ["--steps", "2", "--groups", "1", "--to", str(tmp_path)]
    done = forked(*words, cwd=tmp_path, do=script(TOOLS / "pretrain_tiny_clip.py"))
    assert done.code == 0, done.err
    from feddlp.model.checkpoint import load_backbone

    backbone = load_backbone(str(tmp_path), "image")
    assert backbone.tokenize(["a photo of the digit three."]).shape == (1, 9)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 4 * 2**20
