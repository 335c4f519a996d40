"""One client: its own CLIP with its adapters, their optimisers, a step, what it receives and what it sends."""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TOWERS = {"image": ("vision_model", "visual_projection"), "text": ("text_model", "text_projection")}


class LowRank(nn.Module):
    """x -> scaling B diag(g) A x; g only where the start has gates."""

    def __init__(self, start: dict[str, Tensor], scaling: float):
        super().__init__()
        self.scaling = scaling
        self.A, self.B = nn.Parameter(start["A"].clone()), nn.Parameter(start["B"].clone())
        self.gate = nn.Parameter(start["gate"].clone()) if "gate" in start else None

    def forward(self, x: Tensor) -> Tensor:
        down = F.linear(x, self.A)
        if self.gate is not None:
            down = down * self.gate
        return self.scaling * F.linear(down, self.B)


class AdaptedLinear(nn.Module):
    """A linear layer of CLIP with a low-rank path for each adapter; `mix` says which act, and with what weight."""

    def __init__(self, base: nn.Linear, mix: dict[str, float]):
        super().__init__()
        self.base, self.mix, self.paths = base, mix, nn.ModuleDict()

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        for name, weight in self.mix.items():
            y = y + weight * self.paths[name](x)
        return y


class FeatureAttention(nn.Module):
    """f -> f * softmax(W2 tanh(W1 f + b1) + b2)"""

    def __init__(self, start: dict[str, Tensor]):
        super().__init__()
        for leaf, value in start.items():
            setattr(self, leaf, nn.Parameter(value.clone()))

    def forward(self, f: Tensor) -> Tensor:
        hidden = torch.tanh(F.linear(f, self.W1, self.b1))
        return f * torch.softmax(F.linear(hidden, self.W2, self.b2), dim=-1)


def rank_of(name: str, method) -> int:
    ranks = {"local": "local_rank", "global": "global_rank", "copy": "global_rank"}
    return method.rank if hasattr(method, "rank") else getattr(method, ranks[name])


class Samples(NamedTuple):
    """A batch, with the prompts of all classes."""

    pixels: Tensor  # [b, 3, H, W], normalised
    labels: Tensor  # [b]
    tokens: Tensor  # [C, L]


class Client:
    """One client: its own CLIP with its adapters, their optimisers, and what it remembers between rounds."""

    def __init__(self, clip: nn.Module, adapt: str, kind: str, method, start: dict[str, dict[str, Tensor]]):
        self.clip = copy.deepcopy(clip).requires_grad_(False)
        self.towers = ("image", "text") if adapt == "both" else (adapt,)
        self.kind, self.method, self.mix = kind, method, {}
        self.layers: dict[str, AdaptedLinear] = {}
        self.attentions: dict[str, FeatureAttention] = {}
        for name, theta in start.items():
            self.add(name, theta)
        self.trained = [name for name in start if name != "copy"]
        for name in self.trained:
            for leaf, value in self.leaves(name).items():
                value.requires_grad_(self.learns(leaf))
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.anchor: dict[str, dict[str, Tensor]] = {}
        self.start_optimizers()

    def add(self, name: str, theta: dict[str, Tensor]) -> None:
        """One adapter: every layer that it should act on, and no other, must have a start."""
        grouped: dict[str, dict[str, Tensor]] = {}
        for key, value in theta.items():
            grouped.setdefault(key.rpartition(".")[0], {})[key.rpartition(".")[2]] = value
        if name == "attention":
            self.attentions = {site.partition(".")[0]: FeatureAttention(start) for site, start in grouped.items()}
        elif name != "weights":
            assert set(grouped) == self.sites(), "not the layers that the method says"
            for site, start in grouped.items():
                self.wrap(site).paths[name] = self.low_rank(name, start)

    def sites(self) -> set[str]:
        """The layers that LoRA adapts: every linear layer of the tower and its projection, or attention's output.

        Not the output of SigLIP's attention head, whose weight is used without a call of the layer.
        """
        tops = [top for tower in self.towers for top in TOWERS[tower]]
        linear = (name for name, module in self.clip.named_modules() if isinstance(module, nn.Linear))
        everything = {*self.layers, *(name for name in linear if not name.endswith("head.attention.out_proj"))}
        inside = {site.removesuffix(".base") for site in everything if site.partition(".")[0] in tops}
        return {site for site in inside if self.method.layers == "all" or site.endswith("self_attn.out_proj")}

    def wrap(self, site: str) -> AdaptedLinear:
        if site not in self.layers:
            self.layers[site] = AdaptedLinear(self.clip.get_submodule(site), self.mix)
            parent, _, child = site.rpartition(".")
            setattr(self.clip.get_submodule(parent) if parent else self.clip, child, self.layers[site])
        return self.layers[site]

    def low_rank(self, name: str, start: dict[str, Tensor]) -> LowRank:
        rank = rank_of(name, self.method)
        assert len(start["A"]) == rank, "not the rank that the method says"
        divisor = math.sqrt(rank) if self.method.lora_scaling == "rslora" else rank
        return LowRank(start, self.method.lora_alpha / divisor)

    def leaves(self, name: str) -> dict[str, nn.Parameter]:
        """The numbers of one adapter, by "layer.leaf"; those of CLIP itself for full fine-tuning."""
        if name == "weights":
            tops = [top for tower in self.towers for top in TOWERS[tower]]
            return {key: value for key, value in self.clip.named_parameters() if key.partition(".")[0] in tops}
        found = {f"{tower}.features": module for tower, module in self.attentions.items()}
        found |= {site: layer.paths[name] for site, layer in self.layers.items()}
        return {f"{site}.{leaf}": value for site, part in found.items() for leaf, value in part.named_parameters()}

    def learns(self, leaf: str) -> bool:
        return not (leaf.endswith(".A") and getattr(self.method, "factors_trained", "AB") == "B")

    def travels(self, leaf: str) -> bool:
        """Of a shared adapter."""
        return self.learns(leaf) and not (leaf.endswith(".B") and getattr(self.method, "factors_sent", "AB") == "A")

    def start_optimizers(self) -> None:
        m = self.method
        for name in self.trained:
            learning = [value for value in self.leaves(name).values() if value.requires_grad]
            adam = torch.optim.AdamW if m.decay == "decoupled" else torch.optim.Adam
            self.optimizers[name] = adam(
                learning, lr=m.lr, betas=(m.beta1, m.beta2), eps=m.eps, weight_decay=m.weight_decay
            )

    def logits(self, batch: Samples, mix: dict[str, float]) -> Tensor:
        """What the frozen model and the adapters in `mix` say. [b, C]"""
        self.mix.clear()
        self.mix.update(mix if self.layers else {})
        features = {
            "image": self.clip.get_image_features(pixel_values=batch.pixels).pooler_output,
            "text": self.clip.get_text_features(input_ids=batch.tokens).pooler_output,
        }
        for tower, attention in self.attentions.items():
            features[tower] = attention(features[tower])
        images, texts = (F.normalize(features[tower], dim=-1) for tower in ("image", "text"))
        return self.clip.logit_scale.exp() * images @ texts.T + getattr(self.clip, "logit_bias", 0)

    def step(self, name: str, loss: Tensor, round: int) -> None:
        """FedProx's term, backward, clip everything but the gates, Adam, prune the gates."""
        leaves, optimizer = self.leaves(name), self.optimizers[name]
        for leaf, received in self.anchor.get(name, {}).items() if self.method.proximal else ():
            loss = loss + self.method.proximal / 2 * ((leaves[leaf] - received) ** 2).sum()
        optimizer.zero_grad()
        loss.backward()
        if self.method.max_grad_norm > 0:
            clipped = [value for leaf, value in leaves.items() if not leaf.endswith(".gate")]
            nn.utils.clip_grad_norm_(clipped, self.method.max_grad_norm)
        optimizer.step()
        for leaf, value in leaves.items():
            if leaf.endswith(".gate"):
                kept = [pruned(gate, self.threshold(round), self.method.prox) for gate in value.tolist()]
                value.data = torch.tensor(kept, dtype=value.dtype)

    def threshold(self, round: int) -> float:
        """xi in this round, counted from 0."""
        m = self.method
        xi = m.gate_threshold * (m.lr if m.threshold_scale == "lr" else 1)
        done = min(round / m.gate_schedule_rounds, 1)
        return xi * {"constant": 1, "rise": done, "fall": 1 - done}[m.gate_schedule]

    def receive(self, server: dict[str, dict[str, Tensor]]) -> None:
        """A round begins: take over what travels, keep a frozen copy of it and an anchor, where the method has them."""
        for name, theta in server.items():
            leaves = self.leaves(name)
            alive = {leaf: leaves[gate_of(leaf)] != 0 if gate_of(leaf) in leaves else None for leaf in leaves}
            for leaf, value in theta.items():
                leaves[leaf].data = mixed(leaf, value, leaves[leaf].data, alive[leaf])
            self.anchor[name] = {leaf: leaves[leaf].detach().clone() for leaf in theta}
        if self.kind in ("feddat", "combined"):
            for leaf, value in self.leaves("copy").items():
                value.data = self.leaves("global")[leaf].detach().clone()
        if self.method.reset_optimizer:
            self.start_optimizers()

    def upload(self, name: str) -> dict[str, Tensor]:
        """What leaves the client: of a pruned rank only zeros."""
        leaves = self.leaves(name)
        sent = {}
        for leaf, value in leaves.items():
            if self.travels(leaf):
                gate = leaves.get(gate_of(leaf))
                zeros = torch.zeros_like(value)
                sent[leaf] = mixed(leaf, value.detach().clone(), zeros, None if gate is None else gate != 0)
        return sent

    def cut_dead_ranks(self) -> None:
        """Ranks whose gate is 0 are gone for good, and Adam's memory of them."""
        for name in self.trained:
            optimizer = self.optimizers[name]
            for path in (layer.paths[name] for layer in self.layers.values()):
                alive = path.gate != 0 if path.gate is not None else slice(None)
                for leaf in ("A", "B", "gate") if path.gate is not None else ():
                    old, cut = getattr(path, leaf), (slice(None), alive) if leaf == "B" else alive
                    new = nn.Parameter(old.data[cut])
                    setattr(path, leaf, new)
                    memory = optimizer.state.pop(old, {})
                    optimizer.state[new] = {key: v if key == "step" else v[cut] for key, v in memory.items()}
                    params = optimizer.param_groups[0]["params"]
                    params[next(i for i, value in enumerate(params) if value is old)] = new


def gate_of(leaf: str) -> str:
    return leaf.rpartition(".")[0] + ".gate"


def mixed(leaf: str, live: Tensor, dead: Tensor, alive: Tensor | None) -> Tensor:
    """One leaf of a LoRA, its living ranks from `live` and the others from `dead`; all of `live` without gates."""
    if alive is None:
        return live.clone()
    whole = dead.clone()
    for rank in range(len(alive)):
        if alive[rank]:
            place = (slice(None), rank) if leaf.endswith(".B") else rank
            whole[place] = live[place]
    return whole


def pruned(gate: float, xi: float, prox: str) -> float:
    """The proximal operators, for one gate."""
    if prox == "hard":
        return gate if abs(gate) > xi else 0.0
    if prox == "soft":
        return math.copysign(max(abs(gate) - xi, 0.0), gate)
    if abs(gate) > xi:  # the public code: shrink, then drop what is still small
        gate -= math.copysign(xi, gate)
    return 0.0 if abs(gate) < xi else gate
