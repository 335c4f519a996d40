"""A federation over SigLIP: the slow twin agrees, and a whole run from the command line comes to its end."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import SiglipModel

from feddlp.config import TrainingConfig
from feddlp.data import datasets
from feddlp.data.batches import ClientData
from feddlp.data.features import encode_prompts, image_features
from feddlp.data.prompts import class_prompts
from feddlp.federation.host import FederatedData, Host, Lane
from feddlp.federation.rounds import Federation
from feddlp.hyperparameters import build_method
from feddlp.model.checkpoint import load_backbone
from holdings import everyone
from reference.comparison import as_fast, assert_same, twins
from reference.federation import Task, federate
from reference.training import predict

ROWS = (range(11), range(11, 14), range(14, 22)), (range(100, 102), range(0), range(102, 103)), (range(200, 206),) * 3


@pytest.fixture(scope="module")
def federation(checkpoints):
    """federation(name, tower, fields): three ragged clients with real digits over a SigLIP in float64."""
    source = datasets.find("digits")

    def make(name, tower, fields):
        backbone = load_backbone(str(checkpoints["siglip"]), tower, dtype=torch.float64)
        dataset = datasets.load(source, backbone.resize)
        images = dataset.images[:300]
        inputs = image_features(backbone, images, lambda done, total: None) if tower == "text" else images
        parts = (ClientData(inputs, dataset.labels, tuple(torch.tensor(list(r)).long() for r in part)) for part in ROWS)
        prompts = encode_prompts(backbone, class_prompts(dataset.class_names, dataset.template))
        training = TrainingConfig(rounds=2, batch_size=4, wave=3, diagnostics=False)
        lanes = [Lane(0, build_method(name, fields))]
        host = Host(lanes, backbone, prompts, FederatedData((0, 1, 2), *parts), training)
        return Federation(lanes, host, training), images

    return make


@pytest.mark.parametrize(
    ("name", "tower", "fields"),
    [
        ("feddlp", "image", {}),
        ("feddlp", "text", {"objective": "in_batch"}),
        ("feddlp", "both", {}),
        ("flora_released", "image", {}),
        ("fedclip", "both", {}),
        ("fedavg", "image", {"lr": 1e-4, "eps": 1e-5}),
    ],
)
def test_rounds_equal_the_slow_twin(name, tower, fields, federation, checkpoints):
    fast, images = federation(name, tower, fields)
    model = SiglipModel.from_pretrained(checkpoints["siglip"], dtype=torch.float64).eval()
    clients, server = twins(fast, model, tower)
    pixels = (images - fast.clients.backbone.pixel_mean) / fast.clients.backbone.pixel_std
    parts = (list(part.indices) for part in (fast.clients.data.train, fast.clients.data.test))
    task = Task(pixels, fast.clients.data.train.labels, fast.clients.prompts.tokens, *parts, fast.training, 0)
    scores = federate(clients, server, task)
    for _ in range(fast.training.rounds):
        (result,) = fast.play_round()
    cohort = everyone(fast)
    for key, theta in cohort.theta.items():
        for number, client in enumerate(clients):
            own = {leaf: value[number].detach() for leaf, value in theta.items()}
            assert_same(own, as_fast(model, client.leaves(key)))
    assert result.test_correct.tolist() == scores
    logits = cohort.method.predict(cohort.forward, next(fast.clients.data.test.in_order(128)))
    expected = torch.stack(
        [predict(client, task.samples(rows)) for client, rows in zip(clients, task.test, strict=True)]
    )
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("kind", "tower"), [("siglip", "image"), ("siglip", "text"), ("siglip", "both"), ("siglip2", "both")]
)
def test_a_whole_run(kind, tower, checkpoints, tmp_path, feddlp):
    words = [f"model.checkpoint={checkpoints[kind]}", f"model.adapt={tower}", "methods=feddlp, zero_shot"]
    small = ["data.partition=few_shot_iid", "data.shots=2", "data.clients=3", "training.rounds=1", "name=small"]
    assert feddlp("run", *words, *small).code == 0
    rounds = [json.loads(line) for line in (tmp_path / "runs" / "small" / "rounds.jsonl").read_text().splitlines()]
    assert {row["method"] for row in rounds} == {"feddlp", "zero_shot"}
