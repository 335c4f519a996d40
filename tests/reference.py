"""The slow twin: FedDLP, FLoRA and Local as a tutorial would write them.

One client after the other, plain modules, `torch.optim.AdamW`, both towers run for every batch, prompts padded to the
model's 77 tokens, four forward passes a step, no client axis, no padding, no cache. It shares nothing with the
package but the starting values and the sample orders, both of which are addressed by (seed, client, ...).
Used as the oracle of the fast path.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feddlp.randomness import generator


class LoRALinear(nn.Module):
    """A frozen linear layer with one low-rank path; gated where a gate is given."""

    def __init__(self, base: nn.Linear, leaves: dict[str, Tensor], scaling: float):
        super().__init__()
        self.base, self.scaling = base, scaling
        self.A, self.B = nn.Parameter(leaves["A"].clone()), nn.Parameter(leaves["B"].clone())
        self.gate = nn.Parameter(leaves["gate"].clone()) if "gate" in leaves else None

    def forward(self, x: Tensor) -> Tensor:
        down = F.linear(x, self.A)
        if self.gate is not None:
            down = down * self.gate
        return self.base(x) + self.scaling * F.linear(down, self.B)


class Model:
    """One CLIP with one adapter, pre-processing included."""

    def __init__(self, clip: nn.Module, start: dict[str, Tensor], scaling: float):
        self.clip = copy.deepcopy(clip).requires_grad_(False)
        self.layers: dict[str, LoRALinear] = {}
        for site in dict.fromkeys(name.rpartition(".")[0] for name in start):
            leaves = {
                name.rpartition(".")[2]: value for name, value in start.items() if name.rpartition(".")[0] == site
            }
            layer = LoRALinear(self.clip.get_submodule(site), leaves, scaling)
            parent, _, child = site.rpartition(".")
            setattr(self.clip.get_submodule(parent) if parent else self.clip, child, layer)
            self.layers[site] = layer

    def leaves(self) -> dict[str, Tensor]:
        named = {
            f"{site}.{leaf}": value for site, layer in self.layers.items() for leaf, value in layer.named_parameters()
        }
        return {name: value for name, value in named.items() if ".base." not in name}

    def factors(self) -> list[nn.Parameter]:
        return [value for name, value in self.leaves().items() if not name.endswith(".gate")]

    def gates(self) -> list[nn.Parameter]:
        return [value for name, value in self.leaves().items() if name.endswith(".gate")]

    def logits(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        """Pixels [b, 3, H, W] and full-length token ids [C, 77] -> [b, C]"""
        images = F.normalize(self.clip.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
        texts = F.normalize(self.clip.get_text_features(input_ids=tokens).pooler_output, dim=-1)
        return self.clip.logit_scale.exp() * images @ texts.T


def cross_entropy(logits: Tensor, labels: Tensor, objective: str) -> Tensor:
    if objective == "class_ce":
        return F.cross_entropy(logits, labels)
    pairs = logits[:, labels]
    own = torch.arange(len(labels))
    return (F.cross_entropy(pairs, own) + F.cross_entropy(pairs.T, own)) / 2


def kl(student: Tensor, teacher: Tensor, labels: Tensor, objective: str, temperature: float) -> Tensor:
    def one(s: Tensor, t: Tensor) -> Tensor:
        log_student, soft_teacher = F.log_softmax(s / temperature, -1), F.softmax(t / temperature, -1)
        return F.kl_div(log_student, soft_teacher, reduction="batchmean") * temperature**2

    teacher = teacher.detach()
    if objective == "class_ce":
        return one(student, teacher)
    student, teacher = student[:, labels], teacher[:, labels]
    return (one(student, teacher) + one(student.T, teacher.T)) / 2


@dataclass
class Client:
    """Private state of one client between rounds."""

    models: dict[str, Model]
    optimizers: dict[str, torch.optim.Optimizer] = field(default_factory=dict)

    def make_optimizers(self, lr: float, weight_decay: float) -> None:
        for name, model in self.models.items():
            self.optimizers[name] = torch.optim.AdamW(list(model.leaves().values()), lr=lr, weight_decay=weight_decay)

    def step(self, name: str, loss: Tensor, threshold: float) -> None:
        """Backward, clip A and B, AdamW, then the soft threshold on the gates."""
        model, optimizer = self.models[name], self.optimizers[name]
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.factors(), 1.0)
        optimizer.step()
        with torch.no_grad():
            for gate in model.gates():
                gate.copy_(torch.sign(gate) * torch.relu(gate.abs() - threshold))


def train_feddlp(client: Client, pixels: Tensor, labels: Tensor, tokens: Tensor, method) -> None:
    """One batch, four forward passes: the paper's §V-C and §V-G, line by line."""
    local, glob = client.models["local"], client.models["global"]
    student, teacher = local.logits(pixels, tokens), glob.logits(pixels, tokens)
    loss = cross_entropy(student, labels, method.objective)
    loss = loss + method.kd_weight * kl(student, teacher, labels, method.objective, method.kd_temperature)
    client.step("local", loss, method.gate_threshold)

    student, teacher = glob.logits(pixels, tokens), local.logits(pixels, tokens)
    loss = cross_entropy(student, labels, method.objective)
    loss = loss + kl(student, teacher, labels, method.objective, method.kd_temperature)
    client.step("global", loss, method.gate_threshold)


def train_flora(client: Client, pixels: Tensor, labels: Tensor, tokens: Tensor, method) -> None:
    logits = client.models["adapter"].logits(pixels, tokens)
    client.step("adapter", cross_entropy(logits, labels, method.objective), 0.0)


def order(indices: Tensor, seed: int, client: int, round: int, epoch: int) -> Tensor:
    return indices[torch.randperm(len(indices), generator=generator(seed, "shuffle", client, round, epoch))]


def federate(
    clip: nn.Module,
    starts: list[dict[str, dict[str, Tensor]]],
    server: dict[str, dict[str, Tensor]],
    pixels: Tensor,
    labels: Tensor,
    train: list[Tensor],
    tokens: Tensor,
    method,
    *,
    rounds: int,
    batch_size: int,
    seed: int,
) -> tuple[list[Client], dict[str, dict[str, Tensor]]]:
    """The whole federation, client by client; returns the clients and the server's adapters.

    starts: initial adapters of each client, adapter -> leaf -> value. pixels are normalised, [N, 3, H, W].
    """
    scalings = {name: adapter.lora_alpha / adapter.rank for name, adapter in method.adapters().items()}
    clients = [Client({name: Model(clip, theta, scalings[name]) for name, theta in start.items()}) for start in starts]
    for client in clients:
        client.make_optimizers(method.lr, method.weight_decay)
    train_batch = train_feddlp if "local" in scalings else train_flora
    for round in range(rounds):
        for number, client in enumerate(clients):
            for name, theta in server.items():
                for leaf, value in client.models[name].leaves().items():
                    value.data.copy_(theta[leaf])
            for rows in order(train[number], seed, number, round, 0).split(batch_size):
                train_batch(client, pixels[rows], labels[rows], tokens, method)
        total = sum(len(indices) for indices in train)
        for name, theta in server.items():
            for leaf in theta:
                parts = [
                    len(train[k]) / total * client.models[name].leaves()[leaf].data for k, client in enumerate(clients)
                ]
                theta[leaf] = torch.stack(parts).sum(0)
    return clients, server
