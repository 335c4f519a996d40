"""One page that says what came out of one or several runs: everything inside, nothing loaded, no scripts.

    write_report([RunFolder.open(path)], path / "report.html")

The page is a pure function of the records: the same folders give the same bytes, in whatever order they are named.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import chain
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from feddlp.errors import UserError
from feddlp.files import write_atomically
from feddlp.names import printable
from feddlp.records import RunFolder
from feddlp.report import maps, results
from feddlp.report.blocks import Blocks, joined
from feddlp.report.measures import finding
from feddlp.report.paper_forms import PaperTable
from feddlp.report.paper_page import paper_sections
from feddlp.report.plots import Style
from feddlp.report.series import Setting, group

SECTIONS: Mapping[str, Callable[[Setting, str, results.Styles], Blocks]] = {  # the page says what they are about
    "accuracy": results.accuracy, "costs": results.costs, "curves": results.curves, "spread": results.spread,
    "partition": maps.partition, "ranks": maps.ranks, "losses": results.losses, "diagnostics": results.diagnostics,
    "setup": maps.setup,
}  # fmt: skip


@dataclass(frozen=True)
class Chapter:
    """A setting as the page shows it."""

    id: str
    title: str
    setting: Setting
    facts: tuple[tuple[str, str], ...]
    finding: tuple[str, ...]
    sections: Mapping[str, Blocks]


def write_report(runs: Sequence[RunFolder], target: Path, tables: Sequence[PaperTable] = ()) -> None:
    """Make the page of these runs, and of tables made from them, replacing the file as a whole.

    Raises:
        UserError: no run, a run without a finished round, a damaged record, or a target that cannot be written.
    """
    content = render(runs, tables).encode()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, content)
    except OSError as error:
        raise UserError(f"cannot write the report {target} ({error.strerror}); choose another place") from error


def render(runs: Sequence[RunFolder], tables: Sequence[PaperTable] = ()) -> str:
    """The page as text. Tables in the paper's layout stand first.

    Raises:
        UserError: as write_report.
    """
    if not runs:
        raise UserError("no run to report on; name one or several run folders, such as runs/demo")
    settings = group(runs)
    styles = method_styles(settings)
    chapters = [chapter(setting, f"s{place}", styles) for place, setting in enumerate(settings, 1)]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    source = files("feddlp.report").joinpath("page.html").read_text("utf-8")
    template = environment.from_string(source)
    overview = results.overview(settings) if len(settings) > 1 else None
    paper = paper_sections(tables, styles)
    page = template.render(chapters=chapters, overview=overview, paper=paper, title=page_title(settings))
    return printable(page, keep="\n\t")


def method_styles(settings: Sequence[Setting]) -> dict[str, Style]:
    """A method looks the same in all settings."""
    methods = dict.fromkeys(chain.from_iterable(setting.tracks for setting in settings))
    return {method: Style(place) for place, method in enumerate(methods)}


def chapter(setting: Setting, prefix: str, styles: results.Styles) -> Chapter:
    sections = {name: build(setting, prefix, styles) for name, build in SECTIONS.items()}
    return Chapter(prefix, setting.title or "Results", setting, facts(setting), tuple(finding(setting)), sections)


def page_title(settings: Sequence[Setting]) -> str:
    sets = dict.fromkeys(dataset_name(setting) for setting in settings)
    return f"Federated fine-tuning on {', '.join(sets)}"


def dataset_name(setting: Setting) -> str:
    """digits, or the last part of folder:/some/where/photos; what the sites of a federation brought has no name here"""
    if (setting.partition or {}).get("own_data"):
        return "the sites' own images"
    name = str(setting.option("data.dataset") or "data that were not recorded")
    return Path(name.partition(":")[2]).name or name if name.startswith("folder:") else name


def facts(setting: Setting) -> tuple[tuple[str, str], ...]:
    """The setting at a glance."""
    return (
        ("Data set", dataset_name(setting)),
        ("Clients", clients(setting)),
        ("Partition", partition(setting)),
        ("Frozen model", known(setting.option("model.checkpoint"))),
        ("Adapted tower", known(setting.option("model.adapt"))),
        ("Rounds", known(setting.option("training.rounds") or setting.rounds)),
        ("Seeds", joined(setting.seeds)),
        ("Methods", joined(list(setting.tracks))),
    )


def known(value: Any) -> str:
    return "not recorded" if value in (None, "") else str(value)


def clients(setting: Setting) -> str:
    """How many there are, and how many take part in a round where that is fewer."""
    rows = [track.last for tracks in setting.tracks.values() for track in tracks]
    counts = [row["clients"] for row in rows if row.get("clients")]
    some = [row["participants"] for row in rows if row.get("participants", 0) < row.get("clients", 0)]
    total = known(setting.option("data.clients") or (counts[0] if counts else None))
    return f"{total} ({joined(some)} take part in a round)" if any(some) else total


def partition(setting: Setting) -> str:
    kind = known(setting.option("data.partition"))
    detail = {
        "dirichlet": f", β = {setting.option('data.dirichlet_beta')}",
        "pathological": f", {setting.option('data.classes_per_client')} classes a client",
    }
    return kind + detail.get(kind, "")
