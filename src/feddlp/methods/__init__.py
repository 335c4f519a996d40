"""The methods, one file each, found by being in this folder, or in one that FEDDLP_METHODS names."""

from __future__ import annotations

import importlib
import os
import pkgutil
from functools import cache
from inspect import isabstract
from pathlib import Path

from feddlp.errors import UserError
from feddlp.methods.base import Method

__path__ += [
    str(Path(folder).absolute()) for folder in os.environ.get("FEDDLP_METHODS", "").split(os.pathsep) if folder
]


@cache
def registry() -> dict[str, type[Method]]:
    """File name -> the method class that the file defines."""
    for folder in __path__:
        if not Path(folder).is_dir():
            raise UserError(f"FEDDLP_METHODS names {folder}, which is not a folder; correct or unset it")
    found: dict[str, type[Method]] = {}
    for info in pkgutil.iter_modules(__path__):
        if info.name in found:
            raise UserError(f"FEDDLP_METHODS holds a second {info.name}.py; give your method another file name")
        module = importlib.import_module(f"{__name__}.{info.name}")
        for value in vars(module).values():
            defined_here = isinstance(value, type) and value.__module__ == module.__name__
            if defined_here and issubclass(value, Method) and not isabstract(value):
                found[info.name] = value
    return found
