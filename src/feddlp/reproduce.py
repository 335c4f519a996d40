"""The paper's tables on any data and model: what has to be run is run (or found finished), then set beside the paper.

Runs lie in runs_dir/reproduce/<data>-<model>/ and are shared by all tables, so that table3 after table1 costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args

from feddlp.config import Table, apply_override
from feddlp.config_values import absolute_checkpoint
from feddlp.data.paper_sets import PAPER_SETS
from feddlp.errors import UserError, nearest
from feddlp.experiment import Reporter
from feddlp.files import write_atomically
from feddlp.model.checkpoint import load_config
from feddlp.model.hub import EMBEDDED
from feddlp.records import RunFolder
from feddlp.report.latest import Row
from feddlp.report.page import write_report
from feddlp.report.paper import TABLES, build, needs
from feddlp.report.paper_forms import PaperTable, Which, csv_text
from feddlp.report.paper_notes import deviations
from feddlp.report.paper_numbers import Key, Results
from feddlp.sweep import run_sweep
from feddlp.sweepfile import Sweep, check_sweep, put, slug

EMBEDDED_ROUNDS = 12
FIXED = {
    "data.dataset": "--data",
    "data.known_as": "--data",
    "model.checkpoint": "--model",
    "seed": "--seeds",
    "model.adapt": "the table",
    "data.dirichlet_beta": "the table",
    "data.partition_seed": "the paper",
    "methods": "the table",
    "name": "--data with --model",
}
"""Overrides that would contradict what a table says of itself, and what decides them."""
READINGS = get_args(Which)


class Played(NamedTuple):
    """A run that has a finished round."""

    folder: RunFolder
    rounds: Sequence[Row]


class Request(NamedTuple):
    """What the command line asks for."""

    tables: tuple[str, ...]
    data: tuple[str, ...] = ("digits",)
    model: str = "tiny-clip"
    seeds: tuple[int, ...] = (0, 1, 42)
    target: float | None = None
    overrides: tuple[str, ...] = ()


class Result(NamedTuple):
    """The tables, where they were written, and which runs failed."""

    tables: list[PaperTable]
    folders: list[Path]
    csv: Path
    page: Path | None  # None: no run has a finished round
    failed: dict[str, str]


def check_tables(names: Sequence[str]) -> tuple[str, ...]:
    """The tables that are asked for; "all" stands for every one."""
    for name in names:
        if name not in (*TABLES, "all"):
            raise UserError(f"reproduce: {name!r} is not a table; {nearest(name, (*TABLES, 'all'))}")
    if not names:
        raise UserError(f"reproduce: name a table: {', '.join(TABLES)}, or all")
    return tuple(TABLES) if "all" in names else tuple(dict.fromkeys(names))


def check_which(name: str) -> Which | None:
    """The reading of an accuracy that a table shows; None for all of them."""
    if name not in (*READINGS, "all"):
        raise UserError(f"--which {name} is not known; {nearest(name, (*READINGS, 'all'))}")
    return None if name == "all" else cast("Which", name)


def check_target(target: float | None) -> None:
    if target is not None and not 0 < target <= 100:
        raise UserError(f"--target {target:g} is not an accuracy in %; give a number above 0, at most 100")


def check_overrides(overrides: Sequence[str]) -> None:
    """Refuse what the layout of the tables decides."""
    for override in overrides:
        key = override.partition("=")[0].strip()
        if key in FIXED:
            raise UserError(f"{override}: {FIXED[key]} decides that for reproduce; leave it out")


def split_data(text: str) -> tuple[str, str]:
    """ "digits" -> ("digits", "digits"); "pets:PATH" -> ("pets", "pets:PATH"); "pets=csv:x" -> ("pets", "csv:x")"""
    label, equals, source = text.partition("=")
    if (kind := text.partition(":")[0]) in PAPER_SETS:
        return kind, text
    if equals and label not in PAPER_SETS:
        raise UserError(f"--data {text}: {label!r} is not one of the paper's data sets; {nearest(label, PAPER_SETS)}")
    return (label, source) if equals else (text, text)


def plan(request: Request, table: str, data: str) -> Sweep:
    """The sweep behind one table on one data set."""
    check_overrides(request.overrides)
    label, source = split_data(data)
    config: Table = {}
    if request.model in EMBEDDED:
        put(config, "training.rounds", EMBEDDED_ROUNDS)
    put(config, "data.dataset", source)
    put(config, "data.known_as", label if label in PAPER_SETS else "")
    put(config, "model.checkpoint", absolute_checkpoint(request.model))
    for override in request.overrides:
        apply_override(config, override)
    runs_dir = str(config.pop("runs_dir", "runs"))
    wanted = needs(table)
    return check_sweep(
        {
            "name": slug({"data": label, "model": request.model}),
            "runs_dir": str(Path(runs_dir) / "reproduce"),
            "methods": list(dict.fromkeys(need.method for need in wanted)),
            "seeds": list(request.seeds),
            "config": config,
            "vary": {
                "model.adapt": list(dict.fromkeys(need.tower for need in wanted)),
                "data.dirichlet_beta": list(dict.fromkeys(need.beta for need in wanted)),
            },
        }
    )


def is_papers_model(checkpoint: str) -> bool:
    """Whether it is a CLIP ViT-B/32, with which the paper's numbers were made."""
    config = load_config(checkpoint)
    vision = config.vision_config
    shape = (vision.patch_size, vision.hidden_size, vision.num_hidden_layers)
    return (config.model_type, *shape) == ("clip", 32, 768, 12)


def collect(sweep: Sweep, label: str, choices: Sequence[Mapping[str, Any]]) -> dict[Key, list[Played]]:
    """A sweep's runs that have a finished round, under the key that the tables ask for."""
    found = {}
    for choice in choices:
        setting = choice["setting"]
        key = Key(choice["method"], setting["model.adapt"], label, setting["data.dirichlet_beta"])
        folders = [RunFolder.open(sweep.folder / run) for run in choice["runs"]]
        found[key] = [Played(folder, rounds) for folder in folders if (rounds := folder.read_rounds())]
    return found


def make(request: Request, table: str, found: Results, runs: Sequence[RunFolder]) -> PaperTable:
    """A table; the paper's numbers stand in it where its model was used, and its partition in every run."""
    papers = is_papers_model(request.model)
    differing = deviations(runs) if papers and any(key.dataset in PAPER_SETS for key in found) else ()
    return build(table, found, comparable=papers and not differing, target=request.target, deviations=differing)


def places(request: Request, folders: Sequence[Path]) -> tuple[Path, Path]:
    """The CSV and the page: in the sweep's own folder, or beside the sweeps of several data sets, named by them."""
    tables = "-".join(check_tables(request.tables))
    if len(folders) == 1:
        return folders[0] / f"{tables}.csv", folders[0] / "report.html"
    labels = "-".join(dict.fromkeys(split_data(data)[0] for data in request.data))
    name = f"{slug({'data': labels, 'model': request.model})}_{tables}"
    return folders[0].parent / f"{name}.csv", folders[0].parent / f"{name}.html"


def reproduce(request: Request, reporter: Reporter) -> Result:
    """Run what the tables need and is not finished, and make them; also as CSV and as a page beside the runs."""
    tables: list[PaperTable] = []
    folders: dict[Path, None] = {}
    runs: dict[Path, RunFolder] = {}
    failed: dict[str, str] = {}
    for table in check_tables(request.tables):
        played: dict[Key, list[Played]] = {}
        for data in request.data:
            sweep = plan(request, table, data)
            result = run_sweep(sweep, reporter, keep=True)
            played |= collect(sweep, split_data(data)[0], result["choices"])
            folders[sweep.folder] = None
            failed |= result["failed"]
        used = {run.folder.path: run.folder for found in played.values() for run in found}
        rounds = {key: [run.rounds for run in found] for key, found in played.items()}
        tables.append(make(request, table, rounds, list(used.values())))
        runs |= used
    csv, page = places(request, list(folders))
    write_atomically(csv, csv_text(tables).encode())
    if runs:
        write_report(list(runs.values()), page, tables)
    return Result(tables, list(folders), csv, page if runs else None, failed)
