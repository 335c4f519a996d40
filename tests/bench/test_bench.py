"""The command, and the guard against getting slower: ratios with wide margins, never times."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest
import torch

from feddlp import cli
from feddlp.bench import measure as measuring
from feddlp.bench.measure import describe, fitting, matrix_rate, measure
from feddlp.bench.options import BenchOptions, load_options
from feddlp.bench.synthetic import model_config
from feddlp.errors import UserError

SMALL = ["model=tiny-clip", "classes=5", "classes_per_client=2", "seconds=0.5"]
TINY = [*SMALL, "clients=2", "batch_size=2"]


def measured(*words: str) -> dict:
    return measure(load_options([*SMALL, *words]))


@pytest.fixture(scope="module")
def image_tower() -> dict:
    return measured("clients=8", "batch_size=4", "dtype=float32")


def test_the_image_tower_is_faster_than_the_naive_way(image_tower):
    assert image_tower["naive"]["times"] > 1.5


def test_the_text_tower_is_much_faster_than_the_naive_way():
    text = measured("adapt=text", "objective=in_batch", "clients=8", "batch_size=8", "dtype=float32")
    assert text["naive"]["times"] > 5


@pytest.mark.parametrize(
    "adapt", [*(pytest.param(tower, marks=pytest.mark.slow) for tower in ("image", "text")), "both"]
)
def test_a_siglip_is_measured_too(adapt, checkpoints):
    found = measured(f"model={checkpoints['siglip']}", f"adapt={adapt}", "clients=2", "batch_size=2")
    assert found["step"]["flops_per_image"] > 0
    assert (found["naive"] is None) == (adapt == "both")


def test_one_more_client_costs_its_adapters_and_moments(image_tower):
    memory = image_tower["memory"]
    needed = memory["adapter_bytes_per_client"] + memory["moment_bytes_per_client"]
    assert memory["resident_bytes_per_client"] < 1.3 * needed


def test_the_object_for_machines_is_complete(image_tower):
    assert set(image_tower) == {"machine", "options", "rate", "step", "round", "memory", "naive"}
    assert {"name", "packages", "threads", "cpu_count"} <= set(image_tower["machine"])
    assert set(image_tower["rate"]) == {"float32", "bfloat16"}
    step, rate = image_tower["step"], image_tower["rate"]["float32"]["flops_per_second"]
    assert step["flops_per_second"] == pytest.approx(step["flops_per_image"] * step["images_per_second"])
    assert step["share_of_rate"] == pytest.approx(step["flops_per_second"] / rate)
    assert image_tower["round"]["trained_samples"] == 32
    assert 0 < image_tower["round"]["training_share"] < 1
    assert image_tower["memory"]["peak_mib"] > 0
    assert json.loads(json.dumps(image_tower)) == image_tower


def test_it_reads_as_text(image_tower):
    lines = dict(describe(image_tower))
    assert lines["naive twin"].endswith("times slower")
    assert "of the float32 rate" in lines["training"]
    assert "naive twin" not in dict(describe({**image_tower, "naive": None}))


def test_precision_and_number_of_clients_are_those_there_is_time_for():
    found = measured("batch_size=2", "naive=false")
    faster = max(found["rate"], key=lambda name: found["rate"][name]["flops_per_second"])
    assert found["options"]["dtype"] == faster
    assert 1 <= found["options"]["clients"] <= 10
    options = BenchOptions(seconds=80, steps=2)
    assert [fitting(options, step) for step in (0.01, 1.0, 2.5, 60.0)] == [10, 5, 2, 1]


def test_the_rate_is_the_best_of_the_layers_of_the_tower(monkeypatch):
    shapes = []

    def timed(statement, globals, num_threads):
        shapes.append((*globals["x"].shape, len(globals["w"])))
        took = 1e-3 if len(shapes) == 2 else 1.0
        return SimpleNamespace(blocked_autorange=lambda min_run_time: SimpleNamespace(median=took))

    monkeypatch.setattr(measuring, "Timer", timed)
    monkeypatch.setattr(measuring, "ROWS", {"cpu": (8, 64)})
    config = model_config("vit-b-32")
    rate, shape = matrix_rate(BenchOptions(adapt="text", seconds=1e5), config, torch.device("cpu"), torch.float32)
    layers = [(512, 512), (512, 2048), (2048, 512)]
    assert shapes == [(rows, *layer) for rows in (8, 64) for layer in layers]
    assert (rate, shape) == (2 * 8 * 512 * 2048 / 1e-3, (8, 512, 2048))


def test_a_precision_that_is_emulated_is_not_waited_for(monkeypatch):
    """Large products are left out where the small ones say that one takes longer than all are given."""
    calls = []

    def slow(statement, globals, num_threads):
        calls.append(len(globals["x"]))
        return SimpleNamespace(blocked_autorange=lambda min_run_time: SimpleNamespace(median=5.0))

    monkeypatch.setattr(measuring, "Timer", slow)
    matrix_rate(BenchOptions(), model_config("vit-b-32"), torch.device("cpu"), torch.bfloat16)
    assert calls == [512]


def test_the_twin_is_left_out_where_there_is_none():
    assert BenchOptions().has_twin
    assert not BenchOptions(method="flora").has_twin
    assert not BenchOptions(adapt="both").has_twin
    assert measured("method=flora", "clients=2", "batch_size=2")["naive"] is None


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["stps=3"], "did you mean steps"),
        (["steps=none"], "steps=none"),
        (["steps=0"], "steps=0"),
        (["steps"], "'steps' is not an override"),
        (["adapt=vision"], "adapt=vision"),
        (["adapt=both", "naive=true"], "naive=true"),
        (["classes=4"], "classes_per_client=8 is more than classes=4"),
    ],
)
def test_a_wrong_option_is_named(words, part):
    with pytest.raises(UserError, match=part):
        load_options(words)


@pytest.mark.parametrize(
    ("word", "part"),
    [
        ("method=fedlp", "did you mean feddlp"),
        ("method=zero_shot", "method=zero_shot trains nothing"),
        ("model=/no/such/model", "/no/such/model cannot be loaded"),
        ("device=cuda:99", "device=cuda:99 is not available here"),
    ],
)
def test_a_workload_that_is_not_to_be_had_is_named(word, part):
    with pytest.raises(UserError, match=f"^{part}" if word.startswith("device") else part):
        measured(word)


@pytest.fixture
def feddlp(monkeypatch, capsys):
    def command(*words: str) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["feddlp", "bench", *words])
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(cli.signal, "signal", lambda *_: None)
            cli.main()
        return capsys.readouterr()

    return command


def test_the_command_prints_a_line_for_each_finding_or_one_object(feddlp):
    out, err = feddlp(*TINY, "naive=false")
    assert err == ""
    assert [line.split("  ")[0] for line in out.splitlines()][:2] == ["machine", "workload"]
    out, err = feddlp(*TINY, "naive=false", "--json")
    assert err == ""
    assert json.loads(out)["options"]["clients"] == 2


def test_an_interrupt_ends_in_one_line(feddlp, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("feddlp.bench.measure.played", interrupted)
    with pytest.raises(SystemExit) as stop:
        feddlp(*TINY)
    assert stop.value.code == cli.INTERRUPTED
    assert capsys.readouterr() == ("", "feddlp: stopped\n")
