"""The methods, one file each, found by being in this folder, or in one that FEDDLP_METHODS names.

`registry` imports them, and PyTorch with them; `summaries` only reads their source.
"""

from __future__ import annotations

import ast
import importlib
import os
import pkgutil
from collections.abc import Iterator
from functools import cache
from inspect import isabstract
from pathlib import Path
from typing import TYPE_CHECKING

from feddlp.errors import UserError

if TYPE_CHECKING:
    from feddlp.methods.base import Method

__path__ += [
    str(Path(folder).absolute()) for folder in os.environ.get("FEDDLP_METHODS", "").split(os.pathsep) if folder
]


def method_files() -> dict[str, Path]:
    """Name -> each file that may define a method.

    Raises:
        UserError: FEDDLP_METHODS names something that is not a folder, or a folder with a name that is taken.
    """
    found: dict[str, Path] = {}
    for folder in map(Path, __path__):
        if not folder.is_dir():
            raise UserError(f"FEDDLP_METHODS names {folder}, which is not a folder; correct or unset it")
        for info in pkgutil.iter_modules([str(folder)]):
            if info.name in found:
                raise UserError(f"FEDDLP_METHODS holds a second {info.name}.py; give your method another file name")
            found[info.name] = folder / info.name / "__init__.py" if info.ispkg else folder / f"{info.name}.py"
    return found


@cache
def registry() -> dict[str, type[Method]]:
    """File name -> the method class that the file defines."""
    from feddlp.methods.base import Method

    found: dict[str, type[Method]] = {}
    for name in method_files():
        module = importlib.import_module(f"{__name__}.{name}")
        for value in vars(module).values():
            defined_here = isinstance(value, type) and value.__module__ == module.__name__
            if defined_here and issubclass(value, Method) and not isabstract(value):
                found[name] = value
    return found


def summaries() -> dict[str, str]:
    """File name -> the first line of the docstring of its method class."""
    classes = {name: [*method_classes(ast.parse(file.read_bytes()))] for name, file in method_files().items()}
    return {name: (ast.get_docstring(found[-1]) or "").partition("\n")[0] for name, found in classes.items() if found}


def method_classes(module: ast.Module) -> Iterator[ast.ClassDef]:
    """The classes that build on one of another method's file, or on such a class of the same file."""
    known: set[str] = set()
    for node in module.body:
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith(__name__):
            known |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.ClassDef) and known & {ast.unparse(base).partition(".")[0] for base in node.bases}:
            known.add(node.name)
            yield node
