"""The sections on results: accuracy, costs, curves, the spread over clients, losses, diagnostics, newcomers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from statistics import fmean

from feddlp.report import measures, plots
from feddlp.report.blocks import Blocks, Cells, Figure, Missing, Table, dot_legend, joined, line_figure, line_legend
from feddlp.report.latest import Row
from feddlp.report.plots import Style
from feddlp.report.rates import described
from feddlp.report.readings import ABSENT, measure, picked, shown
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


def accuracy(setting: Setting, prefix: str, styles: Styles) -> Blocks:
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
    return (table,)


def accuracy_rows(setting: Setting) -> Cells:
    def cell(rows: Sequence[Row | None], key: str = "pooled") -> str:
        return shown(measure(accuracy_of(row, "test", key) for row in rows))

    spread = ("client_mean", "client_std", "client_lowest", "client_p10")
    found = []
    for method, tracks in setting.tracks.items():
        final, chosen, best = zip(*(picked(track.rows) for track in tracks), strict=True)
        pooled = [cell(final), cell(chosen) + in_rounds(chosen), cell(best) + in_rounds(best)]
        found.append([method, *pooled, *(cell(final, key) for key in spread)])
    return found


def in_rounds(rows: Sequence[Row | None]) -> str:
    known = sorted({row["round"] for row in rows if row is not None})
    return f" ({', '.join(f'r{number}' for number in known)})" if known else ""


def costs(setting: Setting, prefix: str, styles: Styles) -> Blocks:
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
    return (table,)


def cost_cells(tracks: Sequence[Track]) -> list[str]:
    last = tracks[-1].last
    sent, active = last.get("parameters_sent"), measure(track.last.get("active_ranks") for track in tracks)
    # Runs that shared their time and memory with others on the client axis have neither.
    alone = [track.rows for track in tracks if all(row.get("lanes", 1) <= 1 for row in track.rows)]
    seconds = [measure(row.get("seconds") for row in rows) for rows in alone]
    peaks = [max((row["peak_mib"] for row in rows if row.get("peak_mib") is not None), default=None) for rows in alone]
    return [
        f"{sum((last.get('parameters') or {}).values()):,}",
        ABSENT if sent is None else f"{sent:,}",
        shown(measure(measures.sent_mib(track.rows) for track in tracks)),
        f"{shown(active, 1)} of {last['gates']}" if active and last.get("gates") else ABSENT,
        shown(measure(value.mean for value in seconds if value)),
        shown(measure(peaks), 0),
    ]


def curves(setting: Setting, prefix: str, styles: Styles) -> Blocks:
    """Accuracy against rounds and against traffic, side by side."""
    return (by_round(setting, prefix, styles), by_traffic(setting, prefix, styles))


def by_round(setting: Setting, prefix: str, styles: Styles) -> Figure | Missing:
    found = [curve for curve in measures.accuracy_curves(setting) if curve.points]
    if not found:
        return Missing("No accuracy by round: no client had test samples.")
    caption, title = "Pooled test accuracy after each round.", "Test accuracy in % by round"
    return line_figure(f"{prefix}-by-round", caption, title, found, styles, wide=False)


def by_traffic(setting: Setting, prefix: str, styles: Styles) -> Figure | Missing:
    found = [curve for curve in measures.traffic_curves(setting) if curve.points]
    if all(curve.level for curve in found):
        return Missing("No accuracy by traffic: no method in this setting is recorded to send anything.")
    name = f"{prefix}-by-traffic"
    across = "MiB sent and received by one client so far"
    svg = plots.lines(found, styles, across, "test accuracy, %", name, whole=False)
    rows = [  # one a point, as the curves' x have nothing in common
        [curve.label, "all" if curve.level else f"{number:g}", f"{x:.3f}", shown(y)]
        for curve in found
        for number, (x, y) in enumerate(zip(curve.x, curve.y, strict=True), 1)
    ]
    head = ("Method", "Point", "MiB so far", "Test accuracy, %")
    data = Table(f"{name}-data", "Test accuracy by MiB per client", head, rows)
    text = "Pooled test accuracy against traffic per client."
    return Figure(name, text, svg, data, line_legend(found, styles))


def spread(setting: Setting, prefix: str, styles: Styles) -> Blocks:
    """One dot a client and method."""
    found = {method: measures.client_accuracies(tracks) for method, tracks in setting.tracks.items()}
    found = {method: clients for method, clients in found.items() if clients}
    if not found:
        return (Missing("No accuracies of single clients are recorded."),)
    name = f"{prefix}-client-dots"
    svg = plots.dots(found, styles, "test accuracy of a client, %", name)
    clients = sorted({client for values in found.values() for client in values})
    rows = [[setting.label(client), *(shown(values.get(client)) for values in found.values())] for client in clients]
    rows.append(["mean", *(f"{fmean(one.mean for one in values.values()):.2f}" for values in found.values())])
    data = Table(f"{name}-data", "Test accuracy in % by client", ("Client", *found), rows)
    text = "Test accuracy of each client at the final round. Clients without test samples are left out."
    return (Figure(name, text, svg, data, dot_legend(list(found), styles), wide=True),)


def losses(setting: Setting, prefix: str, styles: Styles) -> Blocks:
    """What training minimises, by adapter."""
    found = [curve for curve in measures.loss_curves(setting) if curve.points]
    if not found:
        return (Missing("No training losses are recorded."),)
    means = [value.mean for curve in found for _, value in curve.points]
    log = min(means) > 0 and max(means) > 30 * min(means)
    y = "training loss (logarithmic)" if log else "training loss"
    caption = "Training loss by round, method and adapter, mean over clients."
    return (line_figure(f"{prefix}-loss-lines", caption, "Training loss by round", found, styles, y, log=log),)


def diagnostics(setting: Setting, prefix: str, styles: Styles) -> Blocks:
    """Other ways to predict, and clients that join late."""
    return (ways_table(setting, prefix), newcomers_table(setting, prefix))


def ways_table(setting: Setting, prefix: str) -> Table | Missing:
    every = [key for tracks in setting.tracks.values() for key in measures.keys_of(tracks, "diagnostics")]
    ways = [*(key for key in WAYS if key in every), *dict.fromkeys(key for key in every if key not in WAYS)]
    if not ways:
        return Missing("No other ways to predict are recorded in these runs.")
    found = {
        method: [track.last.get("diagnostics") or {} for track in tracks]
        for method, tracks in setting.tracks.items()
        if measures.keys_of(tracks, "diagnostics")
    }
    rows = [[method, *(shown(measure(one.get(way) for one in last)) for way in ways)] for method, last in found.items()]
    notes = (
        "; ".join(WAYS.get(way, way) for way in ways) + ".",
        "Over the test samples of the clients that took part in the round, so that all ways are judged by the same.",
        OVER_SEEDS,
    )
    caption = "Pooled test accuracy in % at the final round, by way to predict"
    return Table(f"{prefix}-ways", caption, ("Method", *map(str.capitalize, ways)), rows, notes)


def newcomers_table(setting: Setting, prefix: str) -> Table | Missing:
    found = {
        method: [row for track in tracks if (row := track.run.newcomers.get(track.key))]
        for method, tracks in setting.tracks.items()
    }
    found = {method: rows for method, rows in found.items() if rows}
    if not found:
        return Missing("No newcomers: in these runs no clients join after training.")
    epochs = max(len(row.get("tuned") or []) for rows in found.values() for row in rows)
    head = ("Method", "New clients", "Zero-shot", "As received", *(f"After epoch {n}" for n in range(1, epochs + 1)))
    rows = []
    for method, joining in found.items():
        tuned = zip_longest(*(row.get("tuned") or [] for row in joining))
        stages = [[row.get(part) for row in joining] for part in ("zero_shot", "received")] + list(map(list, tuned))
        stages += [[]] * (epochs + 2 - len(stages))
        cells = [shown(measure((stage or {}).get("pooled") for stage in seeds)) for seeds in stages]
        rows.append([method, joined([row.get("clients", ABSENT) for row in joining]), *cells])
    notes = (
        "Clients that took no part receive the trained shared adapter at the end and tune it on their own images.",
        OVER_SEEDS,
    )
    return Table(f"{prefix}-newcomers", "Pooled test accuracy in % of clients that join at the end", head, rows, notes)


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
