"""The naive twin: FedDLP as research code trains it, one client at a time. What the fast path is measured against.

All that the fast path leaves out is here: float32, both towers run for every batch, prompts of the full length (one
per sample for `in_batch`, one per class for `class_ce`), four forward passes a step, photographs decoded, resized and
normalised anew in every epoch, `torch.optim.AdamW` on single tensors. A test holds that both give the same losses.

It runs in a process of its own, where memory is managed as PyTorch and the system do by default: the package keeps
freed memory and asks for huge pages, which the code that the twin stands for does not. The processes take turns.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from feddlp.bench.options import BenchOptions
from feddlp.bench.synthetic import LOGIT_SCALE, Workload, decode, image_processor, random_model
from feddlp.methods.feddlp import FedDLP
from feddlp.model.adapters import Theta, sites_of


class NaiveLoRA(nn.Module):
    """x -> scaling B diag(g) A x; g only for the local adapter."""

    def __init__(self, leaves: dict[str, Tensor], lora_alpha: float):
        super().__init__()
        self.leaves, self.scaling = nn.ParameterDict(leaves), lora_alpha / len(leaves["A"])

    def forward(self, x: Tensor) -> Tensor:
        down = F.linear(x, self.leaves["A"])
        if "gate" in self.leaves:
            down = down * self.leaves["gate"]
        return self.scaling * F.linear(down, self.leaves["B"])


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
    ):
        self.clip, self.processor, self.method = clip.eval().requires_grad_(False), processor, method
        self.files, self.labels = files, labels
        text = clip.config.text_config
        full = text.max_position_embeddings - tokens.shape[1]
        self.tokens = F.pad(tokens, (0, full), value=text.eos_token_id)  # (C, all positions)
        self.layers = [self.replace(site, start) for site in sites_of(start["local"])]
        options = {key: v for key, v in method.optimizer_options().items() if key not in ("decay", "max_grad_norm")}
        self.optimizers = {name: torch.optim.AdamW(self.parameters(name), **options) for name in start}

    def replace(self, site: str, start: dict[str, Theta]) -> NaiveLinear:
        """Put a layer with adapters in place of a linear layer."""
        paths = {}
        for name, theta in start.items():
            leaves = {leaf: theta[f"{site}.{leaf}"].clone() for leaf in sites_of(theta)[site]}
            paths[name] = NaiveLoRA(leaves, self.method.lora_alpha)
        layer = NaiveLinear(self.clip.get_submodule(site), paths)
        self.clip.set_submodule(site, layer)
        return layer

    def parameters(self, name: str, leaves: Sequence[str] = ("A", "B", "gate")) -> list[nn.Parameter]:
        """Leaves of one adapter in all layers."""
        named = [item for layer in self.layers for item in layer.paths[name].get_submodule("leaves").named_parameters()]
        return [value for key, value in named if key in leaves]

    def step(self, rows: Tensor) -> dict[str, float]:
        """Train one batch: local learns from global, then global from local, each with a teacher's pass of its own."""
        pixels, labels = self.read(rows), self.labels[rows]
        losses = {}
        for student, teacher in (("local", "global"), ("global", "local")):
            learned = self.logits(student, pixels, labels)
            with torch.no_grad():
                taught = self.logits(teacher, pixels, labels)
            loss = self.loss(student, learned, taught, labels)
            self.optimizers[student].zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(self.parameters(student, ("A", "B")), self.method.max_grad_norm)
            self.optimizers[student].step()
            losses[student] = loss.item()
            with torch.no_grad():
                for gate in self.parameters(student, ("gate",)):
                    gate.copy_(F.softshrink(gate, self.method.gate_threshold))
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
        return LOGIT_SCALE * images @ texts.T

    def loss(self, name: str, learned: Tensor, taught: Tensor, labels: Tensor) -> Tensor:
        weight = self.method.kd_weight if name == "local" else 1.0
        if self.method.objective == "class_ce":
            return F.cross_entropy(learned, labels) + weight * self.kl(learned, taught)
        own = torch.arange(len(labels), device=labels.device)
        ce = (F.cross_entropy(learned, own) + F.cross_entropy(learned.T, own)) / 2
        return ce + weight * (self.kl(learned, taught) + self.kl(learned.T, taught.T)) / 2

    def kl(self, learned: Tensor, taught: Tensor) -> Tensor:
        t = self.method.kd_temperature
        p, q = (taught / t).softmax(-1), (learned / t).log_softmax(-1)
        return t**2 * F.kl_div(q, p, reduction="batchmean")


def make_twin(load: Workload) -> NaiveClient:
    """The first client in the naive way, from the same start."""
    client = load.first_client()
    config, method = load.backbone.model.config, cast("FedDLP", load.method)
    start = {name: {leaf: value[0].detach() for leaf, value in theta.items()} for name, theta in client.theta.items()}
    clip, pool = random_model(config).to(load.device), load.pool
    return NaiveClient(clip, image_processor(config), method, start, load.prompts.tokens, pool.files, pool.labels)


def synchronise(device: torch.device) -> None:
    """Wait until a GPU has finished what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def twin_process(options: BenchOptions) -> Iterator[Callable[[], float] | None]:
    """Start the twin: one step whenever it is called, in seconds for an image; None where there is no twin."""
    if not (options.has_twin if options.naive is None else options.naive):
        yield None
        return
    command = [sys.executable, "-m", "feddlp.bench.naive", options.model_dump_json()]
    plain = {**os.environ, "THP_MEM_ALLOC_ENABLE": "0"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=plain) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        answers, questions = process.stdout, process.stdin

        def step() -> float:
            print(file=questions, flush=True)
            if not (answer := answers.readline()):
                raise RuntimeError("the naive twin's process has ended; its message stands above")
            return float(answer)

        try:
            step()  # until it is ready and warm
            yield step
        finally:
            process.kill()


def main() -> None:
    """Answer every line on stdin with the seconds for an image of one step."""
    options = BenchOptions.model_validate_json(sys.argv[1])
    load = Workload(options, options.build_method())
    twin, rows = make_twin(load), load.data(1).train.indices[0][: options.batch_size]
    for _ in sys.stdin:
        synchronise(load.device)
        started = time.perf_counter()
        twin.step(rows)
        synchronise(load.device)
        print((time.perf_counter() - started) / len(rows), flush=True)


if __name__ == "__main__":
    main()
