"""FLoRA beside the federated full fine-tuning that it is compared with: seconds a round, peak memory, bytes.

FLoRA's abstract claims up to 34.72 times faster training and 2.47 times less memory than federated full fine-tuning.
This plays rounds of each on a CLIP ViT-B/32 with random weights (speed does not depend on their values), each in a
process of its own, with the same batches:

    python benchmarks/fedavg_against_flora.py                       # text tower, one client
    python benchmarks/fedavg_against_flora.py --adapt image
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from typing import Any

import torch

from feddlp.bench.synthetic import model_config, random_backbone, random_data, random_pool, random_prompts
from feddlp.commands.common import quiet_libraries
from feddlp.config import TrainingConfig
from feddlp.costs import trainable_parameters
from feddlp.federation.host import FederatedData, Host, Lane
from feddlp.federation.rounds import Federation
from feddlp.hyperparameters import build_method
from feddlp.memory import peak_mib, reset_peak

METHODS = ("fedavg", "flora_released", "flora")
CLASSES = 37  # Oxford pets


def federation(name: str, options: argparse.Namespace) -> Federation:
    """Clients with random photographs to train on, and nothing to score, as that would blur it."""
    backbone = random_backbone(model_config(options.model), options.adapt, "cpu", torch.float32)
    sizes = [options.steps * options.batch] * options.clients
    dealt = random_data(backbone, random_pool(backbone, CLASSES, sizes[0]), sizes, CLASSES)
    data = FederatedData(dealt.ids, dealt.train, dealt.validation, dealt.validation)
    training = TrainingConfig(batch_size=options.batch, diagnostics=False)
    lanes = [Lane(0, build_method(name, {}))]
    return Federation(lanes, Host(lanes, backbone, random_prompts(backbone, CLASSES), data, training), training)


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One method in this process: the first round warms up, the others are timed."""
    played = federation(name, options)
    reset_peak()
    results = [played.play_round()[0] for _ in range(1 + options.rounds)]
    return {
        "method": name,
        "trained": sum(trainable_parameters(played.lanes[0].method, played.clients.sites).values()),
        "seconds": statistics.median(result.seconds for result in results[1:]),
        "peak_mib": peak_mib(),
        "sent_mib": (results[-1].bytes_up[0] + results[-1].bytes_down[0]).item() / 2**20,
    }


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit-b-32", help="a shape, as model= of feddlp bench")
    parser.add_argument("--adapt", choices=("text", "image"), default="text")
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=3, help="training steps of a round")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds; the median counts")
    parser.add_argument("--only", choices=METHODS, help=argparse.SUPPRESS)
    return parser.parse_args(words)


def main(words: list[str]) -> None:
    options = parse(words)
    if options.only:
        quiet_libraries()
        print(json.dumps(measure(options.only, options)))
        return
    rows = []
    for name in METHODS:
        command = [sys.executable, __file__, *words, "--only", name]
        rows.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))
    base = rows[0]
    print(f"{'method':<16}{'trained':>12}{'s a round':>11}{'times':>8}{'peak MiB':>10}{'times':>8}{'MiB a round':>13}")
    for row in rows:
        faster, smaller = base["seconds"] / row["seconds"], base["peak_mib"] / row["peak_mib"]
        print(
            f"{row['method']:<16}{row['trained']:>12,}{row['seconds']:>11.2f}{faster:>8.2f}"
            f"{row['peak_mib']:>10.0f}{smaller:>8.2f}{row['sent_mib']:>13.2f}"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
