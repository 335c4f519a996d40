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
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from feddlp import materials as preparation
from feddlp.completeness import missing_newcomers, missing_rounds
from feddlp.config import Config, Table, read_table, validate
from feddlp.errors import UserError
from feddlp.experiment import Entry, Reporter, open_folder, play
from feddlp.files import write_atomically
from feddlp.materials import Materials
from feddlp.methods.base import STACKABLE
from feddlp.provenance import Rate, code_of, own_methods
from feddlp.records import RunFolder
from feddlp.report.sweeps import is_sweep, read_result
from feddlp.sweepfile import Job, Sweep, Trial, job_config, job_name, slug

LAST_ROUNDS = 3


def identity(config: Config) -> tuple[str, ...]:
    """What makes a run what it is: all that decides its results, and where its data and model come from."""
    return config.fingerprint(), config.data.dataset, config.model.checkpoint


class OtherRunError(UserError):
    """The sweep file was changed, and what lies there is not what it asks for."""


def run_path(config: Config) -> Path:
    return Path(config.runs_dir) / config.name


def open_run(config: Config, tuning: bool = False) -> RunFolder:
    """The run's folder, which may have to be made yet; one that has fewer rounds is given more.

    Raises:
        OtherRunError: the folder holds a run with another configuration, or with more rounds (unless `tuning`).
        UserError: the folder's configuration is damaged.
    """
    path = run_path(config)
    if not (path / "config.toml").exists():
        return RunFolder(path)
    found = validate(read_table(path / "config.toml"))
    same_code = code_of(found.own_methods) == code_of(own_methods(config))
    if identity(found) != identity(config) or not same_code:
        raise OtherRunError(f"{path} holds a run with another configuration; use another name or runs_dir")
    if found.training.rounds > config.training.rounds and not tuning:
        raise OtherRunError(f"{path} holds a run of {found.training.rounds} rounds; use another name or runs_dir")
    if found.training.rounds < config.training.rounds:
        write_atomically(path / "config.toml", config.to_toml().encode())
    return RunFolder(path)


def make_folder(entry: Entry) -> None:
    """Make a run's folder where it is new."""
    if not entry.folder.config.exists():
        entry.folder.path.mkdir(parents=True, exist_ok=True)
        write_atomically(entry.folder.config, entry.config.to_toml().encode())


@dataclass
class Runner:
    """A sweep in progress."""

    sweep: Sweep
    reporter: Reporter
    save: Callable[[dict[str, Any]], None]
    failed: dict[str, str] = field(default_factory=dict)

    def run(self) -> dict[str, Any]:
        """Bring the sweep to its end; what was chosen, which runs make up the result, what failed."""
        chosen: list[dict[str, Any]] = []
        settings = self.sweep.settings()
        for index, setting in enumerate(settings):
            self.reporter.note(f"setting {index + 1} of {len(settings)}: {slug(setting)}")
            materials = Lazy(partial(self._prepare, index))
            try:
                for method in self.sweep.methods:
                    chosen.append(self._method(index, method, materials))
                    self.save({"finished": False, "choices": chosen, "failed": self.failed})
            except UnusableError as error:
                if len(settings) == 1:
                    raise
                self._leave(self.sweep.folder / slug(setting), error)
            check_same_material(self.sweep.folder, [choice for choice in chosen if choice["setting"] == setting])
        return {"finished": True, "choices": chosen, "failed": self.failed}

    def _method(self, index: int, method: str, materials: Lazy) -> dict[str, Any]:
        """One method in one setting: tuned, run, summed up."""
        trial, scores = self.tune(index, method, materials)
        jobs = [Job(index, method, trial, seed, None) for seed in self.seeds(method)]
        self._play(jobs, materials)
        for job in jobs:
            self._record_rate(job_config(self.sweep, job), trial, scores)
        return self._summary(self.sweep.settings()[index], method, trial, scores, jobs)

    def seeds(self, method: str) -> list[int]:
        """The run seeds; one is enough for a method that trains nothing."""
        return self.sweep.seeds if self.sweep.trains(method) else self.sweep.seeds[:1]

    def _prepare(self, setting: int) -> Materials:
        job = Job(setting, self.sweep.methods[0], self.sweep.trials(self.sweep.methods[0])[0], 0, None)
        return preparation.prepare(job_config(self.sweep, job), self.reporter)

    def tune(self, setting: int, method: str, materials: Lazy) -> tuple[Trial, dict[str, float | None]]:
        """The trial with the best validation accuracy, and the score of each; the first wins a tie."""
        trials = self.sweep.trials(method)
        if len(trials) == 1:
            return trials[0], {}
        rounds = self.sweep.tune.rounds or None
        jobs = {trial: [Job(setting, method, trial, s, rounds) for s in self.sweep.tune.seeds] for trial in trials}
        self._play([job for row in jobs.values() for job in row], materials)
        scores = {trial: self._validation(row) for trial, row in jobs.items()}
        best = max(trials, key=lambda trial: -math.inf if (score := scores[trial]) is None else score)
        missing = [job_name(jobs[trial][0]) for trial in trials if scores[trial] is None]
        if missing:
            self.reporter.warn(f"{method}: {len(missing)} of {len(trials)} trials have no score: {', '.join(missing)}")
        for name in self._edges(method, best):
            self.reporter.warn(
                f"{method}: the chosen {name} lies at the edge of tune.grid.{name}; a wider grid may be better"
            )
        return best, {job_name(row[0]).rpartition("_")[0]: scores[trial] for trial, row in jobs.items()}

    def _edges(self, method: str, chosen: Trial) -> list[str]:
        """The fields whose chosen value is the smallest or largest that was tried."""
        grid = self.sweep.tune.grid
        return [name for name, value in chosen if len(grid[name]) > 2 and value in (min(grid[name]), max(grid[name]))]

    def _record_rate(self, config: Config, trial: Trial, scores: Mapping[str, float | None]) -> None:
        """Write into a run's configuration that its learning rate was tuned, where it was."""
        (name,) = config.methods
        if not (rate := self.rate(name, trial, scores)) or str(path := run_path(config)) in self.failed:
            return
        found = validate(read_table(path / "config.toml"))
        if found.rates.get(name) != rate:
            told = found.model_copy(update={"rates": {name: rate}})
            write_atomically(path / "config.toml", told.to_toml().encode())

    def rate(self, method: str, trial: Trial, scores: Mapping[str, float | None]) -> Rate | None:
        """The chosen learning rate and what it was chosen from; None where none was."""
        if len(scores) < 2 or "lr" not in dict(trial):
            return None
        tried = [dict(trial)["lr"] for trial in self.sweep.trials(method)]
        known = [(lr, score) for lr, score in zip(tried, scores.values(), strict=True) if score is not None]
        return Rate(
            lr=dict(trial)["lr"],
            source=f"chosen on validation data from {len(self.sweep.tune.grid['lr'])} rates, the same for every method",
            tuned=True,
            edge="lr" in self._edges(method, trial),
            grid=[lr for lr, _ in known],
            scores=[score for _, score in known],
        )

    def _validation(self, jobs: Sequence[Job]) -> float | None:
        """Mean pooled validation accuracy over the last rounds and the tuning seeds, in %; None where a run failed."""
        scores = []
        for job in jobs:
            config = job_config(self.sweep, job)
            if str(run_path(config)) in self.failed:
                return None
            rows = RunFolder(run_path(config)).read_rounds()[: config.training.rounds]
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
            if entry := self._waits(config, tuning=job.rounds is not None):
                waiting.append(entry)
        for bundle in bundles(waiting, self.sweep.side_by_side):
            self._attempt(bundle, materials)

    def _waits(self, config: Config, tuning: bool) -> Entry | None:
        """The run, if it is still to be played; one with a damaged folder is left behind."""
        path = run_path(config)
        if str(path) in self.failed:
            return None
        try:
            entry = Entry(open_run(config, tuning), config)
            entry.folder.checkpoint_state(config.methods[0])
            return None if finished(entry) else entry
        except OtherRunError:
            raise
        except UserError as error:
            self._leave(path, error)
            return None

    def _leave(self, path: Path, error: Exception) -> None:
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        self.failed[str(path)] = " ".join(f"{kind}{error}".split())
        self.reporter.warn(f"{path} failed and is left behind: {self.failed[str(path)]}")

    def _attempt(self, bundle: Sequence[Entry], materials: Lazy) -> None:
        """One bundle; where it fails, each of its runs by itself, so that one does not spoil the others."""
        name = bundle[0].config.methods[0]
        self.reporter.note(f"{name}: {', '.join(entry.folder.path.name for entry in bundle)}")
        shared = materials.get()  # what is wrong with data or model is wrong with every run, and leaves no folder
        for entry in bundle:
            make_folder(entry)
        try:
            play_together(bundle, name, shared, self.reporter)
        except Exception as error:
            if len(bundle) > 1:
                for entry in bundle:
                    self._attempt([entry], materials)
                return
            self._leave(bundle[0].folder.path, error)

    def _summary(
        self, setting: Table, method: str, trial: Trial, scores: Mapping[str, float | None], jobs: Sequence[Job]
    ) -> dict[str, Any]:
        paths = [run_path(job_config(self.sweep, job)) for job in jobs]
        runs = [str(path.relative_to(self.sweep.folder)) for path in paths if str(path) not in self.failed]
        chosen = {"chosen": dict(trial), "edges": self._edges(method, trial), "validation": dict(scores)}
        return {"setting": setting, "method": method, **chosen, "runs": runs}


class UnusableError(UserError):
    """Data or model that no run of a setting can use."""


class Lazy:
    """Materials that are prepared when they are first needed, and kept."""

    def __init__(self, make: Callable[[], Materials]):
        self.make = make
        self.made: Materials | None = None

    def get(self) -> Materials:
        try:
            self.made = self.made or self.make()
        except UserError as error:
            raise UnusableError(str(error)) from error
        return self.made


def finished(entry: Entry) -> bool:
    """Whether a run has all the rounds that its configuration asks for now, and those who join at its end."""
    return not missing_rounds(*entry) and not missing_newcomers(*entry)


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
            before = read_result(sweep.folder).choices if keep and is_sweep(sweep.folder) else []
            save = partial(save_result, sweep.folder, before)
            result = Runner(sweep, reporter, save).run()
            save(result)
    except Timeout as error:
        raise UserError(f"{sweep.folder} is in use by another feddlp process; wait for it or stop it") from error
    except OSError as error:
        raise UserError(f"runs_dir={sweep.runs_dir}: cannot write there ({error.strerror})") from error
    return result


def save_result(folder: Path, before: Sequence[Mapping[str, Any]], result: Mapping[str, Any]) -> None:
    """Write sweep.json: the result so far, and what an earlier sweep found of other methods and settings."""
    known = [(choice["setting"], choice["method"]) for choice in result["choices"]]
    kept = [choice for choice in before if (choice["setting"], choice["method"]) not in known]
    record = {**result, "choices": kept + result["choices"]}
    write_atomically(folder / "sweep.json", json.dumps(record, indent=1).encode())


def check_same_material(folder: Path, choices: Sequence[Mapping[str, Any]]) -> None:
    """Refuse to set runs side by side that saw other images or weights.

    Raises:
        UserError: two runs differ; both are named.
    """
    first: tuple[Path, dict[str, Any]] | None = None
    for path in (folder / run for choice in choices for run in choice["runs"]):
        if not (seen := RunFolder(path).read_environment()):
            continue
        first = first or (path, seen)
        for key in ("data", "backbone"):
            if seen.get(key) != first[1].get(key):
                raise UserError(f"{path} and {first[0]} did not have the same {key}; use another name or runs_dir")
