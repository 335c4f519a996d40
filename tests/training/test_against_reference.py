"""The fast path against the slow twin, over several rounds: every method, both towers, every switch.

In float64: Adam turns a gradient that is zero but for rounding into a full step of random sign, so in float32 two
correct programs drift apart in single entries. What float32 adds is bounded in test_cohort.py.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from transformers import CLIPModel

from feddlp.federation.rounds import Federation, RoundResult
from feddlp.hyperparameters import build_method, variants
from feddlp.methods import registry
from feddlp.methods.combined import Combined
from feddlp.methods.fedclip import FedCLIP
from feddlp.methods.feddat import FedDAT
from feddlp.methods.flora import FLoRA
from feddlp.methods.local import Local
from feddlp.model.gates import gates
from feddlp.model.hub import EMBEDDED
from feddlp.training.cohort import Cohort
from holdings import everyone
from reference.client import Client
from reference.comparison import as_fast, assert_same, twins
from reference.federation import SHARED, Server, Task, federate
from reference.training import predict

LESS = {"batch_size": 8}  # 2, 1 and 1 steps
SHORT = {**LESS, "rounds": 2}
PADDED = {**LESS, "full_length": True}  # prompts padded to the model's 77 tokens in the twin
SOME = {"participation": 0.67, "report_rate": 0.6}
FLICKER = {"lr": 0.02, "gate_threshold": 0.015}  # gates that reach 0 and come back
VARIANTS = {  # what the papers say of them
    "combined_published": Combined(local_rank=2, kd_weight=1.0),
    "fedclip_original": FedCLIP(
        attention_init="default",
        objective="in_batch",
        beta2=0.98,
        eps=1e-6,
        weight_decay=0.2,
        decay="l2",
        max_grad_norm=0.0,
        averaging="uniform",
        reset_optimizer=True,
    ),
    "feddat_original": FedDAT(
        adapter_share=0.5,
        loss_share=0.5,
        update_order="simultaneous",
        kd_temperature=3.0,
        averaging="uniform",
        reset_optimizer=True,
    ),
    "flora_released": FLoRA(
        objective="in_batch",
        layers="attention_out",
        lora_alpha=64.0,
        beta2=0.98,
        eps=1e-6,
        weight_decay=0.2,
        decay="l2",
        max_grad_norm=0.0,
    ),
    "local_rank4": Local(rank=4),
}
METHODS = [  # three rounds each
    ("zero_shot", "image", {}, {"rounds": 1}),
    ("local", "image", {"objective": "in_batch"}, {}),
    ("local_rank4", "text", {}, LESS),
    ("sora_local", "image", FLICKER, LESS),
    ("flora", "image", {}, LESS),
    ("flora", "text", {"objective": "in_batch"}, PADDED),
    ("flora", "both", {"objective": "in_batch_positives"}, {"batch_size": 16}),
    ("flora_released", "text", {}, LESS),
    ("fedclip", "image", {}, {}),
    ("fedclip", "both", {"attention_init": "default"}, LESS),
    ("fedclip", "text", {"attention_init": "neutral"}, LESS),
    ("fedclip_original", "image", {}, LESS),
    ("fedavg", "image", {"lr": 1e-4}, LESS),
    ("feddat", "image", {}, LESS),
    ("feddat_original", "text", {}, LESS),
    ("feddlp", "image", {}, {}),
    ("feddlp", "text", {"objective": "in_batch", "lora_init": "authors", "lr": 1e-4}, LESS),
    ("feddlp", "both", {"gate_threshold": 0.02, "weight_decay": 0.1}, LESS),
    ("feddlp_shared", "image", FLICKER, LESS),
    ("combined", "image", {"kd_weight": 0.5, "inference": "ensemble"}, {"batch_size": 16}),
    ("combined_published", "text", {"gate_threshold": 0.05}, LESS),
]
SWITCHES = [  # two rounds, the first and one that depends on it; three where some sit out
    ("feddlp", "image", {"update_order": "global_first", "prox": "sora_code", "gate_threshold": 0.1}, SHORT),
    (
        "feddlp",
        "text",
        {"update_order": "simultaneous", "prox": "hard", "gate_threshold": 0.3, "inference": "global"},
        SHORT,
    ),
    ("combined", "text", {"threshold_scale": "lr", "gate_threshold": 50.0, "update_order": "simultaneous"}, SHORT),
    (
        "feddlp",
        "text",
        {"gate_threshold": 0.2, "gate_schedule": "rise", "gate_schedule_rounds": 2, "inference": "ensemble"},
        SHORT,
    ),
    (
        "feddlp",
        "text",
        {"gate_threshold": 0.2, "gate_schedule": "fall", "gate_schedule_rounds": 2, "lora_scaling": "rslora"},
        SHORT,
    ),
    (
        "feddlp",
        "text",
        {"objective": "in_batch_positives", "kd_direction": "student_teacher", "reset_optimizer": True},
        {"batch_size": 16, "rounds": 2},
    ),
    ("feddlp", "text", {"inference": "combined", "proximal": 10.0, "max_grad_norm": 0.5, "gate_init": "ones"}, SHORT),
    ("feddlp_shared", "text", {**FLICKER, "proximal": 1.0, "averaging": "uniform"}, {**LESS, **SOME}),
    ("feddat", "text", {"factors_sent": "A", "proximal": 10.0, "kd_direction": "student_teacher"}, SHORT),
    ("feddat", "text", {"factors_trained": "B", "reset_optimizer": True}, {**LESS, **SOME}),
    ("flora", "text", {"factors_trained": "B", "server_momentum": 0.9}, {**LESS, "local_epochs": 2}),
    ("flora", "image", {"factors_sent": "A"}, SOME),  # A moves from the second step on, as B starts at 0
    # a larger eps, or FedProx and Adam blow up what rounding does to biases of keys, whose gradient is 0
    ("fedavg", "text", {"lr": 1e-4, "proximal": 10.0, "server_momentum": 0.5, "eps": 1e-5}, {**LESS, **SOME}),
]
PRODUCTS = [  # where factors differ in shape or in sign, and what they multiply to does not
    ("feddlp", "image", {**FLICKER, "compact": True}, LESS),
    ("sora_local", "text", {"rank": 4, "gate_threshold": 0.3, "compact": True, "weight_decay": 0.1}, {**LESS, **SOME}),
    ("flora", "text", {"average_of": "products", "reset_optimizer": True}, LESS),
]


class Played(NamedTuple):
    """One federation, played by the fast path and by the twin."""

    fast: Federation
    cohort: Cohort  # its clients at the end
    result: RoundResult  # of the last round
    clients: list[Client]
    server: Server
    scores: list[int]
    task: Task

    def of_client(self, key, number):
        return {leaf: value[number].detach() for leaf, value in self.cohort.theta[key].items()}


@pytest.fixture(scope="module")
def plain_clip():
    """The checkpoint's own model, without any hook of ours."""
    return CLIPModel.from_pretrained(EMBEDDED["tiny-clip"], dtype=torch.float64).eval()


@pytest.fixture
def both_played(plain_clip, make_federation, backbones, prompts, digits):
    def play(name, tower, fields, training):
        method = build_method(name, fields)
        tokens = full_length(backbones[tower], prompts) if training.get("full_length") else prompts.tokens
        protocol = {key: value for key, value in training.items() if key != "full_length"}
        fast = make_federation(method, tower, exact=True, diagnostics=False, **protocol)
        clients, server = twins(fast, plain_clip, tower)
        pixels = (digits.images - backbones["image"].pixel_mean) / backbones["image"].pixel_std
        parts = (list(part.indices) for part in (fast.clients.data.train, fast.clients.data.test))
        task = Task(pixels, digits.labels, tokens, *parts, fast.training, 0)
        scores = federate(clients, server, task)
        for _ in range(fast.training.rounds):
            (result,) = fast.play_round()
        return Played(fast, everyone(fast), result, clients, server, scores, task)

    return play


def full_length(backbone, prompts):
    """The prompts padded to 77 tokens, as public implementations encode them."""
    padding = torch.full((len(prompts.tokens), 77 - prompts.tokens.shape[1]), backbone.tokenizer.pad_token_id)
    return torch.cat([prompts.tokens, padding], dim=1)


def products(theta):
    """B diag(g) A of every layer, for one client or the server."""
    found = {}
    for site in (leaf.removesuffix(".A") for leaf in theta if leaf.endswith(".A")):
        gate = theta.get(f"{site}.gate", torch.ones(()))
        found[site] = theta[f"{site}.B"].detach() * gate.detach() @ theta[f"{site}.A"].detach()
    return found


def twin_gates(played):
    """The gates of each client of the twin, by "adapter/layer"."""
    leaves = [
        {f"{key}/{leaf}": v for key in client.trained for leaf, v in client.leaves(key).items()}
        for client in played.clients
    ]
    names = [name for name in leaves[0] if name.endswith(".gate")]
    return {name.removesuffix(".gate"): [theta[name].detach() for theta in leaves] for name in names}


def widths(cohort):
    """The ranks that are left in the stack, by adapter and site."""
    return {
        f"{name}/{gate.removesuffix('.gate')}": value.shape[1]
        for name, theta in cohort.theta.items()
        for gate, value in gates(theta).items()
    }


def widest(played):
    return {layer: max(len(gate) for gate in gates) for layer, gates in twin_gates(played).items()}


def assert_same_records(played):
    """Living ranks, what each client got right when it last took part, and the logits that it would give now."""
    living = {layer: [int((gate != 0).sum()) for gate in gates] for layer, gates in twin_gates(played).items()}
    assert {layer: active.tolist() for layer, active in played.result.active.items()} == living
    assert played.result.test_correct.tolist() == played.scores
    cohort, test = played.cohort, played.fast.clients.data.test
    logits = cohort.method.predict(cohort.forward, next(test.in_order(128)))
    for k, rows in enumerate(test.indices):
        expected = predict(played.clients[k], played.task.samples(rows))
        torch.testing.assert_close(logits[k, : len(rows)], expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize(("name", "tower", "fields", "training"), METHODS + SWITCHES, ids=str)
def test_rounds_equal_the_slow_twin(name, tower, fields, training, both_played, plain_clip):
    played = both_played(name, tower, fields, training)
    for key in played.cohort.theta:
        for number, client in enumerate(played.clients):
            assert_same(played.of_client(key, number), as_fast(plain_clip, client.leaves(key)))
    shared = played.fast.servers[0].shared
    assert shared.keys() == played.server.theta.keys()
    for key in shared:
        assert_same(shared[key], as_fast(plain_clip, played.server.theta[key]))
    assert_same_records(played)


@pytest.mark.parametrize(("name", "tower", "fields", "training"), PRODUCTS, ids=str)
def test_what_factors_multiply_to_equals_the_slow_twin(name, tower, fields, training, both_played):
    played = both_played(name, tower, fields, training)
    for key in played.cohort.theta:
        for number, client in enumerate(played.clients):
            assert_same(products(played.of_client(key, number)), products(client.leaves(key)))
    for key, theta in played.fast.servers[0].shared.items():
        assert_same(products(theta), products(played.server.theta[key]))
    assert_same_records(played)
    if fields.get("compact"):
        played.cohort.compact()
        assert widths(played.cohort) == widest(played), "cut to the client with the most ranks"
        assert min(len(gate) for gates in twin_gates(played).values() for gate in gates) < max(widest(played).values())


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_are_what_the_papers_say(name):
    assert variants().keys() == VARIANTS.keys()
    assert build_method(name, {}) == VARIANTS[name]


def test_every_method_has_a_twin():
    played = {case[0] for case in METHODS}
    assert registry().keys() | VARIANTS.keys() == played
    assert registry().keys() == SHARED.keys()
