"""What a message costs beyond training, and what it weighs, in a federation over Flower on this machine.

    python benchmarks/flower_messages.py --rounds 4 [key=value ...]

Two SuperNodes that share the clients (of the demo: five each); between one of them and the SuperLink stands a relay
that counts bytes. A round's overhead is its seconds less those that the slower node trained. Cold: every message loads
model and images anew (keep-warm=0). The first round is left out.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from feddlp.config import Config, load_config
from feddlp.federation.flower.local import LocalFederation
from feddlp.federation.flower.processes import LOOPBACK
from feddlp.federation.flower.serving import new_run
from feddlp.progress import Console, PlainReporter

NODES = 2


class Relay:
    """Passes connections on to a port, and counts bytes: up to it, and down from it."""

    def __init__(self, port: int):
        self.target, self.counts = port, {"up": 0, "down": 0}
        self.listener = socket.create_server((LOOPBACK, 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        while True:
            near, _ = self.listener.accept()
            far = socket.create_connection((LOOPBACK, self.target))
            for pair in ((near, far, "up"), (far, near, "down")):
                threading.Thread(target=self.pass_on, args=pair, daemon=True).start()

    def pass_on(self, source: socket.socket, sink: socket.socket, way: str) -> None:
        try:
            while content := source.recv(65536):
                self.counts[way] += len(content)
                sink.sendall(content)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass


class Measured(LocalFederation):
    """The last node speaks through the relay."""

    warm = True

    def node_config(self, config: Config, node: int) -> dict[str, str]:
        return super().node_config(config, node) | ({} if self.warm else {"keep-warm": "0"})

    def start(self) -> None:
        self.place.mkdir(parents=True)
        self.start_link()
        self.start_node(0)
        self.relay, own = Relay(self.port), self.port
        self.port = self.relay.port
        self.start_node(1)
        self.port = own


class Clock(PlainReporter):
    """Reads the relay when a round is over."""

    federation: Measured

    def __init__(self) -> None:
        super().__init__(Console(stderr=True))
        self.rows: list[Mapping[str, Any]] = []
        self.bytes: list[dict[str, int]] = []

    def line(self, text: str) -> None:
        pass

    def round_finished(self, row: Mapping[str, Any]) -> None:
        self.rows.append(row)
        self.bytes.append(dict(self.federation.relay.counts))


def measure(rounds: int, adapt: str, warm: bool, more: list[str]) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as place:
        words = [f"training.rounds={rounds}", f"runs_dir={place}", "methods=feddlp", f"model.adapt={adapt}", *more]
        folder, clock = new_run(load_config(None, words)), Clock()
        clock.federation = federation = Measured(folder, NODES, clock)
        federation.warm = warm
        try:
            federation.start()
            federation.play()
        finally:
            federation.stop()
        trained = slowest(folder.path)
        later = range(1, rounds)
        row = clock.rows[-1]
        clients = row["clients"] / NODES
        traffic = {
            way: statistics.mean(clock.bytes[n][way] - clock.bytes[n - 1][way] for n in later) for way in ("up", "down")
        }
        return {
            "round_s": statistics.mean(clock.rows[n]["seconds"] for n in later),
            "overhead_s": statistics.mean(clock.rows[n]["seconds"] - trained[n] for n in later),
            "up": traffic["up"],
            "up_theory": 4 * row["parameters_sent"] * clients,
            "down": traffic["down"],
            "down_theory": 4 * row["parameters_sent"],
        }


def slowest(folder: Path) -> list[float]:
    """Seconds that the slower node trained, by round."""
    found: dict[int, float] = {}
    for line in map(json.loads, (folder / "events.jsonl").read_text().splitlines()):
        if line["event"] == "answered":
            (about,) = line["said"]
            round = int(about["subject"].split()[-1])
            found[round] = max(found.get(round, 0.0), about["seconds"])
    return [found[round] for round in sorted(found)]


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("words", nargs="*", metavar="key=value", help="overrides of the demo")
    parser.add_argument("--adapt", action="append", help="a tower, or several (image and both)")
    parser.add_argument("--warm", action="store_true", help="leave out what loads model and images anew")
    asked = parser.parse_args(words)
    for adapt in asked.adapt or ("image", "both"):
        for warm in (True,) if asked.warm else (False, True):
            print(json.dumps({"adapt": adapt, "warm": warm, **measure(asked.rounds, adapt, warm, asked.words)}))


if __name__ == "__main__":
    main(sys.argv[1:])
