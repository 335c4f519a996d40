"""The sections on who holds what: the partition of the data, the ranks that are left, and how a run was set up."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Mapping, Sequence

from feddlp.report import measures, plots
from feddlp.report.blocks import Blocks, Figure, Listing, Missing, Table, line_figure, scale_legend
from feddlp.report.plots import Style
from feddlp.report.readings import ABSENT
from feddlp.report.series import Run, Setting, Track

Styles = Mapping[str, Style]
MOST = 100  # clients and classes on a map
MOST_SITES = 150
PARTS = ("train", "validation", "test")


def partition(setting: Setting, prefix: str, styles: Styles) -> Blocks:
    """How many images of each class each client holds."""
    found = setting.partition
    if not (found and found.get("clients") and found.get("class_names")):
        return (Missing("The partition is not recorded in these runs."),)
    clients, classes = found["clients"][:MOST], found["class_names"][:MOST]
    newcomers = set(found.get("newcomers") or [])
    names = [f"client {setting.label(k)}" + (" (new)" if k in newcomers else "") for k in range(len(clients))]
    counts = [[*client["train"][:MOST], *[0] * (len(classes) - len(client["train"]))] for client in clients]
    levels = plots.scale(max((value for row in counts for value in row), default=0))
    name = f"{prefix}-partition-map"
    svg = plots.heat_map(counts, names, classes, levels, "class", name)
    head = ("Client", *(f"All {part}" for part in PARTS), *classes)
    data = Table(f"{name}-data", "Images by client and class: training / validation / test", head, [
        [label, *(f"{sum(client[part]):,}" for part in PARTS), *cells(client, len(classes))]
        for label, client in zip(names, clients, strict=True)
    ])  # fmt: skip
    notes = ["Training images by client and class."]
    notes += first_of((found["clients"], MOST, "clients"), (found["class_names"], MOST, "classes"))
    if newcomers:
        notes.append("Clients marked new are held out of the federation and join at its end.")
    figure = Figure(name, " ".join(notes), svg, data, scale_legend(levels, "images"), wide=True)
    return (figure,)


def cells(client: Mapping[str, Sequence[int]], classes: int) -> list[str]:
    """ "12 / 1 / 4" for each class; a dash where the client has none."""
    triples = list(zip(*(client[part] for part in PARTS), strict=True))[:classes]
    return [" / ".join(map(str, triple)) if any(triple) else ABSENT for triple in triples]


def ranks(setting: Setting, prefix: str, styles: Styles) -> Blocks:
    """Which gates are still open, where, and since when."""
    curves = [curve for curve in measures.rank_curves(setting) if curve.points]
    if not curves:
        return (Missing("No method in this setting has gates."),)
    caption, y = "Gates that are not zero, in % of all, mean over clients and layers.", "open gates, %"
    maps = [
        rank_map(setting, tracks, f"{prefix}-ranks-{place}")
        for place, tracks in enumerate(setting.tracks.values())
        if any(track.last.get("gates") for track in tracks)
    ]
    return (line_figure(f"{prefix}-rank-lines", caption, "Open gates in % by round", curves, styles, y), *maps)


def rank_map(setting: Setting, tracks: Sequence[Track], name: str) -> Figure | Missing:
    """The map of one method, of its first seed that has one."""
    track = next((track for track in tracks if (track.run.ranks.get(track.key) or {}).get("active")), None)
    if track is None:
        return Missing(f"{tracks[0].method}: active ranks by layer are not recorded (no ranks.jsonl).")
    row = track.run.ranks[track.key]
    labels = [setting.label(client) for client in row["clients"][:MOST]]
    sites = list(row["active"])[:MOST_SITES]
    counts = [list(row["active"][site][:MOST]) for site in sites]
    totals = row.get("ranks") or {}
    levels = plots.scale(max([*totals.values(), *(value for line in counts for value in line), 1]), geometric=False)
    svg = plots.heat_map(counts, [site_name(site) for site in sites], labels, levels, "client", name)
    rows = [[site, str(totals.get(site, ABSENT)), *map(str, line)] for site, line in zip(sites, counts, strict=True)]
    data = Table(f"{name}-data", "Active ranks by layer and client", ("Layer", "Ranks", *labels), rows)
    text = f"{track.method}: active ranks by layer and client after round {track.last['round']}, seed {track.seed}."
    notes = [text, *first_of((row["active"], MOST_SITES, "layers"), (row["clients"], MOST, "clients"))]
    return Figure(name, " ".join(notes), svg, data, scale_legend(levels, "active"), wide=True)


def first_of(*parts: tuple[Collection[object], int, str]) -> list[str]:
    """What is too many to be shown: things, how many are, and what they are called."""
    return [
        f"Only the first {most} of {len(things)} {what} are shown."
        for things, most, what in parts
        if len(things) > most
    ]


def site_name(site: str) -> str:
    """vision_model.encoder.layers.0.self_attn.q_proj -> image 0 q_proj"""
    tower = "image" if site.startswith("vision") else "text" if site.startswith("text") else ""
    layer = re.search(r"\.layers\.(\d+)\.", site)
    return " ".join(filter(None, [tower, layer[1], site.rpartition(".")[2]])) if layer else site


def setup(setting: Setting, prefix: str, styles: Styles) -> Blocks:
    """Everything that is needed to run it again."""
    commands = "\n".join(f"feddlp run {shlex.quote(f'{run.name}/config.toml')}" for run in setting.runs)
    listings = [Listing("Commands that run this again", commands)]
    listings += [Listing(f"Configuration of {run.name}", run.toml) for run in setting.runs]
    return (environment(setting, prefix), *listings)


def environment(setting: Setting, prefix: str) -> Table | Missing:
    keys = dict.fromkeys(key for run in setting.runs for key in run.environment)
    if not keys:
        return Missing("The environment is not recorded in these runs (no environment.json).")
    rows = [[key.removeprefix("packages."), values(setting.runs, key)] for key in keys]
    head = ("What", "Value")
    return Table(f"{prefix}-environment", "Versions, machine and digests", head, rows, words=True)


def values(runs: Sequence[Run], key: str) -> str:
    """One value where all runs agree, otherwise each value with its runs."""
    owners: dict[str, list[str]] = {}
    for run in runs:
        value = run.environment.get(key, "not recorded")
        owners.setdefault("none" if value is None else str(value), []).append(run.name)
    if len(owners) == 1:
        return next(iter(owners))
    return "; ".join(f"{value} ({', '.join(names)})" for value, names in owners.items())
