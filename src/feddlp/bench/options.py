"""What `feddlp bench` measures; checked at the door as a configuration is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from feddlp.config import apply_override
from feddlp.errors import UserError
from feddlp.hyperparameters import CHECKED, build_method, explain
from feddlp.methods.base import Method
from feddlp.model import Adapt
from feddlp.training.losses import Objective

MOST_CLIENTS = 10


class BenchOptions(BaseModel):
    """The workload, and how long the answer may take."""

    model_config = CHECKED

    model: str = Field(
        "vit-b-32", description="vit-b-32, vit-b-16, tiny-clip, the folder of a CLIP or SigLIP, or a hub name"
    )
    method: str = Field("feddlp", description="a method or a variant, see feddlp methods")
    objective: Objective = Field("class_ce", description="class_ce, in_batch or in_batch_positives")
    adapt: Adapt = Field("image", description="the tower that carries the adapters: image, text or both")
    clients: int = Field(0, ge=0, description=f"clients; 0 = as many of {MOST_CLIENTS} as there is time for")
    batch_size: int = Field(32, ge=1, description="samples of each client in a step")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of the frozen weights and activations; auto = the one in which this machine is faster"
    )
    classes: int = Field(37, ge=2, description="classes, each with a prompt of up to 12 tokens")
    classes_per_client: int = Field(8, ge=1, description="classes that each client holds")
    steps: int = Field(1, ge=1, description="training steps of a round")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, ...")
    seconds: float = Field(100.0, gt=0, description="how long the answer may take, about")
    naive: bool | None = Field(None, description="measure the naive twin too; auto = where there is one")

    def build_method(self) -> Method:
        """Build the method under its defaults.

        Raises:
            UserError: an unknown method, or one that trains nothing.
        """
        method = build_method(self.method, {"objective": self.objective})
        if not method.adapters():
            raise UserError(f"method={self.method} trains nothing, so there is no step to measure; use method=feddlp")
        return method

    @property
    def has_twin(self) -> bool:
        """Whether the naive twin can run this workload."""
        return self.method == "feddlp" and self.adapt != "both" and self.objective != "in_batch_positives"


def load_options(words: Sequence[str]) -> BenchOptions:
    """Check `key=value` words.

    Raises:
        UserError: one line that names the first wrong key.
    """
    table: dict[str, Any] = {}
    for word in words:
        apply_override(table, word)
    try:
        options = BenchOptions(**table)
    except ValidationError as error:
        raise UserError(explain(error, "", {"": BenchOptions.model_fields})) from error
    if options.naive and not options.has_twin:
        raise UserError(
            "naive=true: the naive twin knows method=feddlp with adapt=image or text and objective=class_ce or "
            "in_batch; change these, or leave naive out"
        )
    if options.classes_per_client > options.classes:
        raise UserError(
            f"classes_per_client={options.classes_per_client} is more than classes={options.classes}; lower it"
        )
    return options
