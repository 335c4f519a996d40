"""A small CLIP that was trained on photographs, on photographs that it has never seen: minutes long, on real files.

The checkpoint and the images are not part of the project (docs/results.md says what they are).
"""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoTokenizer, CLIPModel

import feddlp
from feddlp.config import validate
from feddlp.data.check import examine
from feddlp.data.datasets import find
from feddlp.data.pictures import PictureFile
from feddlp.data.prompts import class_prompts
from feddlp.sweepfile import load_sweep

ROOT = Path(__file__).parents[1]
ASSETS = ROOT.parent / "shared" / "assets"
MODEL, PHOTOS = ASSETS / "mini-clip", ASSETS / "caltech101"
METHODS = ("zero_shot", "local", "flora", "feddlp")
CHOSEN = {  # by tower: the sweep, and what it chose
    "text": (
        "caltech101-text.toml",
        {"local": {"lr": 1e-3}, "flora": {"lr": 1e-3}, "feddlp": {"lr": 3e-3, "kd_weight": 0.1}},
    ),
    "image": (
        "caltech101.toml",
        {"local": {"lr": 3e-4}, "flora": {"lr": 1e-3}, "feddlp": {"lr": 1e-3, "kd_weight": 0.1}},
    ),
}
CLIENT = 3

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),  # peft 0.21 on transformers 5.23
    pytest.mark.skipif(
        not (MODEL.is_dir() and PHOTOS.is_dir()), reason=f"mini-clip and caltech101 are not in {ASSETS}"
    ),
]


@pytest.fixture(scope="module", params=CHOSEN)
def run(request, tmp_path_factory) -> feddlp.Run:
    """Ten rounds of the table in docs/results.md, one seed."""
    file, fields = CHOSEN[request.param]
    table = copy.deepcopy(load_sweep(ROOT / "configs" / file).config)
    table["data"]["dataset"], table["model"]["checkpoint"] = f"folder:{PHOTOS}", str(MODEL)
    table |= {"methods": list(METHODS), "method": fields, "runs_dir": str(tmp_path_factory.mktemp("runs"))}
    return feddlp.run(validate(table))


def test_the_collection_is_what_it_is_said_to_be():
    found = examine(find(f"folder:{PHOTOS}"), lambda done, total: None)
    assert not found.unreadable
    assert (len(found.source.labels), len(found.source.class_names)) == (8677, 101)


def test_every_trained_method_learns_much(run):
    rounds = {name: [row for row in run.rounds if row["method"] == name] for name in METHODS}
    assert {name: len(rows) for name, rows in rounds.items()} == dict.fromkeys(METHODS, 10) | {"zero_shot": 1}
    final = {name: rows[-1]["test"]["pooled"] for name, rows in rounds.items()}
    assert final["zero_shot"] == pytest.approx(6.35, abs=0.3)
    assert min(final[name] for name in METHODS[1:]) > final["zero_shot"] + 10


@torch.no_grad()
def test_a_client_takes_its_model_away_and_the_libraries_give_its_logits(run, tmp_path):
    run.export(CLIENT, tmp_path / "out")
    photos = sorted(PHOTOS.glob("*/image_0001.jpg"))[::5]
    predictor = feddlp.load_predictor(tmp_path / "out", device="cpu")
    ours = {one.image: dict(one.classes) for one in predictor.predict(photos, top=101)}
    base = CLIPModel.from_pretrained(MODEL, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, tmp_path / "out").eval()
    prompts = class_prompts(predictor.class_names, "a photo of a {}.")
    tokens = AutoTokenizer.from_pretrained(MODEL)(prompts, padding=True, return_tensors="pt")
    pixels = predictor.backbone.resize([PictureFile(photo).open() for photo in photos])
    normalised = (pixels - predictor.backbone.pixel_mean) / predictor.backbone.pixel_std
    theirs = model(pixel_values=normalised, **tokens).logits_per_image.softmax(-1)
    named = [[ours[str(photo)][name] for name in predictor.class_names] for photo in photos]
    torch.testing.assert_close(torch.tensor(named), theirs, rtol=0, atol=0.03)  # ours is the run's bfloat16
