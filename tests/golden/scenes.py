"""The scenes whose outcome is held still while the code around them is rebuilt.

Every method and several of its variants on every tower, with partial participation, lost updates and late clients;
two trials side by side; exports and predictions; a federation over Flower. All in float64 and on one thread.

Only public entry points play a scene, and everything that is read of it goes through `reading`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from reading import Digest, digests, exported, predicted, scores
from rich.console import Console
from sklearn.datasets import load_digits

import feddlp
from fakegrid import FakeGrid, Time, real, served
from feddlp.config import load_config
from feddlp.progress import PlainReporter
from feddlp.sweep import run_sweep
from feddlp.sweepfile import load_sweep

TOWERS = ("image", "text", "both")
METHODS = """
methods = "zero_shot, local, sora_local, fedclip, fedclip_original, flora, flora_released, feddat, feddat_original, \
combined, combined_published, feddlp, feddlp_shared, fedavg, pruned, compact, ensemble, local_first, ffa, fedsa, \
products, fedprox, momentum, in_batch"
[method]
lr = 0.01
pruned = {variant_of = "feddlp", gate_threshold = 0.15}
compact = {variant_of = "sora_local", gate_threshold = 0.15, compact = true}
ensemble = {variant_of = "feddlp", inference = "ensemble"}
local_first = {variant_of = "feddlp", update_order = "local_first", kd_weight = 0.3}
ffa = {variant_of = "flora", factors_trained = "B"}
fedsa = {variant_of = "flora", factors_sent = "A"}
products = {variant_of = "flora", average_of = "products", reset_optimizer = true}
fedprox = {variant_of = "flora", proximal = 0.1}
momentum = {variant_of = "flora", server_momentum = 0.9, averaging = "uniform"}
in_batch = {variant_of = "flora", objective = "in_batch"}
"""
FEDERATION = """
[data]
clients = 4
newcomers = 1
partition = "few_shot_pathological"
shots = 5
[training]
rounds = 2
batch_size = 4
participation = 0.7
report_rate = 0.8
[model]
dtype = "float64"
"""
SIDE_BY_SIDE = """
name = "trials"
methods = ["feddlp"]
seeds = [0, 1]
config = {data = {clients = 3, partition = "few_shot_iid", shots = 3}, training = {rounds = 2, batch_size = 8}, \
model = {dtype = "float64"}}
[tune]
rounds = 1
grid.lr = [0.01, 0.02]
grid.kd_weight = [0.1, 1.0]
"""
EXPORTED = ("feddlp", "pruned", "flora", "fedclip", "ensemble", "fedavg")
quiet = PlainReporter(Console(quiet=True))


def of_all_methods(tower: str, folder: Path) -> dict[str, Digest]:
    """Tensors, records, predictions and exports of every method on one tower."""
    (folder / "all.toml").write_text(METHODS + FEDERATION)
    run = feddlp.run(load_config(folder / "all.toml", [f"model.adapt={tower}", f"runs_dir={folder}"]), quiet)
    found = digests(run.path) | scores(run.path)
    pictures = [Image.fromarray((pixels * 15).astype("uint8")) for pixels in load_digits().images[:5]]
    client = run.clients[0]
    for method in run.config.methods:
        found |= predicted(method, run.client(client, method), pictures)
    for method in EXPORTED:
        found |= exported(method, run, client, folder / "exports" / method)
    return found


def of_trials(folder: Path) -> dict[str, Digest]:
    """Runs that train side by side."""
    (folder / "trials.toml").write_text(f'runs_dir = "{folder}"\n' + SIDE_BY_SIDE)
    run_sweep(load_sweep(folder / "trials.toml"), quiet)
    runs = sorted(path.parent for path in folder.rglob("config.toml"))
    return {f"{run.name}: {name}": value for run in runs for name, value in (digests(run) | scores(run)).items()}


def over_flower(folder: Path) -> dict[str, Digest]:
    """What the server keeps of clients on two nodes; the records are those of a run in one process."""
    (folder / "flower.toml").write_text('methods = "feddlp, flora"\n' + FEDERATION)
    config = load_config(folder / "flower.toml", [f"runs_dir={folder}", "data.newcomers=0"])
    nodes = {n: real(clients=share, state_dir=folder / f"node-{n}") for n, share in enumerate(("0-1", "2-3"), 1)}
    run = served(FakeGrid(Time(), nodes), config)
    return digests(run.path) | scores(run.path)


def play(scene: str, folder: Path) -> dict[str, Digest]:
    """Name -> digest of everything that a scene leaves."""
    torch.set_num_threads(1)
    if scene in TOWERS:
        return of_all_methods(scene, folder)
    return of_trials(folder) if scene == "trials" else over_flower(folder)


SCENES = (*TOWERS, "trials", "flower")
