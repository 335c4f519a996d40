"""From a configuration to a finished run folder: the place where all parts are put together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from feddlp.config import Config, load_config
from feddlp.costs import trainable_parameters
from feddlp.data import datasets
from feddlp.data.batches import ClientData
from feddlp.data.features import image_features
from feddlp.data.partition import ClientSplit, partition, split
from feddlp.data.prompts import class_prompts
from feddlp.errors import UserError
from feddlp.evaluation import accuracy
from feddlp.federation.rounds import FederatedData, Federation, RoundResult, planned_rounds
from feddlp.methods.base import Method
from feddlp.model.backbone import EMBEDDED, Backbone, load_backbone
from feddlp.records import RunFolder, environment

FEW_SAMPLES = 30


class Reporter(Protocol):
    """Who is told how a run goes on."""

    def run_started(self, folder: Path) -> None: ...

    def preparing(self, what: str, done: int, total: int) -> None: ...

    def method_started(self, method: str, rounds: int, steps: int, done: int) -> None: ...

    def stepped(self) -> None: ...

    def round_finished(self, row: Mapping[str, Any]) -> None: ...

    def note(self, message: str) -> None: ...

    def warn(self, message: str) -> None: ...


@dataclass(frozen=True)
class Materials:
    """What all methods of a run share."""

    backbone: Backbone
    prompts: Tensor  # [C, L]
    data: FederatedData
    fingerprints: Mapping[str, str]


def pick_device(name: str) -> str:
    """The device that `model.device` asks for.

    Raises:
        UserError: a device that this machine does not have.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros((), device=name).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"model.device={name} is not to be had here; use auto or cpu") from error
    return name


def prepare(config: Config, reporter: Reporter) -> Materials:
    """Load and freeze the model, load the images once, deal them to the clients."""
    source = datasets.find(config.data.dataset)
    splits = deal(config, source.labels)
    describe_data(config, len(source.class_names), splits, reporter)
    prompts = class_prompts(source.class_names, config.data.template or source.template)
    backbone = load_backbone(
        config.model.checkpoint,
        config.model.adapt,
        pick_device(config.model.device),
        getattr(torch, config.model.dtype),
    )
    tokens = backbone.tokenize(prompts)
    dataset = datasets.load(source, backbone.resize, lambda done, total: reporter.preparing("images", done, total))
    inputs = dataset.images.to(backbone.device)
    if config.model.adapt == "text":
        inputs = image_features(backbone, inputs, lambda done, total: reporter.preparing("features", done, total))
    labels = dataset.labels.to(backbone.device)
    parts = (
        ClientData(inputs, labels, tuple(getattr(client, part) for client in splits))
        for part in ("train", "validation", "test")
    )
    fingerprints = {
        "configuration": config.fingerprint(),
        "data": dataset.fingerprint(),
        "backbone": backbone.fingerprint(),
    }
    return Materials(backbone, tokens, FederatedData(*parts), fingerprints)


def describe_data(config: Config, classes: int, splits: list[ClientSplit], reporter: Reporter) -> None:
    """Say how many samples every number will rest on, and what would make the numbers meaningless."""
    train, validation, test = (
        sum(len(getattr(client, part)) for client in splits) for part in ("train", "validation", "test")
    )
    smallest = min(len(client.test) for client in splits)
    reporter.note(
        f"{config.data.dataset}: {train + validation + test:,} images, {classes} classes, {len(splits)} clients; "
        f"train {train:,}, validation {validation:,}, test {test:,} (smallest client: {smallest})"
    )
    if validation < FEW_SAMPLES:
        reporter.warn(
            f"only {validation} validation samples, so the validation-chosen round means little; "
            "raise data.validation_share or use fewer clients"
        )
    if config.data.dataset != "digits" and config.model.checkpoint in EMBEDDED:
        reporter.warn(
            f"{config.model.checkpoint} knows rendered characters only; for photographs set model.checkpoint "
            "to a CLIP folder or a hub name such as openai/clip-vit-base-patch32"
        )


def deal(config: Config, labels: Any) -> list[ClientSplit]:
    """Partition and split as the configuration says."""
    data = config.data
    holdings = partition(
        np.asarray(labels),
        data.partition,
        data.clients,
        dirichlet_beta=data.dirichlet_beta,
        classes_per_client=data.classes_per_client,
        min_samples=data.min_samples,
        seed=data.partition_seed,
    )
    return [
        split(
            held,
            client,
            test_share=data.test_share,
            validation_share=data.validation_share,
            seed=data.partition_seed,
        )
        for client, held in enumerate(holdings)
    ]


def round_row(name: str, seed: int, federation: Federation, result: RoundResult) -> dict[str, Any]:
    """One line of rounds.jsonl. Accuracies in %, bytes for one client in this round."""
    data = federation.data
    test = accuracy(result.test_correct, data.test.sizes())
    validation = accuracy(result.validation_correct, data.validation.sizes())
    weights = data.train.sizes().double()
    losses = {key: (loss.double() @ weights / weights.sum()).item() for key, loss in result.losses.items()}
    return {
        "method": name,
        "seed": seed,
        "round": result.round,
        "test": test.as_dict() if test else None,
        "validation": validation.as_dict() if validation else None,
        "train_loss": losses,
        "parameters": trainable_parameters(federation.method, federation.cohort.forward.backbone.sites),
        "shared": list(federation.method.shared),
        "bytes_down": result.bytes_down,
        "bytes_up": result.bytes_up,
        "active_ranks": None if result.active_ranks is None else result.active_ranks.double().mean().item(),
        "gates": federation.gates(),
        "seconds": round(result.seconds, 3),
    }


def client_rows(name: str, seed: int, federation: Federation, result: RoundResult) -> list[dict[str, Any]]:
    """The rows of clients.csv for one round."""
    data = federation.data
    sizes = {part: getattr(data, part).sizes().tolist() for part in ("train", "validation", "test")}
    rows = []
    for k, client in enumerate(federation.cohort.clients):
        tests, correct = sizes["test"][k], int(result.test_correct[k])
        rows.append(
            {
                "method": name,
                "seed": seed,
                "round": result.round,
                "client": client,
                **{f"{part}_samples": counts[k] for part, counts in sizes.items()},
                "validation_correct": int(result.validation_correct[k]),
                "test_correct": correct,
                "test_accuracy": round(100 * correct / tests, 6) if tests else "",
                "train_loss": ";".join(f"{key}={loss[k].item():.6g}" for key, loss in result.losses.items()),
                "active_ranks": "" if result.active_ranks is None else int(result.active_ranks[k]),
            }
        )
    return rows


def play(
    folder: RunFolder, config: Config, name: str, method: Method, materials: Materials, reporter: Reporter
) -> None:
    """All rounds of one method that are not yet in the folder, a checkpoint after each."""
    federation = Federation(method, materials.backbone, materials.prompts, materials.data, config.training, config.seed)
    if checkpoint := folder.load_checkpoint(name):
        federation.load_state_dict(*checkpoint)
    reporter.method_started(name, federation.rounds, federation.steps(), federation.round)
    while federation.round < federation.rounds:
        result = federation.play_round(reporter.stepped)
        row = round_row(name, config.seed, federation, result)
        folder.record_round(row, client_rows(name, config.seed, federation, result))
        folder.save_checkpoint(name, federation.round, federation.state_dict())
        reporter.round_finished(row)


def execute(folder: RunFolder, config: Config, materials: Materials, reporter: Reporter) -> None:
    """Bring a run folder to its end, from wherever it stands."""
    with folder.locked():
        check_environment(folder, materials.fingerprints, reporter)
        folder.rewind(config.methods)
        for name, method in config.build_methods().items():
            play(folder, config, name, method, materials, reporter)


def check_environment(folder: RunFolder, fingerprints: Mapping[str, str], reporter: Reporter) -> None:
    """At the start, write down the environment; on resuming, refuse another configuration, other images or weights."""
    recorded = folder.read_environment()
    if not recorded:
        folder.write_environment(fingerprints)
        return
    for key in ("configuration", "data", "backbone"):
        if recorded.get(key) != fingerprints[key]:
            raise UserError(
                f"{folder.path}: the {key} is not the one that the run began with; put it back, or start a new run"
            )
    now = environment()
    for key in ("packages", "threads", "cuda"):
        if recorded.get(key) != now[key]:
            reporter.warn(
                f"{key} differ from when the run began, so the last digits may too: {recorded.get(key)} -> {now[key]}"
            )


def run(config: Config, reporter: Reporter) -> RunFolder:
    """A new run. Its folder is made once model and data are known to be good."""
    materials = prepare(config, reporter)
    folder = RunFolder.create(Path(config.runs_dir).expanduser(), config.name, config.to_toml())
    if folder.path.name != config.name:
        reporter.note(f"{folder.path.with_name(config.name)} exists, so this run is {folder.path.name}")
    reporter.run_started(folder.path)
    execute(folder, config, materials, reporter)
    return folder


def resume(path: Path, reporter: Reporter) -> RunFolder:
    """Go on where a run was interrupted; a finished run stays as it is."""
    folder = RunFolder.open(path)
    reporter.run_started(folder.path)
    config = load_config(folder.config)
    execute(folder, config, prepare(config, reporter), reporter)
    return folder


def missing_rounds(folder: RunFolder) -> str:
    """What a run has still to play, for example "feddlp 3, local 12 rounds"; empty when it is finished."""
    config = load_config(folder.config)
    played = Counter(row["method"] for row in folder.read_rounds())
    gaps = {
        name: planned_rounds(method, config.training.rounds) - played[name]
        for name, method in config.build_methods().items()
    }
    listed = ", ".join(f"{name} {gap}" for name, gap in gaps.items() if gap > 0)
    return f"{listed} rounds" if listed else ""
