"""Run folders as the report sees them: records read once, grouped into settings, methods and seeds.

A *track* is one method under one seed. A *setting* is everything that was run under one configuration apart from the
seed, so its tracks may be averaged; they may lie in one folder or in many. The order in which folders are named never
matters. Records that older versions did not write, or that a stopped run has not yet written, are simply absent.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from feddlp.errors import UserError
from feddlp.records import RunFolder
from feddlp.report.latest import Key, Row, last_clients, last_ranks

NOT_A_SETTING = {
    "name", "runs_dir", "seed", "methods", "method", "model.device", "rates", "tune", "own_methods"
}  # fmt: skip
"""Names, places, and what is compared."""

LONGEST_TITLE = 8  # options


@dataclass(frozen=True)
class Run:
    """One folder's records; of clients and ranks what is known of every client after each method's last round."""

    name: str
    toml: str
    config: Mapping[str, Any]  # dotted key -> value
    environment: Mapping[str, Any]
    rows: Mapping[Key, tuple[Row, ...]]
    clients: Mapping[Key, tuple[Row, ...]]
    ranks: Mapping[Key, Row]
    newcomers: Mapping[Key, Row]
    partition: Row | None

    @property
    def tables(self) -> dict[str, dict[str, Any]]:
        """Hyper-parameters by method."""
        tables = tomllib.loads(self.toml).get("method", {})
        return {name: table for name, table in tables.items() if isinstance(table, dict)}

    @property
    def rates(self) -> dict[str, Row]:
        """Learning rates and where they come from, by method."""
        return dict(tomllib.loads(self.toml).get("rates", {}))

    @property
    def methods(self) -> list[str]:
        """The methods it was asked for, and any others that it has records of, in this order."""
        asked = self.config.get("methods", "")
        names = [name.strip() for name in asked.split(",")] if isinstance(asked, str) else list(asked)
        return list(dict.fromkeys([*filter(None, names), *(method for method, _ in self.rows)]))

    @property
    def base(self) -> dict[str, Any]:
        """What any run must have in common with this one to be compared with it."""
        return {key: value for key, value in self.config.items() if not NOT_A_SETTING & {key, key.partition(".")[0]}}


@dataclass(frozen=True)
class Track:
    """One method under one seed: its rounds in order, and the folder they come from."""

    method: str
    seed: int
    rows: tuple[Row, ...]
    run: Run

    @property
    def last(self) -> Row:
        return self.rows[-1]

    @property
    def key(self) -> Key:
        return self.method, self.seed


@dataclass(frozen=True)
class Setting:
    """Runs that differ in nothing but the seed."""

    title: str
    runs: tuple[Run, ...]
    tracks: Mapping[str, tuple[Track, ...]]  # method -> by seed
    notes: tuple[str, ...] = field(default=())

    def option(self, key: str) -> Any:
        """A configuration value; None where it was not recorded."""
        return self.runs[0].config.get(key)

    @property
    def seeds(self) -> list[int]:
        return sorted({track.seed for tracks in self.tracks.values() for track in tracks})

    @property
    def rounds(self) -> int:
        """Rounds of the longest track."""
        return max(int(track.last["round"]) for tracks in self.tracks.values() for track in tracks)

    @property
    def partition(self) -> Row | None:
        return next((run.partition for run in self.runs if run.partition), None)

    @property
    def rates(self) -> dict[str, Row]:
        """Learning rates of the methods that have rounds, and where they come from."""
        found = {name: tracks[0].run.rates.get(name) for name, tracks in self.tracks.items()}
        return {name: rate for name, rate in found.items() if rate}

    def label(self, client: int) -> str:
        """A client's number, and its name where it has one."""
        rows = (row for run in self.runs for rows in run.clients.values() for row in rows)
        name = next((row["name"] for row in rows if row["client"] == str(client) and row.get("name")), "")
        return f"{client} ({name})" if name else str(client)


def flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"data": {"clients": 3}} -> {"data.clients": 3}"""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def natural(text: str) -> list[tuple[int, int, str]]:
    """A sort key under which run-10 comes after run-2."""
    parts = re.findall(r"\d+|\D+", text)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def read_config(path: Path) -> tuple[str, dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
        return text, flatten(tomllib.loads(text))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); give a folder such as runs/demo") from error


def by_key(rows: Sequence[Row]) -> dict[Key, tuple[Row, ...]]:
    """Rounds of each method and seed in order; of a round written twice the later one counts."""
    found: dict[Key, dict[int, Row]] = {}
    for row in rows:
        found.setdefault((row["method"], row.get("seed", 0)), {})[row["round"]] = row
    return {key: tuple(rounds[number] for number in sorted(rounds)) for key, rounds in found.items()}


def read_run(folder: RunFolder) -> Run:
    """All records of a folder.

    Raises:
        UserError: no finished round, or a damaged file; it is named.
    """
    toml, config = read_config(folder.config)
    rows = by_key(folder.read_rounds())
    if not rows:
        raise UserError(f"{folder.path} has no finished round to report on; go on with: feddlp resume {folder.path}")
    clients = last_clients(folder.read_clients(), rows)
    return Run(
        name=folder.path.as_posix(),
        toml=toml,
        config=config,
        environment=flatten(folder.read_environment()),
        rows=rows,
        clients=clients,
        ranks=last_ranks(folder.read_ranks(), rows, clients),
        newcomers={(row["method"], row["seed"]): row for row in folder.read_newcomers().values()},
        partition=folder.read_partition(),
    )


def canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def split_runs(runs: Sequence[Run]) -> list[list[Run]]:
    """Lists of runs that may be averaged and compared.

    Where a method occurs under several hyper-parameters, its runs are set apart; runs of the other methods, which
    those hyper-parameters do not touch, stand beside each.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(canonical(run.base), []).append(run)
    return [part for group in groups.values() for part in split_methods(group)]


def split_methods(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs of one base, set apart by the methods whose hyper-parameters differ among them."""
    variants: dict[str, set[str]] = {}
    for run in runs:
        for method, table in run.tables.items():
            variants.setdefault(method, set()).add(canonical(table))
    varied = {method for method, tables in variants.items() if len(tables) > 1}
    parts: dict[str, list[Run]] = {}
    for run in runs:
        tables = {method: table for method, table in run.tables.items() if method in varied}
        parts.setdefault(canonical(tables) if tables else "", []).append(run)
    common = parts.pop("", []) if varied else []
    return [sorted([*common, *part], key=runs.index) for part in parts.values()]


def describe(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each setting's title: the keys that not all settings share, with their values."""
    keys = dict.fromkeys(key for setting in settings for key in setting)
    complete = [
        {key: setting.get(key, "not recorded") for key in keys if applies(key, setting)} for setting in settings
    ]
    differing = [key for key in keys if len({canonical(s[key]) for s in complete if key in s}) > 1]
    return [title({key: setting[key] for key in differing if key in setting}) for setting in complete]


def applies(key: str, setting: Mapping[str, Any]) -> bool:
    """A method's option says nothing of a setting without that method."""
    owner = key.rpartition(".")[0] + "."
    return not owner.startswith("method.") or any(other.startswith(owner) for other in setting)


def title(values: Mapping[str, Any]) -> str:
    """One value per option; an option that several methods share is named once."""
    owners: dict[tuple[str, str], list[str]] = {}
    for key, value in values.items():
        section, _, rest = key.partition(".")
        method, _, option = rest.partition(".")
        owners.setdefault((option or key, str(value)), []).extend([method] if section == "method" and option else [])
    parts = [
        f"{option} = {value}" + (f" ({', '.join(methods)})" if methods else "")
        for (option, value), methods in owners.items()
    ]
    more = [f"and {len(parts) - LONGEST_TITLE} more"] if len(parts) > LONGEST_TITLE else []
    return ", ".join(parts[:LONGEST_TITLE] + more)


def hyper_parameters(runs: Sequence[Run]) -> dict[str, Any]:
    """The configuration that a setting's runs share."""
    tables: dict[str, Any] = {}
    for run in runs:
        tables |= {f"method.{name}.{key}": value for name, table in run.tables.items() for key, value in table.items()}
    return dict(runs[0].base) | tables


def collect(runs: Sequence[Run]) -> tuple[dict[str, tuple[Track, ...]], list[str]]:
    """The tracks of a setting, and what a reader must know of them. Of two with one seed the longer one counts."""
    tracks: dict[Key, Track] = {}
    notes = []
    for run in runs:
        for (method, seed), rows in run.rows.items():
            found, new = tracks.get((method, seed)), Track(method, seed, rows, run)
            tracks[method, seed] = new if found is None or len(rows) > len(found.rows) else found
            if found:
                kept = tracks[method, seed].run.name
                notes.append(f"{method}, seed {seed}, is in {found.run.name} and {run.name}; {kept} is shown.")
    names = dict.fromkeys(name for run in runs for name in run.methods)
    order = sorted(tracks.values(), key=lambda track: track.seed)
    grouped = {name: tuple(track for track in order if track.method == name) for name in names}
    return {name: found for name, found in grouped.items() if found}, notes + unfinished(runs, grouped)


def unfinished(runs: Sequence[Run], tracks: Mapping[str, Sequence[Track]]) -> list[str]:
    """Where numbers are not those of the end, seeds differ between methods, or data do between folders."""
    planned = runs[0].config.get("training.rounds")
    notes = [f"{method} has no finished round in these runs." for method, found in tracks.items() if not found]
    notes += [
        f"{track.method}, seed {track.seed}: {track.last['round']} of {planned} rounds are finished; "
        "its “final” numbers are those of its last finished round."
        for found in tracks.values()
        for track in found
        if isinstance(planned, int) and track.last["round"] < planned and track.last.get("parameters")
    ]
    seeds = {method: {track.seed for track in found} for method, found in tracks.items() if found}
    every = set().union(*seeds.values())
    notes += [
        f"{method} was not run with seed {', '.join(map(str, sorted(every - own)))}."
        for method, own in seeds.items()
        if every - own
    ]
    for part in ("data", "backbone"):
        if len({run.environment[part] for run in runs if part in run.environment}) > 1:
            notes.append(f"The digests of the {part} differ between these runs: they are not strictly comparable.")
    return notes


def group(folders: Sequence[RunFolder]) -> list[Setting]:
    """All settings of these folders.

    Raises:
        UserError: a folder without a finished round, or with a damaged record.
    """
    distinct = {folder.path.resolve(): folder for folder in sorted(folders, key=lambda folder: str(folder.path))}
    runs = sorted((read_run(folder) for folder in distinct.values()), key=lambda run: natural(run.name))
    parts = split_runs(runs)
    titles = describe([hyper_parameters(part) for part in parts])
    settings = []
    for name, part in sorted(zip(titles, parts, strict=True), key=lambda pair: natural(pair[0])):
        tracks, notes = collect(part)
        settings.append(Setting(name, tuple(part), tracks, tuple(notes)))
    return settings
