"""The machine's matrix rate: the best of its shapes, and of a sane size."""

from __future__ import annotations

import torch

from feddlp.bench import rates
from feddlp.bench.rates import layer_shapes, matrix_rate
from feddlp.bench.synthetic import model_config


def test_the_shapes_are_those_of_the_model():
    config = model_config("vit-b-32")
    assert layer_shapes(config, "image") == [(768, 768), (768, 3072), (3072, 768)]
    assert layer_shapes(config, "text") == [(512, 512), (512, 2048), (2048, 512)]


def test_the_rate_is_measured_on_one_of_the_shapes(monkeypatch):
    monkeypatch.setattr(rates, "ROWS", {"cpu": (8, 64)})
    layers = [(32, 64), (64, 32)]
    for dtype in (torch.float32, torch.bfloat16):
        rate = matrix_rate(layers, dtype, torch.device("cpu"), seconds=0.005)
        assert 1e7 < rate.flops < 1e16
        assert rate.shape in {(rows, *layer) for rows in (8, 64) for layer in layers}


def test_the_rate_is_the_best_one(monkeypatch):
    monkeypatch.setattr(rates, "rate_of", lambda shape, *_: float(shape[0] + shape[2]))
    assert matrix_rate([(1, 10), (1, 30), (1, 20)], torch.float32, torch.device("cpu")) == (8222, (8192, 1, 30))
