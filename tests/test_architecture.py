"""The house rules, read from the source: who may import whom, and how a file looks."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import feddlp
from feddlp.methods import registry
from feddlp.methods.base import Method

ROOT = Path(feddlp.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
NAMES = [str(path.relative_to(ROOT)) for path in FILES]
LONGEST = 350
HEAVY = {"torch", "transformers", "safetensors.torch", "sklearn", "flwr"}
LIGHT = (  # what commands that only read, or pass settings on, begin with
    *("cli", "completeness", "config", "data.check", "data.datasets", "hyperparameters", "printing", "records"),
    *("report.page", "report.sweeps", "federation.flower.keys", "federation.flower.inventory"),
    *("federation.flower.machines", "federation.flower.processes", "federation.flower.statefolder"),
)
FORBIDDEN = {"torchvision", "pandas", "seaborn", "pickle", "cPickle", "dill", "joblib", "cloudpickle"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def within(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


@cache
def imports(module: str) -> frozenset[str]:
    """Every module that a module names in an import, wherever in the file, `from package import module` resolved."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    return frozenset(name for node in ast.walk(tree) for name in named_in(node))


def named_in(node: ast.AST) -> Iterator[str]:
    """The modules that one import names."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "a relative import"
        for alias in node.names:
            whole = f"{node.module}.{alias.name}"
            yield whole if whole in MODULES else str(node.module)


def loaded(module: str) -> set[str]:
    """Every module that is loaded with a module: what it imports outside of functions, but for annotations alone."""
    seen, waiting = set(), {module}
    while waiting:
        seen |= waiting
        trees = [ast.parse(MODULES[one].read_text(encoding="utf-8")) for one in waiting if one in MODULES]
        named = {name for tree in trees for statement in tree.body for name in named_in(statement)}
        waiting = {".".join(parts[: n + 1]) for name in named for parts in [name.split(".")] for n in range(len(parts))}
        waiting -= seen
    return seen


def own(module: str) -> set[str]:
    """What a module imports from feddlp itself."""
    return {name for name in imports(module) if within(name, "feddlp")}


def reached(module: str) -> set[str]:
    """All modules of feddlp that come along with a module."""
    seen, waiting = set(), {module}
    while waiting:
        seen |= waiting
        waiting = {name for one in waiting if one in MODULES for name in own(one)} - seen
    return seen


def modules_in(*packages: str) -> list[str]:
    return [module for module in MODULES if within(module, *packages)]


def test_the_source_is_found():
    assert {"feddlp.cli", "feddlp.methods.base", "feddlp.data.batches", "feddlp.federation.rounds"} <= set(MODULES)
    assert "feddlp.data.batches" in own("feddlp.methods.base")
    assert "feddlp.federation.aggregation" in own("feddlp.methods.base")


@pytest.mark.parametrize("module", modules_in("feddlp.methods"))
def test_methods_import_losses_adapters_batches_and_their_base(module):
    adapters = ["feddlp.model.adapters", "feddlp.model.gates"]
    allowed = ["feddlp.training.losses", *adapters, "feddlp.data.batches", "feddlp.methods"]
    if module == "feddlp.methods":
        allowed.append("feddlp.errors")
    if module == "feddlp.methods.base":
        allowed.append("feddlp.federation.aggregation")
    assert [name for name in own(module) if not within(name, *allowed)] == []


@pytest.mark.parametrize("module", modules_in("feddlp.model", "feddlp.training.losses", "feddlp.data"))
def test_model_losses_and_data_know_nothing_of_federation(module):
    assert [name for name in loaded(module) if within(name, "feddlp.federation")] == []


@pytest.mark.parametrize("module", modules_in("feddlp.report"))
def test_reports_are_made_from_records_and_costs_alone(module):
    allowed = (
        "feddlp.records",
        "feddlp.record_types",
        "feddlp.states",
        "feddlp.errors",
        "feddlp.files",
        "feddlp.names",
        "feddlp.report",
    )
    assert [name for name in own(module) if not within(name, *allowed)] == []


@pytest.mark.parametrize("module", LIGHT)
def test_what_only_reads_loads_nothing_heavy(module):
    assert {"torch", "feddlp.errors"} <= loaded("feddlp.methods.flora")
    assert loaded(f"feddlp.{module}") & HEAVY == set()


def test_only_one_folder_knows_flower():
    users = [module for module in MODULES if any(within(name, "flwr") for name in imports(module))]
    assert [module for module in users if not within(module, "feddlp.federation.flower")] == []


@pytest.mark.parametrize("module", MODULES)
def test_some_libraries_stay_out(module):
    assert [name for name in imports(module) if name.partition(".")[0] in FORBIDDEN] == []


@pytest.mark.parametrize("name", NAMES)
def test_every_file_says_what_it_is_and_stays_short(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)), "no module docstring"
    assert len(text.splitlines()) < LONGEST


def method_classes() -> list[type[Method]]:
    return [Method, *registry().values()]


@pytest.mark.parametrize("method", method_classes())
def test_every_method_describes_itself(method):
    text = method.__dict__.get("__doc__")
    assert text, "no docstring"
    assert not text.startswith(f"{method.__name__}("), "the docstring that dataclass makes"
    assert text.splitlines()[0].endswith(".")


def test_every_file_of_the_folder_is_a_method_under_its_name():
    files = {path.stem for path in (ROOT / "methods").glob("*.py")} - {"__init__", "base"}
    assert set(registry()) == files
    for name, method in registry().items():
        assert Path(inspect.getfile(method)).stem == name
