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
from functools import cache, partial
from pathlib import Path
from typing import Any

from feddlp import materials as preparation
from feddlp.completeness import missing_newcomers, missing_rounds
from feddlp.config import read_table, validate
from feddlp.errors import UserError
from feddlp.experiment import Entry, Reporter, open_folder, play
from feddlp.files import held_alone, write_atomically
from feddlp.materials import Materials
from feddlp.methods.base import STACKABLE
from feddlp.provenance import Rate, code_of, own_methods
from feddlp.records import RunFolder
from feddlp.report.sweeps import Choice, Result, is_sweep, read_result
from feddlp.states import write
from feddlp.sweepfile import Job, Sweep, Trial, job_config, job_name, slug

LAST_ROUNDS = 3
Prepare = Callable[[], Materials]
"""Prepares the materials of a setting when they are first needed, and keeps them."""


class OtherRunError(UserError):
    """The sweep file was changed, and what lies there is not what it asks for."""


class UnusableError(UserError):
    """Data or model that no run of a setting can use."""


def adopt(entry: Entry, tuning: bool = False) -> None:
    """Check that what lies in a run's folder, if anything, is this run; one that has fewer rounds is given more.

    Raises:
        OtherRunError: the folder holds a run with another configuration, or with more rounds (unless `tuning`).
        UserError: the folder's configuration is damaged.
    """
    config, path, file = entry.config, entry.folder.path, entry.folder.config
    if not file.exists():
        return
    found = validate(read_table(file))
    places = {(each.fingerprint(), each.data.dataset, each.model.checkpoint) for each in (found, config)}
    if len(places) > 1 or code_of(found.own_methods) != code_of(own_methods(config)):
        raise OtherRunError(f"{path} holds a run with another configuration; use another name or runs_dir")
    if found.training.rounds > config.training.rounds and not tuning:
        raise OtherRunError(f"{path} holds a run of {found.training.rounds} rounds; use another name or runs_dir")
    if found.training.rounds < config.training.rounds:
        write_atomically(file, config.to_toml().encode())


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
            materials = self._prepared(index)
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

    def _method(self, index: int, method: str, materials: Prepare) -> dict[str, Any]:
        """One method in one setting: tuned, run, summed up."""
        trial, scores = self.tune(index, method, materials)
        seeds = self.sweep.seeds if self.sweep.trains(method) else self.sweep.seeds[:1]
        entries = [self._entry(Job(index, method, trial, seed, None)) for seed in seeds]
        self._play(entries, materials)
        for entry in entries:
            self._record_rate(entry, trial, scores)
        paths = [entry.folder.path for entry in entries if str(entry.folder.path) not in self.failed]
        return {
            "setting": self.sweep.settings()[index],
            "method": method,
            "chosen": dict(trial),
            "edges": self._edges(method, trial),
            "validation": dict(scores),
            "runs": [str(path.relative_to(self.sweep.folder)) for path in paths],
        }

    def _entry(self, job: Job) -> Entry:
        config = job_config(self.sweep, job)
        return Entry(RunFolder(Path(config.runs_dir) / config.name), config)

    def _prepared(self, setting: int) -> Prepare:
        method = self.sweep.methods[0]
        config = job_config(self.sweep, Job(setting, method, self.sweep.trials(method)[0], 0, None))

        @cache
        def prepared() -> Materials:
            try:
                return preparation.prepare(config, self.reporter)
            except UserError as error:
                raise UnusableError(str(error)) from error

        return prepared

    def tune(self, setting: int, method: str, materials: Prepare) -> tuple[Trial, dict[str, float | None]]:
        """The trial with the best validation accuracy, and the score of each; the first wins a tie."""
        trials = self.sweep.trials(method)
        if len(trials) == 1:
            return trials[0], {}
        rounds = self.sweep.tune.rounds or None
        jobs = {trial: [Job(setting, method, trial, s, rounds) for s in self.sweep.tune.seeds] for trial in trials}
        entries = {trial: [self._entry(job) for job in row] for trial, row in jobs.items()}
        self._play([entry for row in entries.values() for entry in row], materials, tuning=rounds is not None)
        scores = {trial: self._validation(row) for trial, row in entries.items()}
        best = max(trials, key=lambda trial: -math.inf if (score := scores[trial]) is None else score)
        missing = [job_name(jobs[trial][0]) for trial in trials if scores[trial] is None]
        if missing:
            self.reporter.warn(f"{method}: {len(missing)} of {len(trials)} trials have no score: {', '.join(missing)}")
        for name in self._edges(method, best):
            self.reporter.warn(
                f"{method}: the chosen {name} is the smallest or largest of those tried; a wider grid may be better"
            )
        return best, {job_name(row[0]).rpartition("_")[0]: scores[trial] for trial, row in jobs.items()}

    def _edges(self, method: str, chosen: Trial) -> list[str]:
        """The fields whose chosen value is the smallest or largest that was tried."""
        grid = self.sweep.tune.grid
        return [name for name, value in chosen if len(grid[name]) > 2 and value in (min(grid[name]), max(grid[name]))]

    def _record_rate(self, entry: Entry, trial: Trial, scores: Mapping[str, float | None]) -> None:
        """Write into a run's configuration that its learning rate was tuned, where it was."""
        (name,), file = entry.config.methods, entry.folder.config
        if not (rate := self.rate(name, trial, scores)) or str(entry.folder.path) in self.failed:
            return
        found = validate(read_table(file))
        if found.rates.get(name) != rate:
            write_atomically(file, found.model_copy(update={"rates": {name: rate}}).to_toml().encode())

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

    def _validation(self, entries: Sequence[Entry]) -> float | None:
        """Mean pooled validation accuracy over the last rounds and the tuning seeds, in %; None where a run failed."""
        scores = []
        for folder, config in entries:
            if str(folder.path) in self.failed:
                return None
            rows = folder.read_rounds()[: config.training.rounds]
            if len(rows) < config.training.rounds or not rows[-1]["validation"]:
                return None
            last = [float(row["validation"]["pooled"]) for row in rows[-LAST_ROUNDS:]]
            scores.append(sum(last) / len(last))
        return sum(scores) / len(scores)

    def _play(self, entries: Sequence[Entry], materials: Prepare, tuning: bool = False) -> None:
        """Play what is not finished, in bundles that can train side by side."""
        waiting = [entry for entry in entries if self._waits(entry, tuning)]
        for bundle in bundles(waiting, self.sweep.side_by_side):
            self._attempt(bundle, materials)

    def _waits(self, entry: Entry, tuning: bool) -> bool:
        """Whether a run lacks rounds or those who join at its end; one with a damaged folder is left behind."""
        if str(entry.folder.path) in self.failed:
            return False
        try:
            adopt(entry, tuning)
            entry.folder.check()
            return bool(missing_rounds(*entry) or missing_newcomers(*entry))
        except OtherRunError:
            raise
        except UserError as error:
            self._leave(entry.folder.path, error)
            return False

    def _leave(self, path: Path, error: Exception) -> None:
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        self.failed[str(path)] = " ".join(f"{kind}{error}".split())
        self.reporter.warn(f"{path} failed and is left behind: {self.failed[str(path)]}")

    def _attempt(self, bundle: Sequence[Entry], materials: Prepare) -> None:
        """One bundle; where it fails, each of its runs by itself, so that one does not spoil the others."""
        name = bundle[0].config.methods[0]
        self.reporter.note(f"{name}: {', '.join(entry.folder.path.name for entry in bundle)}")
        shared = materials()  # what is wrong with data or model is wrong with every run, and leaves no folder
        for folder, config in bundle:
            if not folder.config.exists():
                folder.path.mkdir(parents=True, exist_ok=True)
                write_atomically(folder.config, config.to_toml().encode())
        try:
            play_together(bundle, name, shared, self.reporter)
        except Exception as error:
            if len(bundle) > 1:
                for entry in bundle:
                    self._attempt([entry], materials)
                return
            self._leave(bundle[0].folder.path, error)


def bundles(entries: Sequence[Entry], most: int) -> Iterator[list[Entry]]:
    """Entries that can train side by side, at most so many: same rounds to play, same round reached, same fields."""
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        (name,) = entry.config.methods
        state = entry.folder.checkpoint_state(name)
        method = entry.config.build_methods()[name]
        fixed = {key: value for key, value in vars(method).items() if key not in STACKABLE}
        alone = str(entry.folder.path) if fixed.get("compact") else ""  # ranks are taken away by the widest client
        key = [name, state.round if state else 0, entry.config.training.rounds, alone, fixed]
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
        with held_alone(sweep.folder):
            before = read_result(sweep.folder).choices if keep and is_sweep(sweep.folder) else []
            save = partial(save_result, sweep.folder, before)
            result = Runner(sweep, reporter, save).run()
            save(result)
    except OSError as error:
        raise UserError(f"runs_dir={sweep.runs_dir}: cannot write there ({error.strerror})") from error
    return result


def save_result(folder: Path, before: Sequence[Choice], result: Mapping[str, Any]) -> None:
    """Write sweep.json: the result so far, and what an earlier sweep found of other methods and settings."""
    known = [(choice["setting"], choice["method"]) for choice in result["choices"]]
    kept = [choice for choice in before if (choice.setting, choice.method) not in known]
    write(folder / "sweep.json", Result(**{**result, "choices": kept + result["choices"]}))


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
