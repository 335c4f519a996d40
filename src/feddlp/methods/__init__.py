"""The methods, one file each, found by being in this folder, or in one that FEDDLP_METHODS names.

`registry` imports them, and PyTorch with them; `summaries` only reads their source. A run records where those are that
are not the package's own, so that later commands find them without the variable.
"""

from __future__ import annotations

import ast
import importlib
import os
import pkgutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from hashlib import sha256
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


def own_files(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Of methods that are not the package's: the file of each and its digest."""
    files = {name: Path(str(sys.modules[registry()[name].__module__].__file__)) for name in names}
    own = {name: file for name, file in files.items() if str(file.parent) != __path__[0]}
    return {
        name: {"file": str(file), "sha256": sha256(file.read_bytes()).hexdigest()} for name, file in sorted(own.items())
    }


def find_again(recorded: Mapping[str, Mapping[str, str]]) -> None:
    """Add the folders of methods that a run recorded; those that are known already stay as they are.

    Raises:
        UserError: a file is not there any more, or is not what it was.
    """
    for name, about in recorded.items():
        file = Path(about.get("file", ""))
        if any((Path(folder) / f"{name}.py").is_file() for folder in __path__):
            continue
        way_out = f"put it back, or name the folder of {name}.py in FEDDLP_METHODS"
        if file.name != f"{name}.py" or not file.is_absolute() or not file.is_file():
            raise UserError(f"the method {name} was found in {file}, which is not there any more; {way_out}")
        if sha256(file.read_bytes()).hexdigest() != about.get("sha256"):
            raise UserError(f"the method {name} has changed since the run began: {file}; {way_out}")
        __path__.append(str(file.parent))
        registry.cache_clear()
