"""Class prompts: one sentence per class, encoded once per class and never per sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from feddlp.errors import UserError


@dataclass(frozen=True)
class Prompts:
    """The class prompts of a data set, tokenised and encoded once by the frozen text tower."""

    tokens: Tensor  # [C, L]
    features: Tensor  # [C, D]
    training: Prompts | None = None  # other prompts of the same classes, to learn from


def class_prompts(class_names: Sequence[str], template: str) -> list[str]:
    """Fill the template, for example "a photo of a {}.", with every class name.

    Raises:
        UserError: where the template has no single {} to fill.
    """
    if template.count("{}") != 1 or template.replace("{}", "").count("{") or template.replace("{}", "").count("}"):
        raise UserError(
            f"data.template={template!r} needs exactly one {{}} for the class name, as 'a photo of a {{}}.'"
        )
    return [template.format(name) for name in class_names]
