"""The methods, one file each, found by being in this folder, or in one that FEDDLP_METHODS names."""

from __future__ import annotations

import importlib
import os
import pkgutil
from functools import cache
from inspect import isabstract
from pathlib import Path

from feddlp.methods.base import Method

__path__ += [
    str(Path(folder).absolute()) for folder in os.environ.get("FEDDLP_METHODS", "").split(os.pathsep) if folder
]


@cache
def registry() -> dict[str, type[Method]]:
    """File name -> the method class that the file defines."""
    found = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        for value in vars(module).values():
            defined_here = isinstance(value, type) and value.__module__ == module.__name__
            if defined_here and issubclass(value, Method) and not isabstract(value):
                found[info.name] = value
    return found
