"""Commands about data sets: datasets, data check."""

from __future__ import annotations

from typing import Annotated

import typer

from feddlp.commands.common import Debug, help_alone, named

app = typer.Typer(help="Look at image collections.", rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def options(context: typer.Context) -> None:
    """Look at image collections."""
    help_alone(context)


@app.command()
def check(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="As in data.dataset, or a folder or CSV file.")],
    debug: Debug = False,
) -> None:
    """Open every image and say what is there; the exit code is 1 if some cannot be read or a class has none.

    \b
    feddlp data check photos
    feddlp data check pets:downloads/pets
    """
    from feddlp.data.check import describe, examine
    from feddlp.data.datasets import CHECKED, find
    from feddlp.names import printable
    from feddlp.progress import Console, make_reporter

    collection = find(named(source), CHECKED)
    with make_reporter(Console(stderr=True)) as reporter:
        findings = examine(collection, lambda done, total: reporter.preparing("images", done, total))
    for line in describe(findings):
        print(printable(line))
    raise typer.Exit(1 if findings.unreadable or findings.empty_classes() else 0)


def datasets(debug: Debug = False) -> None:
    """List the data sets, one line each.

    \b
    feddlp datasets
    """
    from feddlp.data.datasets import descriptions
    from feddlp.printing import print_list

    print_list(descriptions())
