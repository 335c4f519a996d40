"""Plant single-token faults in the core, one at a time, and see which of them the fast tests find.

    python tools/mutants.py                     # 100 faults, seed 0; prints the share found and every survivor
    python tools/mutants.py --count 20 --seed 7 --only training

Each fault lives in a copy of the source. The tests that mirror its file run first, then those of its package, then all
fast tests, each only if the fault was not found before; what nothing finds is read by a person: it is equivalent, or a
test is missing.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import shutil
import subprocess
import sys
import tempfile
import tokenize
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
CORE = (
    "data",
    "model",
    "methods",
    "training",
    "federation",
    "evaluation.py",
    "records.py",
    "randomness.py",
    "config.py",
)
NOT_CORE = ("federation/flower",)
NOT_CODE = ("import ", "from ", "@", "def ")
SWAPS = {
    "+": "-", "-": "+", "*": "/", "/": "*", "//": "/", "%": "*", "<": "<=", "<=": "<", ">": ">=", ">=": ">",
    "==": "!=", "!=": "==", "and": "or", "or": "and", "True": "False", "False": "True", "min": "max", "max": "min",
    "any": "all", "all": "any", "not": "", "0": "1", "1": "2", "+=": "-=", "-=": "+=", "in": "not in", "is": "is not",
}  # fmt: skip


class Fault(NamedTuple):
    """One token to be replaced."""

    file: str  # below src/feddlp
    line: int
    column: int
    token: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column + 1} {self.token!r} -> {SWAPS[self.token]!r}"

    def planted(self, text: str) -> str:
        lines = text.splitlines(keepends=True)
        line = lines[self.line - 1]
        lines[self.line - 1] = line[: self.column] + SWAPS[self.token] + line[self.column + len(self.token) :]
        return "".join(lines)


def faults(source: Path) -> Iterator[Fault]:
    """Every fault that can be planted in the core; imports, annotations and texts are left out."""
    files = [
        path for name in CORE for path in sorted({source / name, *(source / name).rglob("*.py")}) if path.is_file()
    ]
    for path in files:
        file = str(path.relative_to(source))
        if file.startswith(NOT_CORE):
            continue
        text = path.read_text(encoding="utf-8")
        for found in tokenize.generate_tokens(io.StringIO(text).readline):
            plain = found.type in (tokenize.OP, tokenize.NAME, tokenize.NUMBER)
            if (
                plain
                and found.string in SWAPS
                and not found.line.lstrip().startswith(("import ", "from ", "@", "def "))
            ):
                fault = Fault(file, *found.start, found.string)
                if compiles(fault.planted(text)):
                    yield fault


def compiles(text: str) -> bool:
    try:
        compile(text, "planted", "exec")
    except SyntaxError:
        return False
    return True


def stages(fault: Fault) -> Iterator[list[str]]:
    """Which tests to run, the likeliest first."""
    path = Path(fault.file)
    mirror = ROOT / "tests" / path.parent / f"test_{path.name}"
    if mirror.is_file():
        yield [str(mirror)]
    if path.parent.name:
        yield [str(ROOT / "tests" / path.parent)]
    yield [str(ROOT / "tests")]


def found_by(fault: Fault) -> str:
    """The tests that find a fault; empty where none does."""
    with tempfile.TemporaryDirectory() as place:
        source = Path(place) / "src"
        shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
        file = source / "feddlp" / fault.file
        file.write_text(fault.planted(file.read_text(encoding="utf-8")), encoding="utf-8")
        variables = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
        options = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider"]
        for tests in stages(fault):
            command = [sys.executable, "-m", "pytest", *options, *tests]
            done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
            if done.returncode:
                failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
                return failed[0].split(" - ")[0] if failed else f"exit code {done.returncode}"
    return ""


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="plant in files whose path begins so")
    options = parser.parse_args(words)
    known = [fault for fault in faults(ROOT / "src/feddlp") if fault.file.startswith(options.only)]
    chosen = random.Random(options.seed).sample(known, min(options.count, len(known)))
    survivors = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for fault, test in zip(chosen, pool.map(found_by, chosen), strict=True):
            print(f"{'found' if test else 'SURVIVED':<9} {fault}  {test}", flush=True)
            survivors += [] if test else [fault]
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} found ({len(known):,} can be planted)")


if __name__ == "__main__":
    main(sys.argv[1:])
