"""Commands that read, or only pass settings on, start neither PyTorch nor what it brings along."""

from __future__ import annotations

import json
import subprocess
import sys

from PIL import Image

HEAVY = ("torch", "transformers", "safetensors.torch", "sklearn", "scipy", "flwr", "matplotlib")
COMMANDS = (  # the first column: what the command needs all the same
    ("", "--version"),
    ("", "--help"),
    ("", "run --help"),
    ("", "methods"),
    ("", "datasets"),
    ("", "show runs/small"),
    ("", "data check photos"),
    ("", "keys server --host localhost"),
    ("", "keys node a"),
    ("", "keys list"),
    ("", "federate link --keys keys"),
    ("", "federate node --keys keys --name a --clients 0 --state-dir state --data folder:photos"),
    ("", "federate register keys/a.pub --clients 0 --keys keys"),
    ("", "federate unregister 3 --keys keys"),
    ("", "federate stop --keys keys"),
    ("matplotlib", "report runs/small"),
)
SCRIPT = """
import json, sys
from feddlp import cli
from feddlp.federation.flower import control, machines, processes

machines.check_free = processes.run_shown = processes.keep_running = lambda *_: None
control.Control.ask = lambda *_: {"node-id": "3", "runs": []}
commands, heavy = map(json.loads, sys.argv[1:])
for command in commands:
    sys.argv = ["feddlp", *command.split()]
    code = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = stop.code
    print("LOADED", json.dumps([code, [name for name in heavy if name in sys.modules]]))
"""


def test_commands_that_only_read_load_nothing_heavy(feddlp, tmp_path):
    assert feddlp("run", "methods=zero_shot", "training.rounds=1", "name=small").code == 0
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (8, 6)).save(tmp_path / "photos" / name / "a.png")
    command = [sys.executable, "-c", SCRIPT, json.dumps([words for _, words in COMMANDS]), json.dumps(HEAVY)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True, timeout=120)
    found = [json.loads(line.split(" ", 1)[1]) for line in done.stdout.splitlines() if line.startswith("LOADED")]
    before: set[str] = set()
    for (needed, words), (code, loaded) in zip(COMMANDS, found, strict=True):
        new, before = set(loaded) - before, set(loaded)
        assert not code, (words, done.stderr)
        assert new == set() if not needed else needed in new, words
