"""The naive twin: FedDLP as a research code trains it, one client at a time. What the fast path is measured against.

All that the fast path leaves out is here: fp32, both towers run for every batch, prompts of the full length (one
per sample for `in_batch`, one per class for `class_ce`), four forward passes a step, photographs decoded, resized and
normalised anew in every epoch, `torch.optim.AdamW` on single tensors. A test holds that both give the same losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from feddlp.bench.synthetic import decode
from feddlp.methods.feddlp import FedDLP
from feddlp.model.adapters import Theta, sites_of


class NaiveLoRA(nn.Module):
    """x -> scaling B diag(g) A x; g only for the local adapter."""

    def __init__(self, leaves: dict[str, Tensor], lora_alpha: float):
        super().__init__()
        self.A, self.B = nn.Parameter(leaves["A"].clone()), nn.Parameter(leaves["B"].clone())
        self.gate = nn.Parameter(leaves["gate"].clone()) if "gate" in leaves else None
        self.scaling = lora_alpha / len(self.A)

    def forward(self, x: Tensor) -> Tensor:
        down = F.linear(x, self.A)
        if self.gate is not None:
            down = down * self.gate
        return self.scaling * F.linear(down, self.B)


class NaiveLinear(nn.Module):
    """A linear layer with both adapters; `active` says which one acts."""

    def __init__(self, base: nn.Linear, paths: dict[str, NaiveLoRA]):
        super().__init__()
        self.base, self.paths, self.active = base, nn.ModuleDict(paths), ""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x) + self.paths[self.active](x)
        return y


class NaiveClient:
    """One client of FedDLP.

    Args:
        clip: its own copy of the model; the layers of the adapted tower are replaced.
        processor: the checkpoint's image processor.
        start: its adapters, no K axis.
        tokens: class prompts, padded to any length. [C, L]
        files, labels: photographs as files, and their classes.
    """

    def __init__(
        self,
        clip: PreTrainedModel,
        processor: Any,
        method: FedDLP,
        start: dict[str, Theta],
        tokens: Tensor,
        files: Sequence[bytes],
        labels: Tensor,
        logit_scale: float,
    ):
        self.clip, self.processor, self.method = clip.eval().requires_grad_(False), processor, method
        self.files, self.labels, self.logit_scale = files, labels, logit_scale
        text = clip.config.text_config
        full = text.max_position_embeddings - tokens.shape[1]
        self.tokens = F.pad(tokens, (0, full), value=text.eos_token_id)  # (C, all positions)
        self.layers = [self.replace(site, start) for site in sites_of(start["local"])]
        self.optimizers = {
            name: torch.optim.AdamW(
                self.parameters(name),
                lr=method.lr,
                betas=(method.beta1, method.beta2),
                eps=method.eps,
                weight_decay=method.weight_decay,
            )
            for name in start
        }

    def replace(self, site: str, start: dict[str, Theta]) -> NaiveLinear:
        """Put a layer with adapters in place of a linear layer."""
        paths = {}
        for name, theta in start.items():
            leaves = {leaf: theta[f"{site}.{leaf}"] for leaf in sites_of(theta)[site]}
            paths[name] = NaiveLoRA(leaves, self.method.lora_alpha)
        layer = NaiveLinear(self.clip.get_submodule(site), paths)
        self.clip.set_submodule(site, layer)
        return layer

    def parameters(self, name: str, leaf: str = "") -> list[nn.Parameter]:
        """Of one adapter: all, or one leaf of each layer."""
        named = [item for layer in self.layers for item in layer.paths[name].named_parameters()]
        return [value for key, value in named if leaf in ("", key)]

    def epoch(self, order: Tensor, batch_size: int) -> dict[str, float]:
        """One pass over the samples in `order`; the mean loss of each adapter."""
        totals = {"local": 0.0, "global": 0.0}
        for rows in torch.split(order, batch_size):
            for name, loss in self.step(rows).items():
                totals[name] += loss * len(rows) / len(order)
        return totals

    def step(self, rows: Tensor) -> dict[str, float]:
        """One batch: local learns from global, then global from local, each with a teacher's pass of its own."""
        pixels, labels = self.read(rows), self.labels[rows]
        losses = {}
        for student, teacher in (("local", "global"), ("global", "local")):
            learned = self.logits(student, pixels, labels)
            with torch.no_grad():
                taught = self.logits(teacher, pixels, labels)
            loss = self.loss(student, learned, taught, labels)
            self.optimizers[student].zero_grad()
            torch.autograd.backward(loss)
            self.clip_gradients(student)
            self.optimizers[student].step()
            losses[student] = loss.item()
            if student == "local":
                self.prune()
        return losses

    def read(self, rows: Tensor) -> Tensor:
        """Decode, resize, crop and normalise. [b, 3, H, W]"""
        images = [decode(self.files[row]) for row in rows.tolist()]
        pixels = self.processor(images, return_tensors="pt")["pixel_values"]
        return torch.as_tensor(pixels).to(self.clip.device, self.clip.dtype)

    def logits(self, adapter: str, pixels: Tensor, labels: Tensor) -> Tensor:
        """Images against the prompts of all classes [b, C], or against the captions of the batch [b, b]."""
        for layer in self.layers:
            layer.active = adapter
        tokens = self.tokens if self.method.objective == "class_ce" else self.tokens[labels]
        images = F.normalize(self.clip.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
        texts = F.normalize(self.clip.get_text_features(input_ids=tokens).pooler_output, dim=-1)
        return self.logit_scale * images @ texts.T

    def loss(self, name: str, learned: Tensor, taught: Tensor, labels: Tensor) -> Tensor:
        weight = self.method.kd_weight if name == "local" else 1.0
        if self.method.objective == "class_ce":
            return F.cross_entropy(learned, labels) + weight * self.kl(learned, taught)
        targets = torch.arange(len(labels), device=labels.device)
        ce = (F.cross_entropy(learned, targets) + F.cross_entropy(learned.T, targets)) / 2
        return ce + weight * (self.kl(learned, taught) + self.kl(learned.T, taught.T)) / 2

    def kl(self, learned: Tensor, taught: Tensor) -> Tensor:
        t = self.method.kd_temperature
        p, q = (taught / t).softmax(-1), (learned / t).log_softmax(-1)
        return t**2 * F.kl_div(q, p, reduction="batchmean")

    def clip_gradients(self, name: str) -> None:
        """Gates stay out of the norm."""
        clipped = [*self.parameters(name, "A"), *self.parameters(name, "B")]
        nn.utils.clip_grad_norm_(clipped, self.method.max_grad_norm)

    @torch.no_grad()
    def prune(self) -> None:
        """Soft threshold of the gates."""
        for gate in self.parameters("local", "gate"):
            gate.copy_(F.softshrink(gate, self.method.gate_threshold))
