"""What the commands print when they are done: lists and tables, made from records and from predictions."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feddlp.completeness import missing_newcomers, missing_rounds
from feddlp.config import read_table
from feddlp.errors import UserError
from feddlp.files import write_atomically
from feddlp.names import csv_text, printable
from feddlp.progress import Console
from feddlp.records import TAKEN, RunFolder
from feddlp.report.paper_forms import PaperTable, Which, text
from feddlp.report.rates import described
from feddlp.report.sweeps import read_result, summarise_choices, sweep_csv, sweep_tables
from feddlp.report.tables import comparison, newcomers_table, summarise

if TYPE_CHECKING:
    from feddlp.export import Exported
    from feddlp.inference import ClassScore, Prediction


def print_list(lines: dict[str, str]) -> None:
    width = max(map(len, lines))
    for name, line in lines.items():
        print(f"{name:<{width}}  {line}")


def print_run(folder: RunFolder, console: Console) -> None:
    """The tables of a run folder, and whether it is finished."""
    rows = folder.read_rounds()
    if not rows and folder.read_environment().get(TAKEN):
        raise UserError(f"{folder.path} holds models that were taken from a node, and no scores; see feddlp export")
    if not rows:
        raise UserError(f"{folder.path} has no finished round yet; start it with: feddlp resume {folder.path}")
    console.print(*comparison(summarise(rows), str(folder.path)), crop=False)
    if rates := read_table(folder.config).get("rates"):
        console.print(f"{described(rates)}.", soft_wrap=True)
    if newcomers := folder.read_newcomers():
        console.print(newcomers_table(newcomers), crop=False)
    if names := names_of_clients(folder):
        console.print(f"Clients: {names}.", soft_wrap=True)
    if lack := unfinished(folder):
        console.print(f"Unfinished {lack}.")
        console.print(f"Go on with: feddlp resume {folder.path}", soft_wrap=True)


def names_of_clients(folder: RunFolder) -> str:
    """The clients that have names, by their numbers."""
    names = {int(row["client"]): row["name"] for row in folder.read_clients() if row.get("name")}
    return ", ".join(f"{client} ({name})" for client, name in sorted(names.items()))


def unfinished(folder: RunFolder) -> str:
    """What a run still lacks; empty when it is finished."""
    if rounds := missing_rounds(folder):
        return f"({rounds} to go), so the final round is the last so far"
    if methods := missing_newcomers(folder):
        return f"(newcomers have yet to join {methods})"
    return ""


def print_finished(folder: RunFolder, console: Console) -> None:
    """The tables of a run that came to its end, and its page."""
    from feddlp.report.page import write_report

    write_report([folder], page_of(folder))
    print_again(folder, console)


def print_again(folder: RunFolder, console: Console) -> None:
    """The same of a run whose page is written already."""
    print_run(folder, console)
    console.print(f"report: {page_of(folder)}", soft_wrap=True)


def page_of(folder: RunFolder) -> Path:
    return folder.path / "report.html"


def print_sweep(path: Path, console: Console) -> None:
    """The tables of a sweep; the same as CSV in its folder."""
    result = read_result(path)
    lines = summarise_choices(path, result.choices)
    console.print(*sweep_tables(path, lines), crop=False)
    if not result.finished:
        console.print("Unfinished: methods are missing; start the sweep again to go on.")
    try:
        write_atomically(path / "results.csv", sweep_csv(lines).encode())
    except OSError as error:
        raise UserError(f"{path / 'results.csv'} cannot be written ({error.strerror}); copy {path}") from error
    console.print(f"as CSV: {path / 'results.csv'}", soft_wrap=True)


def print_paper(tables: list[PaperTable], which: Which | None, csv: Path, page: Path | None, console: Console) -> None:
    """Tables in the paper's layout, and where they are as CSV and as a page."""
    for table in tables:
        console.print(*text(table, which), crop=False)
    console.print(f"as CSV: {csv}", soft_wrap=True)
    if page:
        console.print(f"report: {page}", soft_wrap=True)


def print_exported(exported: Exported) -> None:
    """Where a model is now, and how to use it."""
    about, ranks = exported.manifest, exported.ranks
    form = (
        "a whole checkpoint" if about.merged else f"a PEFT adapter ({sum(ranks.values())} ranks in {len(ranks)} layers)"
    )
    print(f"{exported.folder}: {about.method} of {about.owner} after round {about.round}, {form}")
    if not ranks and not about.merged:
        print("All its ranks are pruned: the adapter is one layer of zeros, and predicts as the base checkpoint does.")
    print(f"use it with: feddlp predict --adapter {exported.folder} IMAGE...")


def predictions(found: Iterable[Prediction], form: str) -> Iterator[str]:
    """Classes and probabilities as they come, as text or CSV (a row for each image and rank); JSON at the end."""
    if form == "json":
        yield json.dumps([prediction_object(one) for one in found], indent=1) + "\n"
    elif form == "csv":
        yield csv_text([("image", "rank", "class", "probability")])
        for one in found:
            yield csv_text((one.image, rank, *named) for rank, named in enumerate(one.classes, 1))
    else:
        for one in found:
            if one.classes:
                yield printable("  ".join((one.image, *(f"{name} {p:.1%}" for name, p in one.classes)))) + "\n"


def prediction_object(one: Prediction) -> dict[str, Any]:
    if one.error:
        return {"image": one.image, "error": one.error}
    return {"image": one.image, "classes": [{"class": name, "probability": p} for name, p in one.classes]}


def scores(found: Sequence[ClassScore], form: str) -> str:
    """Accuracy in all and class by class, in %, as text, CSV or JSON."""
    from feddlp.inference import ClassScore

    total = ClassScore("all", sum(one.images for one in found), sum(one.correct for one in found))
    if form == "json":
        objects = [score_object(one) for one in found]
        return json.dumps({**score_object(total), "classes": objects}, indent=1) + "\n"
    rows = [(printable(one.name), *list(score_object(one).values())[1:]) for one in (*found, total)]
    if form == "csv":
        return csv_text([("class", "images", "correct", "accuracy"), *rows])
    width = max(len(name) for name, *_ in rows)
    return "".join(f"{name:<{width}}  {right:>6} of {count:>6}  {share:6.2f} %\n" for name, count, right, share in rows)


def score_object(one: ClassScore) -> dict[str, Any]:
    share = round(100 * one.correct / one.images, 6) if one.images else 0.0
    return {"class": one.name, "images": one.images, "correct": one.correct, "accuracy": share}
