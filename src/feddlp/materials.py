"""Everything that the runs of a setting share: the frozen model, the images, and who holds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch

from feddlp.config import Config
from feddlp.data import datasets
from feddlp.data.batches import ClientData
from feddlp.data.cache import PixelCache, cached_features
from feddlp.data.cache_folder import cache_root
from feddlp.data.datasets import Dataset
from feddlp.data.features import encode_prompts, image_features
from feddlp.data.paper_sets import TEMPLATES
from feddlp.data.prompts import Prompts, class_prompts
from feddlp.data.source import PARTS, LeftOut, Source
from feddlp.data.splits import ClientSplit, class_counts, split_clients
from feddlp.errors import UserError, counted
from feddlp.federation.host import FederatedData
from feddlp.model.backbone import Backbone
from feddlp.model.checkpoint import load_backbone
from feddlp.model.hub import EMBEDDED
from feddlp.randomness import generator

FEW_SAMPLES = 30
NAMED = 3  # files in a message
CHARACTERS = ("digits", "glyphs")  # data sets that show what the embedded model has learnt to read


class Reporter(Protocol):
    """Who is told how the preparation goes on."""

    def preparing(self, what: str, done: int, total: int) -> None: ...

    def note(self, message: str) -> None: ...

    def warn(self, message: str) -> None: ...


@dataclass(frozen=True)
class Materials:
    """What all methods and seeds of a setting share."""

    backbone: Backbone
    prompts: Prompts
    data: FederatedData
    newcomers: FederatedData | None
    partition: Mapping[str, Any]  # class counts of every client, for the record
    fingerprints: Mapping[str, str]  # of the data and of the frozen weights
    left_out: Sequence[LeftOut] = ()  # images that could not be read


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
        raise UserError(f"model.device={name} is not available here; use auto or cpu") from error
    return name


class Share(NamedTuple):
    """The natural clients of a federation whose images lie here, the others being elsewhere."""

    clients: tuple[int, ...]  # who they are, in the order of their names
    of: int  # how many clients the federation has
    class_names: tuple[str, ...] = ()  # of the whole federation; empty: those found here


def prepare(config: Config, reporter: Reporter, share: Share | None = None) -> Materials:
    """Load and freeze the model, load the images once, deal them to the clients.

    Args:
        share: where only some of the clients are here, with images of their own.
    """
    source = own_source(config, share) if share else datasets.find(config.data.dataset)
    ids = share.clients if share else ()
    splits = split_clients(source.labels, config.data, source.clients, source.parts, ids)
    if source.ignored:  # files that lie among the images and are not taken for any
        reporter.note(f"ignored {counted(len(source.ignored), 'file')} among the images: {first_few(source.ignored)}")
    describe_data(config, len(source.class_names), splits, reporter)
    template = config.data.template or TEMPLATES.get(config.data.known_as, source.template)
    class_names = (share and share.class_names) or source.class_names
    prompts = class_prompts(class_names, template)
    backbone = load_backbone(
        config.model.checkpoint,
        config.model.adapt,
        pick_device(config.model.device),
        getattr(torch, config.model.dtype),
        config.data.resize,
    )
    encoded = encode_prompts(backbone, prompts)
    if config.data.train_template:
        learned = encode_prompts(backbone, class_prompts(class_names, config.data.train_template))
        encoded = replace(encoded, training=learned)
    dataset = open_images(config, source, backbone, reporter)
    if dataset.left_out:
        splits = split_clients(dataset.labels, config.data, dataset.clients, dataset.parts, ids)
        describe_data(config, len(source.class_names), splits, reporter)
    inputs = dataset.images.to(backbone.device)
    if config.model.adapt == "text":
        inputs = frozen_features(backbone, source, dataset, inputs, reporter).to(backbone.device)
    members, late = who_joins_late(config)
    labels = among(class_names, source.class_names)[dataset.labels].to(backbone.device)
    partition: dict[str, Any] = {
        "class_names": list(class_names),
        "template": template,
        "clients": class_counts(splits, labels.cpu().numpy(), len(class_names)),
        "newcomers": late,
    }
    data = replace(client_data(inputs, labels, splits, members), ids=tuple(ids or members))
    if config.data.partition == "natural":
        names = partition["client_names"] = [dataset.clients[int(split.train[0])] for split in splits]
        data = replace(data, names=dict(zip(ids or range(len(names)), names, strict=True)))
    return Materials(
        backbone=backbone,
        prompts=encoded,
        data=data,
        newcomers=client_data(inputs, labels, splits, late) if late else None,
        partition=partition,
        fingerprints={"data": dataset.fingerprint(), "backbone": backbone.fingerprint()},
        left_out=dataset.left_out,
    )


def own_source(config: Config, share: Share) -> Source:
    """The images of natural clients that are here; of all clients some are taken.

    Raises:
        UserError: data of more clients than `share` names, or of fewer.
    """
    source = datasets.find_own(config.data.dataset)
    owners = source.clients or [source.name] * len(source.labels)
    names = sorted(set(owners))
    if len(names) == share.of > len(share.clients):
        chosen = {names[client] for client in share.clients}
        return source.without({index for index, owner in enumerate(owners) if owner not in chosen})
    if len(names) != len(share.clients):
        raise UserError(
            f"{config.data.dataset} holds the images of {counted(len(names), 'client')}, and clients="
            f"{','.join(map(str, share.clients))} names {len(share.clients)}; name one for each"
        )
    return replace(source, clients=owners)


def among(class_names: Sequence[str], found: Sequence[str]) -> torch.Tensor:
    """Where the classes found here stand among those of the federation.

    Raises:
        UserError: one that the federation does not have.
    """
    if strange := [name for name in found if name not in class_names]:
        raise UserError(
            f"{counted(len(strange), 'class')} not among the federation's {len(class_names)}: "
            f"{', '.join(strange[:5])}; rename or remove them"
        )
    return torch.tensor([list(class_names).index(name) for name in found])


def open_images(config: Config, source: Source, backbone: Backbone, reporter: Reporter) -> Dataset:
    """Every image at model size, less those that cannot be read where the configuration allows that."""
    dataset = datasets.load(
        source,
        backbone.resize,
        lambda done, total: reporter.preparing("images", done, total),
        prepare=PixelCache(cache_root(), backbone.resize_settings(), reporter.note),
        on_bad_image=config.data.on_bad_image,
    )
    if dataset.left_out:
        reporter.warn(f"cannot read {counted(len(dataset.left_out), 'image')}, left out: {first_few(dataset.left_out)}")
    return dataset


def frozen_features(
    backbone: Backbone, source: Source, dataset: Dataset, images: torch.Tensor, reporter: Reporter
) -> torch.Tensor:
    """Features of the frozen image tower; those of pictures are kept in the cache. [N, D]"""

    def compute() -> torch.Tensor:
        return image_features(backbone, images, lambda done, total: reporter.preparing("features", done, total))

    if not source.pictures:
        return compute()
    identity = (backbone.fingerprint(), dataset.fingerprint(), backbone.resize_settings(), str(backbone.model.dtype))
    return cached_features(cache_root(), " ".join((*identity, backbone.device.type, torch.__version__)), compute)


def first_few(files: Sequence[LeftOut]) -> str:
    """The first files with their reasons, on one line."""
    listed = "; ".join(f"{file.name} ({file.reason})" for file in files[:NAMED])
    return f"{listed}; ..." if len(files) > NAMED else listed


def who_joins_late(config: Config) -> tuple[list[int], list[int]]:
    """The clients of the federation, and those that join when it is over; the latter are drawn by the partition seed.

    (Not simply the last ones: the last client of a Dirichlet deal collects the left-overs of most classes.)
    """
    order = torch.randperm(config.data.clients, generator=generator(config.data.partition_seed, "newcomers")).tolist()
    cut = config.data.clients - config.data.newcomers
    return sorted(order[:cut]), sorted(order[cut:])


def client_data(
    inputs: torch.Tensor, labels: torch.Tensor, splits: list[ClientSplit], ids: Sequence[int]
) -> FederatedData:
    """The three parts of some clients' samples."""
    parts = (ClientData(inputs, labels, tuple(getattr(splits[client], part) for client in ids)) for part in PARTS)
    return FederatedData(tuple(ids), *parts)


def describe_data(config: Config, classes: int, splits: list[ClientSplit], reporter: Reporter) -> None:
    """Say how many samples every number will rest on, and what would make the numbers meaningless."""
    train, validation = (sum(len(getattr(client, part)) for client in splits) for part in ("train", "validation"))
    smallest = min(len(client.test) for client in splits)
    natural, official = config.data.partition == "natural", config.data.splits == "official"
    common = not natural if official else config.data.test_set == "common"
    test = smallest if common else sum(len(client.test) for client in splits)
    each = "the same for all" if common else f"smallest client: {smallest}"
    reporter.note(
        f"{config.data.dataset}: {counted(train + validation + test, 'image')}, {counted(classes, 'class')}, "
        f"{counted(len(splits), 'client')}; train {train:,}, validation {validation:,}, test {test:,} ({each})"
    )
    if validation < FEW_SAMPLES:
        reporter.warn(
            f"only {counted(validation, 'validation sample')}, so what is chosen on them (a round, with tune=true a "
            "rate) means little; raise data.validation_share or use fewer clients"
        )
    if config.data.dataset.partition(":")[0] not in CHARACTERS and config.model.checkpoint in EMBEDDED:
        reporter.warn(
            f"{config.model.checkpoint} knows rendered characters only; for photographs set model.checkpoint "
            "to the folder of a CLIP or SigLIP, or to a hub name such as openai/clip-vit-base-patch32"
        )
