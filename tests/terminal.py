"""How the command line is looked at: what a command ended with, in this process or in one of its own.

A process of its own comes in two ways. `forked` is split off one that has loaded PyTorch and transformers and has done
nothing with them (the standard library's forkserver), which takes a hundredth of a second in place of six; `process`
is what a shell would start, for what depends on how a process begins.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

from feddlp import cli

LOADED = ["feddlp.api", "feddlp.bench.measure", "feddlp.printing", "feddlp.reproduce", "sklearn.datasets"]
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(LOADED)


class Ended(NamedTuple):
    code: int
    out: str
    err: str


class Begun:
    """A process that was split off; it hears Ctrl-C even where the tests run in the background.

    Args:
        words: the command line after "feddlp".
        cwd: where it runs.
        do: what it does in place of the command, with these words in sys.argv.
        variables: of its environment, beside those of the tests.
    """

    def __init__(self, *words: str, cwd: Path, do: Callable[[], object] = cli.main, **variables: str):
        self.folder = tempfile.TemporaryDirectory(prefix="said-")
        self.said = [Path(self.folder.name) / name for name in ("out", "err")]
        arguments = (["feddlp", *map(str, words)], cwd, do, {**os.environ, **variables}, self.said)
        self.process = FORKS.Process(target=live, args=arguments)
        self.process.start()

    def stop(self, how: int) -> None:
        os.kill(self.process.pid, how)

    def end(self, within: float = 300) -> Ended:
        """Wait for it. A code below 0 is the signal that ended it."""
        with self.folder:
            self.process.join(within)
            if self.process.exitcode is None:
                self.process.kill()
                self.process.join()
                raise TimeoutError(f"still running after {within:g} s")
            return Ended(self.process.exitcode, *(file.read_text() for file in self.said))


def live(
    words: list[str], cwd: Path, do: Callable[[], object], environment: Mapping[str, str], said: list[Path]
) -> None:
    """In the new process."""
    import torch

    for number, file in enumerate(said, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = words
    torch.set_num_threads(1)
    do()


def forked(*words: str, cwd: Path, do: Callable[[], object] = cli.main, **variables: str) -> Ended:
    """What a command ended with."""
    return Begun(*words, cwd=cwd, do=do, **variables).end()


def script(file: Path) -> Callable[[], object]:
    """What runs a Python file, for `forked`."""
    return partial(runpy.run_path, str(file), run_name="__main__")


def process(*words: str, cwd: Path, **variables: str) -> Ended:
    """What a command ended with that a shell would start."""
    command = [sys.executable, "-m", "feddlp", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env={**os.environ, **variables})
    return Ended(done.returncode, done.stdout, done.stderr)


def assert_mistake(ended: Ended, *parts: str) -> None:
    """Exit code 2, and one line that names what is wrong."""
    assert ended.code == 2
    assert ended.err.startswith("feddlp: error: ")
    assert ended.err.count("\n") == 1
    assert ended.err.endswith("\n")
    assert "Traceback" not in ended.err + ended.out
    for part in parts:
        assert part in ended.err
