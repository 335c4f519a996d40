"""Learning rates in words: which method has which, where they come from, and what that means for a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Rates = Mapping[str, Mapping[str, Any]]  # by method, as config.toml has them


def described(rates: Rates) -> str:
    """ "Learning rates: local 0.001, feddlp 0.003 (where they come from); ..." """
    groups: dict[str, list[str]] = {}
    for name, rate in rates.items():
        edge = ", the edge of what was tried" if rate.get("edge") else ""
        groups.setdefault(rate["source"], []).append(f"{name} {rate['lr']:g}{edge}")
    return "Learning rates: " + "; ".join(f"{', '.join(names)} ({source})" for source, names in groups.items())


def caveat(rates: Rates) -> str:
    """Say what stands against a comparison at these rates; nothing does where all were tuned within their grid."""
    if all(rate.get("tuned") for rate in rates.values()):
        edges = [name for name, rate in rates.items() if rate.get("edge")]
        return f"the best rate tried for {', '.join(edges)} is the smallest or largest of the grid" if edges else ""
    listed = ", ".join(f"{name} {rate['lr']:g}" for name, rate in rates.items())
    if len(rates) == 1:
        return f"its learning rate was not tuned on this data ({listed})"
    what = "rates differ by method and" if len({rate["lr"] for rate in rates.values()}) > 1 else "rates are equal and"
    return f"{what} were not tuned on this data ({listed}); tune=true chooses them on validation data"
