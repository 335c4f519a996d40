"""What a run holds of one client when it ends: its adapters, and the rule by which it predicts.

find_run      a run folder, or the one run of a sweep that is meant
read_client   one client's model out of the run's last checkpoint
low_rank      that model as W0 + U D at single layers, scaling, gates and weights folded in, dead ranks left out
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from feddlp.config import Config, load_config
from feddlp.data.batches import Batch
from feddlp.errors import UserError, nearest
from feddlp.federation.clients import ClientStore, gather
from feddlp.materials import who_joins_late
from feddlp.methods.base import Forward, Method
from feddlp.model.adapters import LoRA, Theta, View, sites_of
from feddlp.records import ROSTER, RunFolder
from feddlp.report.sweeps import is_sweep, run_folders

MOST_DIGITS = 10  # of a client's number
Which = Literal["local", "global"]
Rule = Callable[[Forward, Batch], Tensor]
"""How a model predicts: logits [K, B, C]."""
Factors = Mapping[str, tuple[Tensor, Tensor]]
"""Linear layer -> D [r, d_in] and U [d_out, r] of W0 + U D."""


@dataclass(frozen=True)
class ClientModel:
    """One client's model after the last round that was played.

    Attributes:
        which: "local", what the client predicts with; "global", the shared adapter that the server holds.
        theta: the client's adapters, [1, ...] each.
        view: the adapters that act when it predicts; None where the prediction is of several passes.
    """

    method: str
    client: int
    seed: int
    round: int
    which: Which
    algorithm: Method
    theta: dict[str, Theta]
    view: View | None

    def predict(self, f: Forward, batch: Batch) -> Tensor:
        """Logits [1, B, C]."""
        return self.algorithm.predict(f, batch) if self.view is None else f.frozen(batch, self.view)

    @property
    def weights(self) -> dict[str, float]:
        """The adapters that act and their weights; empty for the frozen model, and where several passes predict."""
        return {self.view: 1.0} if isinstance(self.view, str) else dict(self.view or {})


def find_run(path: Path, method: str | None = None, seed: int | None = None) -> RunFolder:
    """The run folder at `path`, or the one run of a sweep that has this method and seed.

    Raises:
        UserError: no run there, none that fits, or several.
    """
    runs = {run.path: run for run in (run_folders(path) if is_sweep(path) else [RunFolder.open(path)])}
    configs = {place: load_config(run.config) for place, run in runs.items()}
    fits = [runs[place] for place, config in configs.items() if seed in (None, config.seed)]
    if not fits:
        seeds = sorted({config.seed for config in configs.values()})
        raise UserError(f"--seed {seed}: {path} holds seed {', '.join(map(str, seeds))}")
    if len(fits) > 1:
        fits = [run for run in fits if method in (None, *configs[run.path].methods)]
    if len(fits) != 1:
        listed = ", ".join(run.path.name for run in list(fits or runs.values())[:3])
        raise UserError(
            f"{path} is a sweep with {len(fits)} runs that fit; say --method and --seed, or give one run's folder, "
            f"such as {listed}"
        )
    return fits[0]


def choose_method(config: Config, method: str | None) -> str:
    """The method that is meant: the named one, or feddlp, or the only one that trains anything.

    Raises:
        UserError: the run does not have it, or it is not clear which one is meant.
    """
    if method is not None:
        if method not in config.methods:
            raise UserError(f"--method {method}: the run does not have it; {nearest(method, config.methods)}")
        return method
    trained = [name for name, algorithm in config.build_methods().items() if algorithm.adapters()]
    if "feddlp" in trained or len(trained) == 1:
        return "feddlp" if "feddlp" in trained else trained[0]
    raise UserError(f"the run has several methods; add --method, one of {', '.join(trained or config.methods)}")


def place_of(config: Config, client: int) -> int:
    """Where a client stands among those of the federation.

    Raises:
        UserError: there is no such client, or nothing was kept of it.
    """
    members, late = who_joins_late(config)
    if client in late:
        raise UserError(f"--client {client} joined when the run was over, and its model is not kept; choose another")
    if client not in members:
        raise UserError(f"--client {client}: the run has clients 0 to {config.data.clients - 1}")
    return members.index(client)


def stored(folder: RunFolder, method: str, place: int) -> tuple[int, dict[str, Theta], dict[str, Theta]]:
    """The round of a method's last checkpoint, one client's adapters [1, ...], and what the server holds.

    A client that never took part in a round has none yet.

    Raises:
        UserError: no checkpoint yet, or a damaged one.
    """
    with unchanged(folder, method):
        found, about = folder.load_checkpoint(method), folder.checkpoint_state(method)
        if found is None or about is None:
            raise UserError(f"{folder.path} has no finished round of {method}; go on with: feddlp resume {folder.path}")
        store = ClientStore(folder.checkpoint(method), on_disk=True)  # reads the client's block alone
        store.load(about.clients)
        state = gather(store.parts({place: 0})) if place in store.where else {}
    own: dict[str, Theta] = {}
    for name, kind, leaf in (key.split("/") for key in state if "/theta/" in key):
        own.setdefault(name, {})[leaf] = state[f"{name}/{kind}/{leaf}"]
    server: dict[str, Theta] = {}
    for name, leaf in (key.split("/", 3)[2:] for key in found[1] if key.startswith("server/shared/")):
        server.setdefault(name, {})[leaf] = found[1][f"server/shared/{name}/{leaf}"]
    return found[0], own, server


@contextmanager
def unchanged(folder: RunFolder, method: str) -> Iterator[None]:
    """A run that is training replaces its checkpoint after every round; what was read must all be of one.

    Raises:
        UserError: it was replaced meanwhile.
    """
    before, failed = folder.checkpoint_state(method), None
    try:
        yield
    except UserError as error:
        failed = error
    if folder.checkpoint_state(method) != before:
        raise UserError(f"{folder.path} finished another round of {method} just now; do it again") from failed
    if failed:
        raise failed


def number_of(folder: RunFolder, client: int | str) -> int:
    """A client by its number or, where the data name the clients, by its name; number:N and name:NAME say which.

    Raises:
        UserError: it is neither, or two clients.
    """
    if isinstance(client, int):
        return client
    names = names_of(folder)
    number, name = client.removeprefix("number:"), client if client in names else client.removeprefix("name:")
    numbered = int(number) if number.isdecimal() and len(number) < MOST_DIGITS else None
    if name not in names:
        if numbered is None:
            raise UserError(f"--client {client} is no number{', and ' + nearest(client, names) if names else ''}")
        return numbered
    named = names.index(name)
    if numbered is not None and named != numbered < len(names):
        raise UserError(
            f"--client {client} is client {numbered} ({names[numbered]}) by its number, and client {named} "
            f"({names[named]}) by its name; write number:{client} or name:{client}"
        )
    return named


def names_of(folder: RunFolder) -> list[str]:
    """What the data call the clients; empty where they do not."""
    return list((folder.read_partition() or {}).get("client_names", []))


def classes_of(folder: RunFolder) -> tuple[list[str], str]:
    """The class names of a run and its prompt.

    Raises:
        UserError: the run never came so far, or is of an older version.
    """
    partition = folder.read_partition() or {}
    if not {"class_names", "template"} <= partition.keys():
        raise UserError(f"{folder.path / 'partition.json'} lacks class names and prompt; play the run again")
    return partition["class_names"], partition["template"]


def read_client(folder: RunFolder, method: str, client: int, which: Which = "local") -> ClientModel:
    """One client's model out of the last checkpoint.

    Raises:
        UserError: a client that is unknown or never took part, no or a damaged checkpoint, or no shared adapter where
            `which` asks for it.
    """
    config = load_config(folder.config)
    if folder.read_environment().get("configuration", config.fingerprint()) != config.fingerprint():
        raise UserError(f"{folder.config} is not the configuration that the run began with; put it back")
    algorithm = config.build_methods()[method]
    round, theta, server = stored(folder, method, place_of(config, client))
    model = ClientModel(method, client, config.seed, round, "local", algorithm, theta, predicted_view(algorithm))
    absent = algorithm.adapters() and not theta
    if which == "local" and absent:
        if (folder.path / ROSTER).exists():
            raise UserError(
                f"--client {client} never took part here, at the server: its model is where it trained; take it there "
                "with feddlp federate take, or add --adapter global"
            )
        way_out = ", or add --adapter global" if algorithm.shared else ""
        raise UserError(f"--client {client} never took part in a round of {method}; choose another{way_out}")
    if which == "local":
        return model
    if not algorithm.shared:
        raise UserError(f"--adapter global: {method} shares nothing; leave --adapter out for the client's own model")
    name = algorithm.shared[0]
    if not absent:  # where a part never travels, the client's
        received = algorithm.take(name, theta[name], server[name])
        return replace(model, which="global", theta={name: theta[name] | received}, view=name)
    whole = {leaf: value[None] for leaf, value in server[name].items()}
    adapts = isinstance(algorithm.adapters()[name], LoRA)
    both = all({f"{site}.A", f"{site}.B"} <= whole.keys() for site in sites_of(whole))
    if type(algorithm).take is not Method.take or (adapts and not both):
        raise UserError(f"--client {client} never took part, and not all of {method} travels; choose another client")
    return replace(model, which="global", theta={name: whole}, view=name)


class Watcher:
    """A forward pass that computes nothing and notes which adapters act."""

    def __init__(self) -> None:
        self.calls: list[tuple[Tensor, View]] = []

    def __call__(self, batch: Batch, view: View) -> Tensor:
        logits = torch.zeros(1, 1, 2)
        self.calls.append((logits, view))
        return logits

    frozen = __call__


def predicted_view(method: Method) -> View | None:
    """The view whose logits are the method's prediction; None where they are made from several."""
    watcher, one = Watcher(), torch.zeros(1, 1, dtype=torch.int64)
    answer = method.predict(watcher, Batch(one, one, one == 0))
    return next((view for logits, view in watcher.calls if logits is answer), None)


def is_low_rank(model: ClientModel) -> bool:
    adapters = model.algorithm.adapters()
    return bool(model.weights) and all(isinstance(adapters[name], LoRA) for name in model.weights)


def low_rank(model: ClientModel) -> dict[str, tuple[Tensor, Tensor]]:
    """Every layer at which the model differs from the checkpoint; ranks without effect are left out.

    Several adapters that act together are one with the sum of their ranks. Empty where all ranks are pruned.
    """
    adapters = model.algorithm.adapters()
    parts: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for name, weight in model.weights.items():
        adapter = adapters[name]
        assert isinstance(adapter, LoRA)
        for site in sorted(sites_of(model.theta[name])):
            down, up = adapter.factors(model.theta[name], site)
            parts.setdefault(site, []).append((down[0].float(), weight * up[0].float()))
    living = {}
    for site, at in parts.items():
        down, up = torch.cat([down for down, _ in at]), torch.cat([up for _, up in at], dim=1)
        if (alive := (down != 0).any(1) & (up != 0).any(0)).any():
            living[site] = down[alive], up[:, alive]
    return living


def differences(model: ClientModel) -> dict[str, Tensor]:
    """What the model adds to single weights of the checkpoint, by their names."""
    if is_low_rank(model):
        return {f"{site}.weight": up @ down for site, (down, up) in low_rank(model).items()}
    return {
        leaf.removesuffix(".difference"): weight * value[0]
        for name, weight in model.weights.items()
        for leaf, value in model.theta[name].items()
    }
