"""feddlp: federated fine-tuning of vision-language models with dual adapters and selective pruning.

    run = feddlp.run(feddlp.load_config(None, ["training.rounds=2"]))
    run.client(3).predict(["photo.jpg"])

See `feddlp.api`; it is loaded when one of its names is first used, so that `import feddlp` costs nothing.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# OpenMP threads that spin at their barriers starve each other as soon as anything else wants a core: measured, a round
# is then 10 to 20 times slower. Sleeping costs next to nothing. It must be said before torch loads OpenMP.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Large tensors on huge pages, where Linux has them: a new tensor of 48 MiB costs 24 page faults in place of 12,000.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

__version__ = "0.1.0"

if TYPE_CHECKING:
    from feddlp.api import Config, Predictor, Run, UserError, load_config, load_predictor, load_run, run

__all__ = ["Config", "Predictor", "Run", "UserError", "load_config", "load_predictor", "load_run", "run"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'feddlp' has no attribute {name!r}")
    return getattr(import_module("feddlp.api"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
