"""Many runs from one file: methods x settings x seeds, with a grid that is searched on validation data.

    for each setting (a combination of what `vary` lists)
        for each method
            tune:  every trial of the grid on the tuning seeds; the best on validation data is chosen
            run:   the chosen trial on every seed
            (a tuning run that was chosen is carried on, not repeated)

The state of a sweep is its run folders and nothing else, so an interrupted sweep goes on where it stopped, finished
runs are not repeated, and one that fails is named and left behind. Runs of a method that differ only in seed, learning
rate, kd_weight or gate threshold train side by side on the client axis.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from feddlp import materials as preparation
from feddlp.config import Config, Table, read_table, validate
from feddlp.errors import UserError
from feddlp.experiment import Entry, Reporter, missing_rounds, open_folder, play
from feddlp.hyperparameters import base_of
from feddlp.materials import Materials
from feddlp.methods import registry
from feddlp.methods.base import STACKABLE
from feddlp.records import RunFolder, write_atomically
from feddlp.sweepfile import Job, Sweep, Trial, job_config, job_name, slug

LAST_ROUNDS = 3


def identity(config: Config) -> tuple[str, ...]:
    """What makes a run what it is: all that decides its results, and where its data and model come from."""
    return config.fingerprint(), config.data.dataset, config.model.checkpoint


def open_run(config: Config, tuning: bool = False) -> RunFolder:
    """The run's folder, made where it is new; one that has fewer rounds is given more.

    Raises:
        UserError: the folder holds a run with another configuration, or with more rounds (unless `tuning`).
    """
    path = Path(config.runs_dir) / config.name
    if not (path / "config.toml").exists():
        path.mkdir(parents=True, exist_ok=True)
        write_atomically(path / "config.toml", config.to_toml().encode())
        return RunFolder(path)
    found = validate(read_table(path / "config.toml"))
    if identity(found) != identity(config):
        raise UserError(f"{path} holds a run with another configuration; give the sweep another name")
    if found.training.rounds > config.training.rounds and not tuning:
        raise UserError(f"{path} holds a run of {found.training.rounds} rounds; give the sweep another name")
    if found.training.rounds < config.training.rounds:
        write_atomically(path / "config.toml", config.to_toml().encode())
    return RunFolder(path)


@dataclass
class Runner:
    """A sweep in progress."""

    sweep: Sweep
    reporter: Reporter
    failed: dict[str, str]

    def run(self) -> dict[str, Any]:
        """Bring the sweep to its end; what was chosen, which runs make up the result, what failed."""
        chosen: list[dict[str, Any]] = []
        for index, setting in enumerate(self.sweep.settings()):
            self.reporter.note(f"setting {index + 1} of {len(self.sweep.settings())}: {slug(setting)}")
            materials = Lazy(partial(self._prepare, index))
            for method in self.sweep.methods:
                trial, scores = self._tune(index, method, materials)
                jobs = [Job(index, method, trial, seed, None) for seed in self.seeds(method)]
                self._play(jobs, materials)
                chosen.append(self._summary(setting, method, trial, scores, jobs))
        return {"choices": chosen, "failed": self.failed}

    def seeds(self, method: str) -> list[int]:
        """The run seeds; one is enough for a method that trains nothing."""
        trains = bool(registry()[base_of(method, self.sweep.config.get("method", {}))]().adapters())
        return self.sweep.seeds if trains else self.sweep.seeds[:1]

    def _prepare(self, setting: int) -> Materials:
        job = Job(setting, self.sweep.methods[0], self.sweep.trials(self.sweep.methods[0])[0], 0, None)
        return preparation.prepare(job_config(self.sweep, job), self.reporter)

    def _tune(self, setting: int, method: str, materials: Lazy) -> tuple[Trial, dict[str, float | None]]:
        """The trial with the best validation accuracy, and the score of each; the first wins a tie."""
        trials = self.sweep.trials(method)
        if len(trials) == 1:
            return trials[0], {}
        rounds = self.sweep.tune.rounds or None
        jobs = {trial: [Job(setting, method, trial, s, rounds) for s in self.sweep.tune.seeds] for trial in trials}
        self._play([job for row in jobs.values() for job in row], materials)
        scores = {trial: self._validation(row) for trial, row in jobs.items()}
        best = max(trials, key=lambda trial: float("-inf") if scores[trial] is None else float(scores[trial] or 0))
        if scores[best] is None:
            self.reporter.warn(f"{method}: no trial has a validation accuracy, so the first one is taken")
        return best, {job_name(row[0]).rpartition("_")[0]: scores[trial] for trial, row in jobs.items()}

    def _validation(self, jobs: Sequence[Job]) -> float | None:
        """Mean pooled validation accuracy over the last rounds and the tuning seeds, in %; None where a run failed."""
        scores = []
        for job in jobs:
            config = job_config(self.sweep, job)
            folder = open_run(config, tuning=True)
            if str(folder.path) in self.failed:
                return None
            rows = folder.read_rounds()[: config.training.rounds]
            if len(rows) < config.training.rounds or not rows[-1]["validation"]:
                return None
            last = [float(row["validation"]["pooled"]) for row in rows[-LAST_ROUNDS:]]
            scores.append(sum(last) / len(last))
        return sum(scores) / len(scores)

    def _play(self, jobs: Sequence[Job], materials: Lazy) -> None:
        """Play what is not finished, in bundles that can train side by side."""
        waiting = []
        for job in jobs:
            config = job_config(self.sweep, job)
            entry = Entry(open_run(config, tuning=job.rounds is not None), config)
            if self._waits(entry):
                waiting.append(entry)
        for bundle in bundles(waiting, self.sweep.side_by_side):
            self._attempt(bundle, materials)

    def _waits(self, entry: Entry) -> bool:
        """Whether a run is still to be played; one with a damaged record is left behind."""
        if str(entry.folder.path) in self.failed:
            return False
        try:
            entry.folder.checkpoint_state(entry.config.methods[0])
            return not finished(entry)
        except UserError as error:
            self._leave(entry, error)
            return False

    def _leave(self, entry: Entry, error: Exception) -> None:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        self.failed[str(entry.folder.path)] = text
        self.reporter.warn(f"{entry.folder.path} failed and is left behind: {text}")

    def _attempt(self, bundle: Sequence[Entry], materials: Lazy) -> None:
        """One bundle; where it fails, each of its runs by itself, so that one does not spoil the others."""
        name = bundle[0].config.methods[0]
        self.reporter.note(f"{name}: {', '.join(entry.folder.path.name for entry in bundle)}")
        try:
            play_together(bundle, name, materials.get(), self.reporter)
        except Exception as error:
            if len(bundle) > 1:
                for entry in bundle:
                    self._attempt([entry], materials)
                return
            self._leave(bundle[0], error)

    def _summary(
        self, setting: Table, method: str, trial: Trial, scores: Mapping[str, float | None], jobs: Sequence[Job]
    ) -> dict[str, Any]:
        paths = [Path(config.runs_dir) / config.name for config in (job_config(self.sweep, job) for job in jobs)]
        runs = [str(path.relative_to(self.sweep.folder)) for path in paths if str(path) not in self.failed]
        return {"setting": setting, "method": method, "chosen": dict(trial), "validation": dict(scores), "runs": runs}


class Lazy:
    """Materials that are prepared when they are first needed, and kept."""

    def __init__(self, make: Callable[[], Materials]):
        self.make = make
        self.made: Materials | None = None

    def get(self) -> Materials:
        self.made = self.made or self.make()
        return self.made


def finished(entry: Entry) -> bool:
    """Whether a run has all the rounds that its configuration asks for now, and those who join at its end."""
    welcomed = not entry.config.data.newcomers or set(entry.config.methods) <= entry.folder.read_newcomers().keys()
    return welcomed and not missing_rounds(entry.folder, entry.config)


def bundles(entries: Sequence[Entry], most: int) -> Iterator[list[Entry]]:
    """Entries that can train side by side, at most so many: same rounds to play, same round reached, same fields."""
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        (name,) = entry.config.methods
        state = entry.folder.checkpoint_state(name)
        method = entry.config.build_methods()[name]
        fixed = {key: value for key, value in vars(method).items() if key not in STACKABLE}
        alone = str(entry.folder.path) if fixed.get("compact") else ""  # ranks are taken away by the widest client
        key = [name, state["round"] if state else 0, entry.config.training.rounds, alone, fixed]
        groups.setdefault(json.dumps(key), []).append(entry)
    for group in groups.values():
        for start in range(0, len(group), most):
            yield group[start : start + most]


def play_together(bundle: Sequence[Entry], name: str, materials: Materials, reporter: Reporter) -> None:
    with ExitStack() as stack:
        for entry in bundle:
            stack.enter_context(entry.folder.locked())
            open_folder(entry, materials, reporter)
        play(bundle, name, materials, reporter)


def run_sweep(sweep: Sweep, reporter: Reporter, keep: bool = False) -> dict[str, Any]:
    """Play a sweep to its end, and write what it found to sweep.json in its folder.

    Args:
        keep: what an earlier sweep in this folder wrote there, of other methods and settings, stays.

    Raises:
        UserError: another process is at work on it.
    """
    try:
        sweep.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(sweep.folder / ".lock", timeout=0):
            result = Runner(sweep, reporter, {}).run()
            kept = earlier(sweep, result["choices"]) if keep else []
            record = {**result, "choices": kept + result["choices"]}
            write_atomically(sweep.folder / "sweep.json", json.dumps(record, indent=1).encode())
    except Timeout as error:
        raise UserError(f"{sweep.folder} is in use by another feddlp process; wait for it or stop it") from error
    except OSError as error:
        raise UserError(f"runs_dir={sweep.runs_dir}: cannot write there ({error.strerror})") from error
    return result


def earlier(sweep: Sweep, choices: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What sweep.json holds of methods and settings that are not among `choices`."""
    file = sweep.folder / "sweep.json"
    known = [(choice["setting"], choice["method"]) for choice in choices]
    recorded = json.loads(file.read_text(encoding="utf-8"))["choices"] if file.exists() else []
    return [choice for choice in recorded if (choice["setting"], choice["method"]) not in known]
