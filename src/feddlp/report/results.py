"""The sections on results: accuracy, costs, curves, the spread over clients, losses, diagnostics, newcomers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from markupsafe import Markup

from feddlp.report import measures, plots
from feddlp.report.blocks import (
    Block,
    Cells,
    Figure,
    Missing,
    Section,
    Table,
    curve_rows,
    dot_legend,
    joined,
    line_legend,
    long_rows,
)  # fmt: skip
from feddlp.report.latest import Row
from feddlp.report.measures import Curve
from feddlp.report.plots import Style
from feddlp.report.rates import described
from feddlp.report.readings import ABSENT, Measure, measure, picked, shown
from feddlp.report.readings import accuracy as accuracy_of
from feddlp.report.series import Setting, Track

Styles = Mapping[str, Style]
WAYS = {
    "predicted": "predicted: as the method itself predicts",
    "received": "received: the shared adapter as it arrives, before local training",
    "local": "local: the private adapter alone",
    "global": "global: the shared adapter after local training",
    "combined": "combined: both adapters in one model",
    "ensemble": "ensemble: the mean of the two adapters' predictions",
}
OVER_SEEDS = "Where several seeds were run, numbers are mean ± sample standard deviation over the seeds."


def accuracy(setting: Setting, prefix: str, styles: Styles) -> Section:
    """Three accuracies side by side, and their spread over clients."""
    head = (
        "Method", "Final round", "Validation-chosen", "Best test round*", "Client mean", "Client std", "Lowest client",
        "10th percentile",
    )  # fmt: skip
    notes = (
        "Test accuracy in %. The first three columns pool all clients' test samples; validation-chosen is the test "
        "accuracy in the round with the best validation accuracy. (r3) is the round; several seeds may have several.",
        "* Optimistic: this round was picked by looking at the test data. Do not compare methods by it.",
        "The last four columns are of the final round and weigh every client alike, however few its test samples; "
        "the lowest client of a small federation can hang on a handful of images.",
        OVER_SEEDS,
        *([f"{described(setting.rates)}."] if setting.rates else []),
    )
    table = Table(f"{prefix}-accuracy-table", "Accuracy by method", head, accuracy_rows(setting), notes)
    lead = (
        "How often the right class is named on images held back from training. Final is what the last round gave; "
        "validation-chosen is what someone who stops at the best validation round would have got."
    )
    return Section(f"{prefix}-accuracy", "Accuracy", lead, (table,))


def accuracy_rows(setting: Setting) -> Cells:
    spread = ("client_mean", "client_std", "client_lowest", "client_p10")
    rows = []
    for method, tracks in setting.tracks.items():
        final, chosen, best = zip(*(picked(track.rows) for track in tracks), strict=True)
        rows.append(
            [
                method,
                pooled_cell(final),
                pooled_cell(chosen) + in_rounds(chosen),
                pooled_cell(best) + in_rounds(best),
                *(shown(measure(accuracy_of(row, "test", key) for row in final)) for key in spread),
            ]
        )
    return rows


def pooled_cell(rows: Sequence[Row | None]) -> str:
    return shown(measure(accuracy_of(row, "test") for row in rows))


def in_rounds(rows: Sequence[Row | None]) -> str:
    known = sorted({row["round"] for row in rows if row is not None})
    return f" ({', '.join(f'r{number}' for number in known)})" if known else ""


def costs(setting: Setting, prefix: str, styles: Styles) -> Section:
    """What a method takes: parameters, traffic, gates, time, memory."""
    head = (
        "Method", "Trained parameters", "Sent parameters", "MiB per client, up + down", "Active ranks",
        "Seconds a round", "Peak memory, MiB",
    )  # fmt: skip
    notes = (
        "Trained and sent parameters are those of one client; MiB are sent and received by one client over all rounds.",
        "Active ranks: gates that are not zero after the final round, mean over clients.",
        "Seconds and memory are of the whole federation on the machine that ran it, with all clients side by side; "
        "they compare methods on that machine and say little about a device of its own. "
        "Peak memory is that of the costliest round. Runs side by side share both and have no number.",
        OVER_SEEDS,
    )
    rows = [[method, *cost_cells(tracks)] for method, tracks in setting.tracks.items()]
    table = Table(f"{prefix}-costs-table", "Costs by method", head, rows, notes)
    lead = "What a client must train and transmit for it: fewer MiB mean less traffic between client and server."
    return Section(f"{prefix}-costs", "Costs", lead, (table,))


def cost_cells(tracks: Sequence[Track]) -> list[str]:
    last = tracks[-1].last
    sent, active = last.get("parameters_sent"), measure(track.last.get("active_ranks") for track in tracks)
    return [
        f"{sum((last.get('parameters') or {}).values()):,}",
        ABSENT if sent is None else f"{sent:,}",
        shown(measure(measures.sent_mib(track.rows) for track in tracks)),
        f"{shown(active, 1)} of {last['gates']}" if active and last.get("gates") else ABSENT,
        shown(measure(alone(track, measures.mean_of(track.rows, "seconds")) for track in tracks)),
        shown(measure(alone(track, measures.largest(track.rows, "peak_mib")) for track in tracks), 0),
    ]


def alone(track: Track, value: float | None) -> float | None:
    """The value, unless the run shared its time and memory with others on the client axis."""
    return None if any(row.get("lanes", 1) > 1 for row in track.rows) else value


def curves(setting: Setting, prefix: str, styles: Styles) -> Section:
    """Accuracy against rounds and against traffic, side by side."""
    lead = (
        "One line a method; the band is ± one standard deviation over seeds, where there are several. "
        "A method that trains nothing is a horizontal line, and against traffic so is one that sends nothing (at its "
        "final accuracy); there, further left is cheaper."
    )
    blocks = (by_round(setting, prefix, styles), by_traffic(setting, prefix, styles))
    return Section(f"{prefix}-curves", "Accuracy by round and by traffic", lead, blocks)


def by_round(setting: Setting, prefix: str, styles: Styles) -> Block:
    found = [curve for curve in measures.accuracy_curves(setting) if curve.points]
    if not found:
        return Missing("No accuracy by round: no client had test samples.")
    name = f"{prefix}-by-round"
    svg = plots.lines(found, styles, "round", "test accuracy, %", name, f"{name}-caption")
    data = Table(f"{name}-data", "Test accuracy in % by round", ("Round", *labels(found)), curve_rows(found))
    text = "Pooled test accuracy after each round."
    return Figure(name, text, Markup(svg), data, line_legend(found, styles))


def labels(found: Sequence[Curve]) -> list[str]:
    return [curve.label for curve in found]


def by_traffic(setting: Setting, prefix: str, styles: Styles) -> Block:
    found = [curve for curve in measures.traffic_curves(setting) if curve.points]
    if all(curve.level for curve in found):
        return Missing("No accuracy by traffic: no method in this setting is recorded to send anything.")
    name = f"{prefix}-by-traffic"
    x = "MiB sent and received by one client so far"
    svg = plots.lines(found, styles, x, "test accuracy, %", name, f"{name}-caption", whole=False)
    head = ("Method", "Point", "MiB so far", "Test accuracy, %")
    data = Table(f"{name}-data", "Test accuracy by MiB per client", head, long_rows(found))
    text = "Pooled test accuracy against traffic per client."
    return Figure(name, text, Markup(svg), data, line_legend(found, styles))


def spread(setting: Setting, prefix: str, styles: Styles) -> Section:
    """One dot a client and method."""
    lead = (
        "A good mean can hide clients that are served badly. Every dot is one client's test accuracy at the final "
        "round (its mean over seeds), every bar the mean over clients; height within a row means nothing."
    )
    found = {method: measures.client_accuracies(tracks) for method, tracks in setting.tracks.items()}
    found = {method: clients for method, clients in found.items() if clients}
    block = (
        spread_figure(setting, found, prefix, styles)
        if found
        else Missing("No accuracies of single clients are recorded.")
    )
    return Section(f"{prefix}-spread", "Spread over clients", lead, (block,))


def spread_figure(setting: Setting, found: Mapping[str, Mapping[int, Measure]], prefix: str, styles: Styles) -> Figure:
    name = f"{prefix}-client-dots"
    svg = plots.dots(found, styles, "test accuracy of a client, %", name, f"{name}-caption")
    clients = sorted({client for values in found.values() for client in values})
    rows = [[setting.label(client), *(shown(values.get(client)) for values in found.values())] for client in clients]
    rows.append(["mean", *(f"{fmean(one.mean for one in values.values()):.2f}" for values in found.values())])
    data = Table(f"{name}-data", "Test accuracy in % by client", ("Client", *found), rows)
    text = "Test accuracy of each client at the final round. Clients without test samples are left out."
    return Figure(name, text, Markup(svg), data, dot_legend(list(found), styles), wide=True)


def losses(setting: Setting, prefix: str, styles: Styles) -> Section:
    """What training minimises, by adapter."""
    lead = (
        "Mean training loss of a round. Losses of different methods and adapters have different terms, so compare a "
        "line with itself over time and not with its neighbours."
    )
    found = [curve for curve in measures.loss_curves(setting) if curve.points]
    block = loss_figure(found, prefix, styles) if found else Missing("No training losses are recorded.")
    return Section(f"{prefix}-losses", "Training loss", lead, (block,))


def loss_figure(found: Sequence[Curve], prefix: str, styles: Styles) -> Figure:
    name = f"{prefix}-loss-lines"
    means = [value.mean for curve in found for _, value in curve.points]
    log = min(means) > 0 and max(means) > 30 * min(means)
    y = "training loss (logarithmic)" if log else "training loss"
    svg = plots.lines(found, styles, "round", y, name, f"{name}-caption", log=log, wide=True)
    data = Table(f"{name}-data", "Training loss by round", ("Round", *labels(found)), curve_rows(found))
    text = "Training loss by round, method and adapter, mean over clients."
    return Figure(name, text, Markup(svg), data, line_legend(found, styles), wide=True)


def diagnostics(setting: Setting, prefix: str, styles: Styles) -> Section:
    """Other ways to predict, and clients that join late."""
    lead = (
        "What the trained adapters would have scored had they been used differently, and how clients fare that join "
        "only after training. Neither enters the accuracies above."
    )
    return Section(
        f"{prefix}-diagnostics", "Diagnostics", lead, (ways_table(setting, prefix), newcomers_table(setting, prefix))
    )


def ways_table(setting: Setting, prefix: str) -> Block:
    every = [key for tracks in setting.tracks.values() for key in measures.keys_of(tracks, "diagnostics")]
    ways = [*(key for key in WAYS if key in every), *dict.fromkeys(key for key in every if key not in WAYS)]
    if not ways:
        return Missing("No other ways to predict are recorded in these runs.")
    rows = [
        [method, *(shown(way_accuracy(tracks, way)) for way in ways)]
        for method, tracks in setting.tracks.items()
        if measures.keys_of(tracks, "diagnostics")
    ]
    notes = (
        "; ".join(WAYS.get(way, way) for way in ways) + ".",
        "Over the test samples of the clients that took part in the round, so that all ways are judged by the same.",
        OVER_SEEDS,
    )
    caption = "Pooled test accuracy in % at the final round, by way to predict"
    return Table(f"{prefix}-ways", caption, ("Method", *map(str.capitalize, ways)), rows, notes)


def way_accuracy(tracks: Sequence[Track], way: str) -> Measure | None:
    return measure((track.last.get("diagnostics") or {}).get(way) for track in tracks)


def newcomers_table(setting: Setting, prefix: str) -> Block:
    found = {
        method: [row for track in tracks if (row := track.run.newcomers.get(track.key))]
        for method, tracks in setting.tracks.items()
    }
    found = {method: rows for method, rows in found.items() if rows}
    if not found:
        return Missing("No newcomers: in these runs no clients join after training.")
    epochs = max(len(row.get("tuned") or []) for rows in found.values() for row in rows)
    head = ("Method", "New clients", "Zero-shot", "As received", *(f"After epoch {n}" for n in range(1, epochs + 1)))
    rows = [[method, joined([row.get("clients", ABSENT) for row in rows]), *newcomer_cells(rows, epochs)]
            for method, rows in found.items()]  # fmt: skip
    notes = (
        "Clients that took no part receive the trained shared adapter at the end and tune it on their own images.",
        OVER_SEEDS,
    )
    return Table(f"{prefix}-newcomers", "Pooled test accuracy in % of clients that join at the end", head, rows, notes)


def newcomer_cells(rows: Sequence[Mapping[str, object]], epochs: int) -> list[str]:
    parts = [[accuracy_of(row, part) for row in rows] for part in ("zero_shot", "received")]
    for epoch in range(epochs):
        tuned = [row.get("tuned") or [] for row in rows]
        parts.append([one[epoch].get("pooled") if epoch < len(one) else None for one in tuned])  # type: ignore[arg-type, index]
    return [shown(measure(values)) for values in parts]


def overview(settings: Sequence[Setting]) -> Table:
    """Final accuracies of all settings in one table."""
    methods = dict.fromkeys(method for setting in settings for method in setting.tracks)
    rows = [
        [setting.title, *(shown(measures.final_accuracy(setting.tracks.get(method, ()))) for method in methods)]
        for setting in settings
    ]
    notes = (
        "Settings may differ in data and in difficulty; compare along a row before comparing along a column.",
        OVER_SEEDS,
    )
    return Table("overview", "Final test accuracy in % by setting and method", ("Setting", *methods), rows, notes)
