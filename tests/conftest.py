"""Shared material: the embedded model and a small ragged federation of real digits."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from rich.console import Console

from checkpoints import CHECKPOINTS, TOWERS
from feddlp import api, cli
from feddlp.config import TrainingConfig, load_config
from feddlp.data import datasets
from feddlp.data.batches import ClientData
from feddlp.data.datasets import Dataset
from feddlp.data.features import encode_prompts, image_features
from feddlp.data.prompts import Prompts, class_prompts
from feddlp.federation.host import FederatedData, Host, Lane
from feddlp.federation.rounds import Federation
from feddlp.methods.base import Method
from feddlp.model.backbone import Backbone
from feddlp.model.checkpoint import load_backbone
from feddlp.progress import PlainReporter
from terminal import Ended

NOBODY = 65534  # by custom, a user without rights
SIZES = (11, 3, 8)  # training samples of three clients: 3, 1 and 2 steps of 4

settings.register_profile("untimed", deadline=None)  # no test fails because the machine is busy
settings.load_profile("untimed")


@pytest.fixture
def nobody() -> Iterator[Path]:
    """A folder of a user for whom permissions count, also where the tests are run by root."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(NOBODY)
    try:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
    finally:
        os.seteuid(user)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tests run side by side, one process per core."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests prepare their images apart from the user's."""
    os.environ["FEDDLP_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def backbones() -> dict[str, Backbone]:
    return {tower: load_backbone("tiny-clip", tower) for tower in TOWERS}


@pytest.fixture(scope="session")
def exact_backbones() -> dict[str, Backbone]:
    """In float64, where Adam cannot blow rounding up and equality means equality."""
    return {tower: load_backbone("tiny-clip", tower, dtype=torch.float64) for tower in TOWERS}


@pytest.fixture(scope="session")
def digits(backbones: dict[str, Backbone]) -> Dataset:
    return datasets.load(datasets.find("digits"), backbones["image"].resize)


@pytest.fixture(scope="session")
def prompts(backbones: dict[str, Backbone], digits: Dataset) -> Prompts:
    return encode_prompts(backbones["image"], class_prompts(digits.class_names, digits.template))


@pytest.fixture(scope="session")
def exact_prompts(exact_backbones: dict[str, Backbone], digits: Dataset) -> Prompts:
    return encode_prompts(exact_backbones["image"], class_prompts(digits.class_names, digits.template))


@pytest.fixture(scope="session")
def inputs(
    backbones: dict[str, Backbone], exact_backbones: dict[str, Backbone], digits: Dataset
) -> dict[tuple[str, bool], torch.Tensor]:
    """(tower, exact) -> what batches hold: images, or features of the frozen image tower."""
    some = digits.images[:400]
    images = {(tower, exact): digits.images for tower in ("image", "both") for exact in (False, True)}
    features = {
        ("text", exact): image_features(kind["text"], some, lambda done, total: None)
        for exact, kind in ((False, backbones), (True, exact_backbones))
    }
    return images | features


@pytest.fixture(scope="session")
def client_data(digits: Dataset, inputs: dict[tuple[str, bool], torch.Tensor]) -> Callable[..., ClientData]:
    """client_data(tower, sizes, offset): clients with consecutive digits."""

    def make(tower: str = "image", sizes: Sequence[int] = SIZES, offset: int = 0, exact: bool = False) -> ClientData:
        cuts = torch.tensor([0, *sizes]).cumsum(0) + offset
        indices = tuple(torch.arange(int(a), int(b)) for a, b in pairwise(cuts))
        return ClientData(inputs[tower, exact], digits.labels, indices)

    return make


@pytest.fixture(scope="session")
def make_federation(
    backbones: dict[str, Backbone],
    exact_backbones: dict[str, Backbone],
    prompts: Prompts,
    exact_prompts: Prompts,
    client_data: Callable[..., ClientData],
) -> Callable[..., Federation]:
    """make_federation(method, tower): three ragged clients, batches of four; in float64 where exact.

    A method alone is one lane with `seed`; a list of (seed, method) is as many lanes.
    """

    def make(
        method: Method | Sequence[tuple[int, Method]],
        tower: str = "image",
        seed: int = 0,
        exact: bool = False,
        **training: float,
    ) -> Federation:
        lanes = [Lane(seed, method)] if isinstance(method, Method) else [Lane(*lane) for lane in method]
        backbone = (exact_backbones if exact else backbones)[tower]
        parts = ((SIZES, 0), ((2, 0, 1), 100), ((4, 2, 3), 200))
        data = FederatedData((0, 1, 2), *(client_data(tower, sizes, offset, exact) for sizes, offset in parts))
        config = TrainingConfig(**{"rounds": 3, "batch_size": 4, "wave": 100, **training})
        return Federation(lanes, Host(lanes, backbone, exact_prompts if exact else prompts, data, config), config)

    return make


PLAYED = """
methods = "zero_shot, feddlp, pruned, gone, ensemble, flora, local, feddat, combined, ffa, fedclip, fedavg"
[method]
lr = 0.01
pruned = {variant_of = "feddlp", gate_threshold = 0.15}
gone = {variant_of = "feddlp", gate_threshold = 9.0}
ensemble = {variant_of = "feddlp", inference = "ensemble"}
feddat = {adapter_share = 0.5}
ffa = {variant_of = "flora", factors_trained = "B"}
[data]
clients = 4
newcomers = 1
partition = "few_shot_iid"
shots = 3
[training]
rounds = 2
batch_size = 8
"""  # in the first of two rounds the copies of feddat and combined are still without effect


@pytest.fixture(scope="session")
def played(tmp_path_factory) -> Callable[[str], api.Run]:
    """played(tower): a finished run of many methods that adapt it, made once."""
    folder = tmp_path_factory.mktemp("played")
    (folder / "played.toml").write_text(PLAYED)

    @cache
    def play(tower: str) -> api.Run:
        words = [f"model.adapt={tower}", f"name={tower}", f"runs_dir={folder}"]
        return api.run(load_config(folder / "played.toml", words), PlainReporter(Console(quiet=True)))

    return play


@pytest.fixture
def feddlp(tmp_path, monkeypatch, capsys):
    """Run a command in an empty folder and in this process."""
    monkeypatch.chdir(tmp_path)
    handler = signal.getsignal(signal.SIGTERM)

    def command(*words: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["feddlp", *words])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        return Ended(code, *capsys.readouterr())

    yield command
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small random checkpoint of each kind, by name; not to be written to."""
    root = tmp_path_factory.mktemp("checkpoints")
    for name, make in CHECKPOINTS.items():
        make(root / name)
    return {name: root / name for name in CHECKPOINTS}
