"""Commands that take a client's model away and use it: export, predict, evaluate."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from feddlp.commands.common import Debug, RunPath, SomeFailed, named, quiet_libraries
from feddlp.errors import UserError
from feddlp.progress import Console, PlainReporter, make_reporter

if TYPE_CHECKING:
    from feddlp.inference import Prediction

Folder = Annotated[Path, typer.Option("--adapter", metavar="DIR", help="What feddlp export wrote.")]
Base = Annotated[str | None, typer.Option("--model", help="Where the base checkpoint lies now, if it was moved.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
AsCsv = Annotated[bool, typer.Option("--csv", help="Print CSV.")]


def export(
    path: RunPath,
    client: Annotated[str, typer.Option(help="Whose model: a number from 0, or a name (also as number:N, name:NAME).")],
    to: Annotated[Path, typer.Option(metavar="DIR", help="The folder to make.")],
    method: Annotated[str | None, typer.Option(help="Where the run has several; feddlp if left out.")] = None,
    seed: Annotated[int | None, typer.Option(help="Where RUN is a sweep: which of its runs.")] = None,
    adapter: Annotated[
        Literal["local", "global"],
        typer.Option(help="The client's own model, or the shared adapter on the server."),
    ] = "local",
    merge: Annotated[bool, typer.Option("--merge", help="Write a whole checkpoint, adapters merged.")] = False,
    debug: Debug = False,
) -> None:
    """Write one client's model as a PEFT adapter, or as a whole checkpoint, for use without feddlp.

    \b
    feddlp export runs/demo --client 3 --to client3
    feddlp export runs/demo --client 3 --to client3-clip --merge
    """
    quiet_libraries()
    from feddlp.api import load_run
    from feddlp.printing import print_exported

    print_exported(load_run(path, method, seed).export(client, to, method, adapter, merge))


def predict(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files, and folders of them.")],
    adapter: Folder,
    top: Annotated[int, typer.Option(min=1, help="How many classes to name.")] = 3,
    as_csv: AsCsv = False,
    as_json: AsJson = False,
    model: Base = None,
    device: Device = "auto",
    debug: Debug = False,
) -> None:
    """Name the likeliest classes of images, with an exported model.

    \b
    feddlp predict --adapter client3 photo.jpg holidays/
    feddlp predict --adapter client3 holidays/ --top 1 --csv > holidays.csv
    """
    quiet_libraries()
    from feddlp.inference import find_images, load_predictor
    from feddlp.manifest import Manifest
    from feddlp.printing import predictions

    form = chosen_form(as_csv, as_json)
    files = find_images(images)
    predictor = load_predictor(adapter, model, device)
    bad: list[Prediction] = []
    # The bar takes sys.stdout over, to keep lines above itself: right on a terminal, wrong for a file or a pipe.
    out = None if sys.stdout.isatty() else sys.stdout
    with make_reporter(Console(stderr=True)) as reporter:
        reporter.note(f"the model of {Manifest.read(adapter).owner}")
        found = predictor.stream(files, top, progress(reporter, "images"))
        for text in predictions(telling(found, reporter, bad), form):
            print(text, end="", file=out)
    if bad:
        raise SomeFailed(f"{len(bad)} of {len(files)} images could not be read; they are named above")


def evaluate(
    adapter: Folder,
    data: Annotated[str, typer.Option(help="folder:PATH with one sub-folder per class, or another data set.")],
    on_bad_image: Annotated[
        Literal["error", "skip"], typer.Option(help="Stop at an unreadable image, or go on.")
    ] = "error",
    as_csv: AsCsv = False,
    as_json: AsJson = False,
    model: Base = None,
    device: Device = "auto",
    debug: Debug = False,
) -> None:
    """Score an exported model on labelled images, class by class.

    \b
    feddlp evaluate --adapter client3 --data folder:holidays
    """
    quiet_libraries()
    from feddlp.data import datasets
    from feddlp.inference import load_predictor
    from feddlp.manifest import Manifest
    from feddlp.printing import scores

    form = chosen_form(as_csv, as_json)
    source = datasets.find_own(named(data))
    predictor = load_predictor(adapter, model, device)
    predictor.columns_of(source.class_names)  # before anything is opened
    with make_reporter(Console(stderr=True)) as reporter:
        reporter.note(f"the model of {Manifest.read(adapter).owner}")
        dataset = datasets.load(
            source, predictor.backbone.resize, progress(reporter, "images"), on_bad_image=on_bad_image
        )
        for image in dataset.left_out:
            reporter.warn(f"{image.name} cannot be read ({image.reason}) and is left out")
        found = predictor.evaluate(dataset, progress(reporter, "predictions"))
    print(scores(found, form), end="")


def telling(found: Iterable[Prediction], reporter: PlainReporter, bad: list[Prediction]) -> Iterator[Prediction]:
    """The predictions as they come, those that are none told and put aside as well."""
    for prediction in found:
        if prediction.error:
            bad.append(prediction)
            reporter.warn(f"{prediction.image} cannot be read ({prediction.error})")
        yield prediction


def progress(reporter: PlainReporter, what: str) -> Callable[[int, int], None]:
    return lambda done, total: reporter.preparing(what, done, total)


def chosen_form(as_csv: bool, as_json: bool) -> str:
    """text, csv or json."""
    if as_csv and as_json:
        raise UserError("--csv and --json are two forms of one output; give one of them")
    return "csv" if as_csv else "json" if as_json else "text"
