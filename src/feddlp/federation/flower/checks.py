"""What is taken for good of what a node sends; nothing reaches the server's averages unchecked.

Names, shapes, dtype, finiteness and size of every tensor; who speaks, of which round; counts that can be. A report
that fails is refused as a whole, with one line that says why.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from reprlib import repr as short
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, FailFast, Field, ValidationError
from torch import Tensor

from feddlp.data.source import PARTS, Part
from feddlp.federation.flower import limits
from feddlp.federation.flower.parcels import Parcel, RefusedError
from feddlp.federation.host import Report, Roster
from feddlp.federation.results import Found
from feddlp.federation.waves import Wave
from feddlp.model.adapters import FeatureSite, LinearSite, Site, Theta, WeightSite
from feddlp.names import nfc, printable

Count = Annotated[int, Field(ge=0, lt=2**53)]
Counts = Annotated[list[Count], FailFast()]
Text = Annotated[str, Field(max_length=limits.NAME)]
ClassName = Annotated[Text, AfterValidator(nfc)]
Loss = Annotated[float, Field(ge=-limits.LOSS, le=limits.LOSS)]
Seconds = Annotated[float, Field(ge=0, le=limits.SECONDS)]
SITES: dict[str, Any] = {"LinearSite": LinearSite, "FeatureSite": FeatureSite, "WeightSite": WeightSite}


class Checked(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)


class Samples(Checked):
    train: Counts
    validation: Counts
    test: Counts


class Hello(Checked):
    """Who a node is."""

    name: Text
    state: Text
    clients: Counts = Field(min_length=1)
    samples: Samples
    checkpoint: Text
    data: Text
    class_names: Annotated[list[ClassName], FailFast()] = Field(max_length=limits.CLASSES)
    template: Text
    dtype: Literal["float32", "float64", "bfloat16"]
    sites: dict[Text, list[Any]] = Field(max_length=limits.SITES)
    left_out: Count
    own_data: bool = False  # not what the server's configuration names
    classes: list[dict[Part, dict[ClassName, Count]]] | None = None  # of each client's samples; None: it does not tell
    totals: dict[Part, Count] | None = None  # samples of all clients of the federation, where one data set is dealt out


class Begun(Checked):
    """The answer to "start"."""

    clients: Counts = Field(min_length=1)
    correct: dict[Literal["validation", "test"], Counts]
    seconds: Seconds | None = None


class Told(Begun):
    """The facts of a report, a list entry for each client."""

    losses: dict[str, Annotated[list[Loss], FailFast()]]
    diagnostics: dict[Text, Counts] = Field(max_length=limits.WAYS)
    active: dict[str, Counts]
    bytes_down: Counts
    bytes_up: Counts
    seconds: Seconds


def one_line(said: object) -> str:
    """What somebody else says, for the record: printable, on one line, and not endless."""
    text = str(said)[: 2 * limits.LINE] if isinstance(said, str | Exception) else short(said)
    line = printable(" ".join(text.split()))
    return line if len(line) <= limits.LINE else f"{line[: limits.LINE]}..."


def parse(kind: type[Any], facts: Mapping[str, Any]) -> Any:
    """Parse facts of one kind; raise RefusedError if a key is missing or of another type."""
    try:
        return kind.model_validate(facts)
    except (ValidationError, RecursionError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": "nested too deeply"}
        where = ".".join(map(str, first["loc"]))
        raise RefusedError(f"its {kind.__name__.lower()} is wrong at {where or 'its root'}: {first['msg']}") from error


def parse_hello(facts: Mapping[str, Any], clients: int) -> Hello:
    """Who a node says it is. clients: of the whole federation"""
    hello: Hello = parse(Hello, facts)
    check_clients(hello.clients, range(clients))
    for part in PARTS:
        check_column(f"samples.{part}", getattr(hello.samples, part), len(hello.clients))
    check_classes(hello)
    try:
        sites = [site_of(*values) for values in hello.sites.values()]
    except (TypeError, KeyError, IndexError) as error:
        raise RefusedError(f"its sites are none ({type(error).__name__}: {one_line(error)})") from error
    weights = sum(math.prod(site.shape if isinstance(site, WeightSite) else site) for site in sites)
    if weights > limits.WEIGHTS:
        raise RefusedError(f"its sites have {weights:,} weights, more than any model ({limits.WEIGHTS:,})")
    return hello


def frozen(checkpoint: str, sites: Mapping[str, Sequence[Any]]) -> dict[str, str]:
    """Fingerprints of a frozen model's weights, and of where adapters act on it."""
    return {"checkpoint": checkpoint, "sites": hashlib.sha256(json.dumps(sites, sort_keys=True).encode()).hexdigest()}


def check_classes(hello: Hello) -> None:
    """Images by class that add up."""
    if hello.classes is None:
        return
    check_column("classes", hello.classes, len(hello.clients))
    for place, held in enumerate(hello.classes):
        for part in PARTS:
            counts = held.get(part, {})
            if sum(counts.values()) != getattr(hello.samples, part)[place] or not counts.keys() <= {*hello.class_names}:
                raise RefusedError(
                    f"its {part} samples of client {hello.clients[place]} and their classes do not agree"
                )


def site_of(kind: str, *values: Any) -> Site:
    shape = tuple(values[0]) if kind == "WeightSite" else values
    if not shape or not all(type(size) is int and 0 < size <= limits.WIDTH for size in shape):
        raise TypeError(f"sizes {short(shape)}")
    site: Site = WeightSite(shape) if kind == "WeightSite" else SITES[kind](*shape)
    return site


@dataclass(frozen=True)
class Expected:
    """What reports of a round must be like."""

    method: str
    round: int
    shared: Mapping[str, Theta]  # what the server holds; uploads have its leaves, [W, ...] each
    adapters: Collection[str]  # of the method, those that never travel too
    ranks: Mapping[str, int]  # ranks at the start, by "adapter/site"
    roster: Roster

    def most_bytes(self, clients: int) -> int:
        """What the uploads of some clients may take."""
        values = sum(leaf.numel() * leaf.element_size() for theta in self.shared.values() for leaf in theta.values())
        return clients * values + sum(limits.SLACK + 200 * len(theta) for theta in self.shared.values())


def check_report(parcel: Parcel, asked: Sequence[int], expected: Expected) -> Report:
    """A node's report of a round, for the clients that were asked.

    Raises:
        RefusedError: anything about it that cannot be.
    """
    for key in ("method", "round"):
        if parcel.facts.get(key) != getattr(expected, key):
            other = short(parcel.facts.get(key))
            raise RefusedError(f"it is of {key} {other}, not of {getattr(expected, key)!r}: a replay")
    told: Told = parse(Told, parcel.facts)
    if sorted(told.clients) != sorted(asked):
        raise RefusedError(f"it is of clients {short(told.clients)}, asked were {short(sorted(asked))}")
    rows = torch.tensor([expected.roster.ids.index(client) for client in told.clients])
    check_facts(told, rows, expected)
    check_adapters(parcel.adapters, expected.shared, (len(rows),))
    found = Found(
        lanes=torch.zeros_like(rows),
        rows=rows,
        losses=tensors(told.losses, torch.float32),
        diagnostics=tensors(told.diagnostics, torch.int64),
        correct=tensors(told.correct, torch.int64),
        active=tensors(told.active, torch.int32),
        bytes_down=torch.tensor(told.bytes_down),
        bytes_up=torch.tensor(told.bytes_up),
    )
    return Report(found, parcel.adapters)


def tensors(lists: Mapping[Any, list[Any]], dtype: torch.dtype) -> dict[str, Tensor]:
    return {str(key): torch.tensor(values, dtype=dtype) for key, values in lists.items()}


def check_facts(told: Told, rows: Tensor, expected: Expected) -> None:
    """Counts that are no more than there is to count."""
    if strange := told.losses.keys() - set(expected.adapters):
        raise RefusedError(f"it has a loss of the unknown adapter {min(strange)!r}")
    if told.active.keys() != expected.ranks.keys():
        raise RefusedError(f"it counts gates at {len(told.active)} sites, {len(expected.ranks)} have some")
    for name, values in (("bytes_down", told.bytes_down), ("bytes_up", told.bytes_up)):
        check_column(name, values, len(rows))
    for key, losses in told.losses.items():
        check_column(f"losses.{key}", losses, len(rows))
    for key, counts in told.diagnostics.items():
        check_column(f"diagnostics.{key}", counts, len(rows), expected.roster.test[rows].tolist())
    for key, counts in told.active.items():
        check_column(f"active.{key}", counts, len(rows), [expected.ranks[key]] * len(rows))
    check_correct(told.correct, rows, expected.roster)


def check_correct(correct: Mapping[Any, list[int]], rows: Tensor, roster: Roster) -> None:
    if set(correct) != {"validation", "test"}:
        raise RefusedError(f"it scores {', '.join(map(str, correct)) or 'nothing'} in place of validation and test")
    for part, hits in correct.items():
        check_column(f"correct.{part}", hits, len(rows), getattr(roster, part)[rows].tolist())


def check_clients(clients: Sequence[int], known: Sequence[int]) -> None:
    if len(set(clients)) < len(clients) or not set(clients) <= set(known):
        raise RefusedError(f"clients {short(list(clients))} are repeated, or none of {known[0]}-{known[-1]}")


def check_column(name: str, values: Sequence[Any], clients: int, most: Sequence[int] = ()) -> None:
    """One value for each client, and none above its limit."""
    if len(values) != clients:
        raise RefusedError(f"{name} has {len(values)} values for {clients} clients")
    if most and any(value > limit for value, limit in zip(values, most, strict=True)):
        raise RefusedError(f"{name} counts {short(values)}, at most {short(list(most))} can be")


def check_adapters(found: Mapping[str, Theta], expected: Mapping[str, Theta], lead: tuple[int, ...] = ()) -> None:
    """Finite tensors of the expected names, shapes and dtypes. lead: what comes before a leaf's own shape

    Raises:
        RefusedError: something else.
    """
    check_names("adapters", found, expected)
    for name, theta in found.items():
        held = expected[name]
        check_names(f"adapter {name}", theta, held)
        for leaf, value in theta.items():
            shape, dtype = (*lead, *held[leaf].shape), held[leaf].dtype
            if tuple(value.shape) != shape:
                raise RefusedError(f"{name}/{leaf} has the shape {tuple(value.shape)}, not {shape}")
            if value.dtype != dtype:
                raise RefusedError(f"{name}/{leaf} is of {value.dtype}, not {dtype}")
            if not value.isfinite().all():
                raise RefusedError(f"{name}/{leaf} holds NaN or infinity")


def check_names(what: str, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    extra, missing = found.keys() - expected.keys(), expected.keys() - found.keys()
    if extra or missing:
        listed = [f"has the unknown {name!r}" for name in sorted(extra)[:1]]
        listed += [f"lacks {name!r}" for name in sorted(missing)[:1]]
        raise RefusedError(f"{what} {' and '.join(listed)}")


def check_begun(parcel: Parcel, asked: Sequence[int], method: str, roster: Roster) -> tuple[Wave, dict[str, Tensor]]:
    """A node's answer to how its clients begin.

    Raises:
        RefusedError: anything about it that cannot be.
    """
    if parcel.facts.get("method") != method:
        raise RefusedError(f"it is of method {short(parcel.facts.get('method'))}, not of {method!r}")
    told: Begun = parse(Begun, parcel.facts)
    check_clients(told.clients, roster.ids)
    if not set(asked) <= set(told.clients):
        raise RefusedError(f"it is of clients {short(told.clients)}, asked were {short(sorted(asked))}")
    for part, hits in told.correct.items():
        check_column(f"correct.{part}", hits, len(told.clients))
    places = [told.clients.index(client) for client in asked]
    rows = torch.tensor([roster.ids.index(client) for client in asked])
    correct = {part: [hits[place] for place in places] for part, hits in told.correct.items()}
    check_correct(correct, rows, roster)
    return Wave(torch.zeros_like(rows), rows), tensors(correct, torch.int64)
