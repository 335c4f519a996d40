"""Where a run has its learning rates and its own methods from, as it writes them into its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from feddlp.errors import UserError
from feddlp.hyperparameters import CHECKED, base_of, source_of
from feddlp.methods import own_files

if TYPE_CHECKING:
    from feddlp.config import Config


class Rate(BaseModel):
    """The learning rate of a method, and how it came about; of what was tried on validation data, the scores in %."""

    model_config = CHECKED
    lr: float
    source: str
    tuned: bool = False  # on validation data of the same images
    edge: bool = False  # it is the smallest or largest that was tried
    grid: list[float] = []
    scores: list[float] = []


def is_open(config: Config, name: str) -> bool:
    """Whether a method's learning rate is still to be chosen."""
    return config.tune and "lr" not in config.method.get(name, {})


def check_tuning(config: Config) -> None:
    """Refuse tune=true where there is nothing to choose, or nothing to choose on."""
    if config.tune and "lr" in config.method:
        raise UserError("tune=true chooses method.lr; leave that out, or give single methods a rate as method.NAME.lr")
    if config.tune and not config.data.validation_share and config.data.splits != "official":
        raise UserError("tune=true needs validation data, and data.validation_share=0 leaves none; raise it")


def learning_rates(config: Config) -> dict[str, Rate]:
    """Of the methods that learn: as recorded, or as the configuration has them."""
    found = {}
    for name, method in config.build_methods().items():
        if method.adapters() and not is_open(config, name):
            told = config.rates.get(name)
            source, tuned = source_of(name, method, config.method, config.setting, config.data.dataset)
            found[name] = told if told and told.lr == method.lr else Rate(lr=method.lr, source=source, tuned=tuned)
    return found


def own_methods(config: Config) -> dict[str, dict[str, str]]:
    """The methods that are not the package's, as they are now: file and digest."""
    return own_files({base_of(name, config.method) for name in config.methods})


def code_of(methods: Mapping[str, Mapping[str, str]]) -> str:
    """What tells the code of these methods from any other; "" where there are none."""
    return " ".join(about.get("sha256", "") for about in methods.values())


def recorded(config: Config) -> dict[str, Any]:
    """The sections that a run adds to its configuration."""
    rates = {name: rate.model_dump() for name, rate in learning_rates(config).items()}
    return {"rates": rates, "own_methods": own_methods(config)}
