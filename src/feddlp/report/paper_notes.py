"""What has to be said under the paper's tables: what may be compared with what, and which seeds are missing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from feddlp.records import RunFolder
from feddlp.report.paper_forms import PaperTable
from feddlp.report.paper_numbers import Key, Run, paper
from feddlp.report.series import read_config

READINGS = (
    "final: last round; chosen: test accuracy in the round with the best pooled validation accuracy; best *: best test "
    "round, optimistic, picked on test data. ± is the sample standard deviation over seeds."
)
PICKED_ON_TEST = (
    "The paper's accuracies are those of the best test round, with hyper-parameters picked on the test set too: "
    "compare them with best * alone."
)
LOCAL = (
    "The paper's \"Local\" was scored by the public code with every client's model on client 0's test set. Ours is "
    "scored on each client's own test set; the two are not comparable."
)
AVERAGE = (
    "average: the mean over the four data sets, only where all four are there; its ± is the mean of the four, as in "
    "the paper. sent (M): parameters that one client sends in a round, in millions."
)
SPREAD = (
    "std: over the clients, population (ddof 0), in percentage points. lowest: the client with the lowest test "
    "accuracy, in %. The paper's are one run each."
)
TRAFFIC = (
    "MiB that one client sends and receives until the pooled accuracy first reaches the target, the reaching round "
    "included. test *: judged on test accuracy, as in the paper, which peeks; validation: judged on validation "
    "accuracy. (2/3): reached in 2 of 3 seeds, mean over these."
)
RATIOS = (
    "Ratios are of the means, ours only where both methods reach the target in every seed; the paper's are recomputed "
    "from its MiB, which are whole rounds, so of one run. Its hyper-parameters were picked on the test set."
)
ABLATION = (
    "Combined: one model of both adapters learns where FedDLP keeps them apart; matched has FedDLP's rank and "
    "kd_weight, as published has a local rank of 2 and no kd_weight. The paper's numbers are one seed; those of FedDLP "
    "differ from Tables I and II."
)
CURVE = (
    "Pooled test accuracy by round; both methods have rank 2, are trained locally and never communicate. The paper has "
    "a drawing (Flowers) and no numbers, its best rounds and hyper-parameters were picked on the test set."
)
BY_KIND = {
    "accuracy": (READINGS, AVERAGE, PICKED_ON_TEST, LOCAL),
    "spread": (READINGS, SPREAD, PICKED_ON_TEST, LOCAL),
    "traffic": (TRAFFIC, RATIOS),
    "ablation": (READINGS, ABLATION, PICKED_ON_TEST),
    "curve": (CURVE, LOCAL),
}
PROTOCOL = (
    "Protocols differ. Ours by default: loss class_ce, the published soft threshold, 100 rounds, and a tenth of each "
    "client's training part carved out for validation. The published code: loss in_batch, its own threshold, 101 "
    "rounds, no validation part. preset=authors takes all of that, its image resizing and prompts (docs/protocol.md)."
)
LEFT_OUT = (
    "The paper's numbers are left out: they are for CLIP ViT-B/32 on pets, flowers, aircraft and dtd, and would not be "
    "comparable."
)


PARTITION: Mapping[str, Any] = {
    "data.clients": 10, "data.partition": "dirichlet", "data.test_set": "own", "data.test_share": 0.25,
    "data.newcomers": 0, "training.participation": 1, "training.report_rate": 1,
}  # fmt: skip


def deviations(runs: Sequence[RunFolder]) -> tuple[str, ...]:
    """Where a run does not follow the paper's partition, in words; only if all do may its numbers stand beside ours."""
    configs = [read_config(run.config)[1] for run in runs]
    found = [
        f"{key} = {config.get(key, 'not recorded')} (the paper: {papers})"
        for key, papers in PARTITION.items()
        for config in configs
        if config.get(key) != papers
    ]
    return tuple(dict.fromkeys(found))


def notes(table: PaperTable, kind: str, runs: Mapping[Key, Sequence[Run]], differing: Sequence[str]) -> tuple[str, ...]:
    """All notes of a table, among them those that its making left.

    Args:
        runs: those that it is made of.
        differing: `deviations` of runs with the paper's model and data.
    """
    errata = [f"Erratum of the paper: {text}" for text in paper()["errata"].get(table.name, ())]
    why = f"The paper's numbers are left out: these runs do not follow its partition. {', '.join(differing)}."
    absent = [] if kind == "curve" else [why if differing else LEFT_OUT]  # of the curve it has none
    beside = [PROTOCOL, *errata] if table.has_paper else absent
    return (*BY_KIND[kind], *beside, *table.notes, *seed_notes(runs), *length_notes(runs))


def named(key: Key) -> str:
    return f"{key.method} {key.tower} {key.dataset} {key.beta:g}"


def listed(entries: Sequence[str], most: int = 6) -> str:
    """The entries in words, of many the first ones and how many more there are."""
    more = f" and {len(entries) - most} more" if len(entries) > most else ""
    return ", ".join(entries[:most]) + more


def seed_notes(runs: Mapping[Key, Sequence[Run]]) -> Iterator[str]:
    """Whether all cells are over the same number of seeds, and every run over another one; zero-shot has no seed."""
    counts = {key: len(found) for key, found in runs.items() if found and key.method != "zero_shot"}
    full = max(counts.values(), default=0)
    if full == 1:
        yield "One seed: no standard deviation over seeds."
    if fewer := [f"{named(key)} ({count})" for key, count in counts.items() if count < full]:
        yield f"Fewer than the {full} seeds of the others: {listed(fewer)}."
    if twice := [named(key) for key in counts if len({rows[-1]["seed"] for rows in runs[key]}) < counts[key]]:
        yield f"A seed was run more than once, so ± is too small: {listed(twice)}."


def length_notes(runs: Mapping[Key, Sequence[Run]]) -> Iterator[str]:
    """Whether the trained methods had the same number of rounds; zero-shot needs none."""
    trained = [rows for key, found in runs.items() if key.method != "zero_shot" for rows in found]
    if len(lengths := sorted({int(rows[-1]["round"]) for rows in trained})) > 1:
        yield f"Runs of different length ({', '.join(map(str, lengths))} rounds) stand side by side."
