"""Where the time of a real round goes, seen from outside: the parts of the engine are wrapped while a context is open.

    training      Cohort.fit
      data          the next batch
      forward       the method's losses, teachers' passes included
      backward      autograd
      optimiser     AdamW
    evaluation    Cohort.correct
    aggregation   the method's, and the server's step

The engine itself knows nothing of clocks.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch.utils.flop_counter import FlopCounterMode

from feddlp.data.batches import Batch
from feddlp.federation.aggregation import ProductMean, Server, WeightedMean
from feddlp.methods.base import Method
from feddlp.training.cohort import Cohort
from feddlp.training.optim import AdamW

TRAINING = ("data", "forward", "backward", "optimiser")


def synchronise(device: torch.device) -> None:
    """Wait until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Timers:
    """Seconds by section, and what passed through the training loop.

    Args:
        parts: also look inside of the training. On a GPU that costs a wait at each part, so that throughput is
            measured without.
        counter: counts the operations of the training.
    """

    def __init__(self, device: torch.device, parts: bool = True, counter: FlopCounterMode | None = None):
        self.device, self.parts, self.counter = device, parts, counter
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.counted, self.places, self.flops = torch.zeros((), device=device), 0, 0
        self.open = [""]

    @property
    def samples(self) -> int:
        """Trained on, padding left out."""
        return int(self.counted)

    @contextmanager
    def section(self, name: str, within: str) -> Iterator[None]:
        """Time what happens inside, where `within` is the section around it; a part of another one is not split."""
        if self.open[-1] != within or (within == "training" and not self.parts):
            yield
            return
        synchronise(self.device)
        self.open.append(name)
        started = time.perf_counter()
        try:
            yield
            synchronise(self.device)
        finally:
            self.seconds[name] += time.perf_counter() - started
            self.open.pop()

    def wrap(self, name: str, function: Callable[..., Any], within: str = "round") -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.section(name, within):
                return function(*args, **kwargs)

        return timed

    def each(self, name: str, items: Iterable[Any]) -> Iterator[Any]:
        """Time how long each item of a training loop takes to come."""
        iterator = iter(items)
        while True:
            with self.section(name, "training"):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def watched(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in self.each("data", batches):
            self.counted += batch.mask.sum()
            self.places += batch.mask.numel()
            yield batch

    def fit(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def fit(cohort: Cohort, batches: Iterable[Batch], *args: Any, **kwargs: Any) -> Any:
            with self.section("training", "round"), self.counter or nullcontext():
                result = original(cohort, self.watched(batches), *args, **kwargs)
            self.flops += self.counter.get_total_flops() if self.counter else 0
            return result

        return fit

    @contextmanager
    def watching(self, kind: type[Method]) -> Iterator[None]:
        """While open, the engine's parts are timed."""

        def losses(original: Callable[..., Any]) -> Callable[..., Any]:
            return lambda *args: self.each("forward", original(*args))

        wrapped = [
            (Cohort, "fit", self.fit(Cohort.fit)),
            (kind, "losses", losses(kind.losses)),
            (torch.autograd, "grad", self.wrap("backward", torch.autograd.grad, "training")),
            (torch.Tensor, "backward", self.wrap("backward", torch.Tensor.backward, "training")),
            (AdamW, "step", self.wrap("optimiser", AdamW.step, "training")),
            (Cohort, "correct", self.wrap("evaluation", Cohort.correct)),
            *[
                (average, part, self.wrap("aggregation", getattr(average, part)))
                for average in (WeightedMean, ProductMean)
                for part in ("add", "result")
            ],
            (Server, "step", self.wrap("aggregation", Server.step)),
        ]
        with ExitStack() as stack:
            for owner, name, wrapper in wrapped:
                stack.enter_context(patch.object(owner, name, wrapper))
            with self.section("round", ""):
                yield

    def split(self) -> dict[str, float]:
        """Seconds of a round by part; they add up to the whole."""
        seconds = {name: self.seconds[name] for name in (*TRAINING, "evaluation", "aggregation")}
        inside = sum(self.seconds[name] for name in TRAINING)
        around = sum(self.seconds[name] for name in ("training", "evaluation", "aggregation"))
        return seconds | {
            "other training": self.seconds["training"] - inside,
            "other": self.seconds["round"] - around,
        }
