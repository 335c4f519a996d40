"""Numbers of a setting: mean and spread over seeds, curves over rounds, and the finding in words.

Over seeds the spread is the sample standard deviation (ddof 1); within a seed, over clients, it is the population's
(ddof 0), as recorded. What a record does not hold is None, and is left out of every mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from feddlp.files import MIB
from feddlp.report.latest import Row
from feddlp.report.rates import caveat
from feddlp.report.readings import Measure, accuracy, measure, picked, shown
from feddlp.report.series import Setting, Track


@dataclass(frozen=True)
class Curve:
    """Points of one line: at each x a mean over the seeds that have it, or None."""

    label: str
    method: str
    x: tuple[float, ...]
    y: tuple[Measure | None, ...]
    dash: int = 0  # which of a method's lines
    level: bool = False  # one value for the whole plot, drawn as a horizontal line

    @property
    def points(self) -> list[tuple[float, Measure]]:
        return [(x, y) for x, y in zip(self.x, self.y, strict=True) if y is not None]


def final_accuracy(tracks: Sequence[Track]) -> Measure | None:
    return measure(accuracy(track.last, "test") for track in tracks)


def chosen_accuracy(tracks: Sequence[Track]) -> Measure | None:
    return measure(accuracy(picked(track.rows).validation_chosen, "test") for track in tracks)


def sent_mib(rows: Sequence[Row]) -> float | None:
    """MiB that one client receives and sends in these rounds."""
    if any(row.get("bytes_up") is None or row.get("bytes_down") is None for row in rows):
        return None
    return math.fsum(row["bytes_up"] + row["bytes_down"] for row in rows) / MIB


def untrained(tracks: Sequence[Track]) -> bool:
    """A method of one round that trains nothing, such as zero-shot: a level and not a curve."""
    return all(len(track.rows) == 1 and not track.last.get("parameters") for track in tracks)


def curve(tracks: Sequence[Track], label: str, value: Callable[[Row], float | None], dash: int = 0) -> Curve:
    """A value of each round against the round."""
    rounds = sorted({row["round"] for track in tracks for row in track.rows})
    at = [{row["round"]: value(row) for row in track.rows} for track in tracks]
    means = tuple(measure(values.get(number) for values in at) for number in rounds)
    return Curve(label, tracks[0].method, tuple(map(float, rounds)), means, dash)


def accuracy_curves(setting: Setting) -> list[Curve]:
    """Pooled test accuracy by round, a curve a method."""
    curves = []
    for method, tracks in setting.tracks.items():
        found = curve(tracks, method, lambda row: accuracy(row, "test"))
        curves.append(replace(found, level=untrained(tracks) and setting.rounds > 1))
    return curves


def traffic_curves(setting: Setting) -> list[Curve]:
    """Pooled test accuracy against MiB sent so far; methods that send nothing have one point, at zero."""
    curves = []
    for found, tracks in zip(accuracy_curves(setting), setting.tracks.values(), strict=True):
        if all(sent_mib(track.rows) is None for track in tracks):
            continue
        spent = [traffic(tracks, number) for number in found.x]
        silent = not any(spent)
        x, y = ((0.0,), (final_accuracy(tracks),)) if silent else (tuple(spent), found.y)
        curves.append(replace(found, x=x, y=y, level=silent))
    return curves


def traffic(tracks: Sequence[Track], last: float) -> float:
    """MiB a client has received and sent up to a round, mean over the seeds that have come so far."""
    reached = [[row for row in track.rows if row["round"] <= last] for track in tracks if track.last["round"] >= last]
    mean = measure(sent_mib(rows) for rows in reached)
    return mean.mean if mean else 0.0


def keys_of(tracks: Sequence[Track], part: str) -> list[str]:
    """The names that a part of the rows holds, such as the adapters with a training loss."""
    return list(dict.fromkeys(key for track in tracks for row in track.rows for key in row.get(part) or {}))


def loss_curves(setting: Setting) -> list[Curve]:
    """Training loss by round, a curve a method and adapter."""
    return [
        curve(tracks, f"{method}: {key}", lambda row, key=key: (row.get("train_loss") or {}).get(key), dash)  # type: ignore[misc]
        for method, tracks in setting.tracks.items()
        for dash, key in enumerate(keys_of(tracks, "train_loss"))
    ]


def rank_curves(setting: Setting) -> list[Curve]:
    """Share of gates that are open, in %, of the methods that have any."""
    return [
        curve(tracks, method, open_gates)
        for method, tracks in setting.tracks.items()
        if any(track.last.get("gates") for track in tracks)
    ]


def open_gates(row: Row) -> float | None:
    active, gates = row.get("active_ranks"), row.get("gates")
    return None if active is None or not gates else 100 * float(active) / gates


def client_accuracies(tracks: Sequence[Track]) -> dict[int, Measure]:
    """Test accuracy of every client that has test samples, after each seed's last round, mean over seeds."""
    found: dict[int, list[float]] = {}
    for track in tracks:
        for row in track.run.clients.get(track.key, ()):
            if percent := row.get("test_accuracy"):  # a cell of text
                found.setdefault(int(row["client"]), []).append(float(percent))
    return {client: value for client in sorted(found) if (value := measure(found[client]))}


def finding(setting: Setting) -> list[str]:
    """What came out, in sentences that follow from the records alone and favour nobody."""
    finals = {method: found for method, tracks in setting.tracks.items() if (found := final_accuracy(tracks))}
    if not finals:
        return ["No client had test samples, so there is no accuracy to compare."]
    order = sorted(finals, key=lambda method: -finals[method].mean)
    first, top = order[0], finals[order[0]]
    if len(order) == 1:
        return with_caveat([f"{first} ends at {phrase(top)}.", "No other method was run in this setting."], setting)
    equal = [method for method in order if math.isclose(finals[method].mean, top.mean, abs_tol=1e-9)]
    if len(equal) > 1:
        lead = [f"{' and '.join(equal)} share the highest final accuracy: {phrase(top)}; none of them is ahead."]
    else:
        lead = [f"{first} has the highest final accuracy: {phrase(top)}.", comparison(finals, order)]
    return [*with_caveat(lead, setting), *by_validation(setting, first)]


def with_caveat(lead: Sequence[str], setting: Setting) -> list[str]:
    """The first sentence with what stands against it: rates that were not tuned on this data."""
    against = caveat(setting.rates)
    return [f"{lead[0].removesuffix('.')}; {against}.", *lead[1:]] if against else list(lead)


def phrase(value: Measure) -> str:
    seeds = "one seed" if value.count == 1 else f"mean ± standard deviation over {value.count} seeds"
    return f"{shown(value)} % ({seeds})"


def comparison(finals: Mapping[str, Measure], order: Sequence[str]) -> str:
    """By how much the first is ahead, and of whom by no more than the seeds scatter."""
    a, b = finals[order[0]], finals[order[1]]
    text = f"{order[1]} follows with {shown(b)} %, {a.mean - b.mean:.2f} percentage points behind"
    if a.std is None or b.std is None:
        return f"{text}; with one seed for a method, nothing here says how much of that is chance."
    larger = f"over the seeds (the larger of the two methods' is {max(a.std, b.std):.2f})"
    if not near(a, b):
        return f"{text}, more than one standard deviation {larger}, though that alone is no test of significance."
    others = [method for method in order[2:] if near(a, finals[method])]
    also = f" The same holds for {', '.join(others)}." if others else ""
    return f"{text}, which is within one standard deviation {larger}, so the records do not separate the two.{also}"


def near(a: Measure, b: Measure) -> bool:
    """Whether two means differ by no more than the larger standard deviation over seeds."""
    return a.std is not None and b.std is not None and abs(a.mean - b.mean) <= max(a.std, b.std)


def by_validation(setting: Setting, first: str) -> list[str]:
    """One more sentence where the choice of round changes who is ahead."""
    chosen = {method: found for method, tracks in setting.tracks.items() if (found := chosen_accuracy(tracks))}
    if len(chosen) < 2:
        return []
    ahead = max(chosen, key=lambda method: chosen[method].mean)
    if first not in chosen or chosen[ahead].mean <= chosen[first].mean:
        return []
    return [f"In the round chosen on validation data {ahead} is ahead instead, with {shown(chosen[ahead])} %."]
