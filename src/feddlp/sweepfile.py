"""A sweep file: what it may say, and the configuration of each of its runs.

What is wrong is refused before anything is played, for every run that the file asks for.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, BaseModel, Field, ValidationError

from feddlp.config import Config, Table, read_table, validate
from feddlp.config_values import Names
from feddlp.errors import UserError
from feddlp.hyperparameters import CHECKED, base_of, explain, options_model, variant_fields
from feddlp.methods import registry

Trial = tuple[tuple[str, float], ...]
"""A point of the grid: (field, value) pairs; empty where there is nothing to choose."""

OWN = ("methods", "seed", "name", "runs_dir", "tune")
"""Keys of a run that the sweep itself sets."""


def distinct(values: list[Any]) -> list[Any]:
    if any(value in values[:place] for place, value in enumerate(values)):
        raise ValueError("a value is given twice")
    return values


Seeds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1), AfterValidator(distinct)]
Values = Annotated[list[Any], Field(min_length=1), AfterValidator(distinct)]


class Tuning(BaseModel):
    """What is chosen on validation data."""

    model_config = CHECKED

    grid: dict[str, Annotated[list[float], Field(min_length=1), AfterValidator(distinct)]] = Field(default_factory=dict)
    seeds: Seeds = [0]
    rounds: int = Field(0, ge=0)  # 0 = as many as the runs


class Sweep(BaseModel):
    """A checked sweep file."""

    model_config = CHECKED

    name: str = Field("sweep", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    runs_dir: str = "runs"
    methods: Names
    seeds: Seeds = [0, 1, 42]
    side_by_side: int = Field(3, ge=1)  # runs that train together at most
    config: dict[str, Any] = Field(default_factory=dict)
    vary: dict[str, Values] = Field(default_factory=dict)
    tune: Tuning = Tuning()

    @property
    def folder(self) -> Path:
        return Path(self.runs_dir).expanduser() / self.name

    def settings(self) -> list[Table]:
        """Every combination of what varies, as dotted keys and values."""
        return [dict(zip(self.vary, values, strict=True)) for values in itertools.product(*self.vary.values())]

    def trials(self, method: str) -> list[Trial]:
        """The part of the grid that a method has fields for; not those that make a variant what it is."""
        tables = self.config.get("method", {})
        if not self.trains(method):
            return [()]
        paths = [key.split(".") for key in self.vary]
        varied = {path[-1] for path in paths if path[:-1] in (["method"], ["method", method])}
        taken = variant_fields(method).keys() | tables.get(method, {}).keys() | varied
        free = options_model(base_of(method, tables)).model_fields.keys() - taken
        axes = [[(name, value) for value in values] for name, values in self.tune.grid.items() if name in free]
        return [tuple(point) for point in itertools.product(*axes)]

    def trains(self, method: str) -> bool:
        """Whether a method has anything to train."""
        return bool(registry()[base_of(method, self.config.get("method", {}))]().adapters())


class Job(NamedTuple):
    """One run of a sweep."""

    setting: int
    method: str
    trial: Trial
    seed: int
    rounds: int | None  # None = the setting's own


def load_sweep(path: Path) -> Sweep:
    """A sweep file, checked; so is the configuration of every run in it.

    Raises:
        UserError: one line that names the first wrong key.
    """
    return check_sweep(read_table(path))


def check_sweep(table: Table) -> Sweep:
    """A sweep, checked; errors as `load_sweep`."""
    try:
        sweep = Sweep(**table)
    except ValidationError as error:
        raise UserError(
            explain(error, "", {"": list(Sweep.model_fields), "tune": list(Tuning.model_fields)})
        ) from error
    for key in (*sweep.config, *sweep.vary):
        if key in OWN:
            raise UserError(f"{key} is not for config or vary, each run of a sweep has its own; set it at the top")
    validate({**sweep.config, "methods": list(sweep.methods)})
    for name in sweep.tune.grid.keys() - known_fields(sweep):
        raise UserError(f"tune.grid.{name} is not a field of {', '.join(sweep.methods)}; see feddlp methods")
    folders = [slug(setting) for setting in sweep.settings()]
    for folder in folders:
        if folders.count(folder) > 1:
            raise UserError(f"vary: two settings would share the folder {folder}; make two sweeps of them")
    for setting in range(len(folders)):
        for method in sweep.methods:
            trials = sweep.trials(method)
            for trial in trials:
                config = job_config(sweep, Job(setting, method, trial, sweep.seeds[0], None))
            rounds = config.training.rounds
            if len(trials) > 1 and sweep.tune.rounds > rounds:
                raise UserError(f"tune.rounds={sweep.tune.rounds} is more than training.rounds={rounds}")
            if len(trials) > 1 and not config.data.validation_share:
                raise UserError("data.validation_share=0 leaves nothing to choose from tune.grid on; raise it")
    return sweep


def known_fields(sweep: Sweep) -> set[str]:
    """The fields of any method of the sweep."""
    tables = sweep.config.get("method", {})
    return {field for method in sweep.methods for field in options_model(base_of(method, tables)).model_fields}


def job_config(sweep: Sweep, job: Job) -> Config:
    """The complete configuration of one run."""
    table = json.loads(json.dumps(sweep.config))
    for key, value in sweep.settings()[job.setting].items():
        put(table, key, value)
    put(table, "methods", [job.method])
    tables, known = table.get("method", {}), known_fields(sweep)
    mine = options_model(base_of(job.method, tables)).model_fields
    # Common keys that only other methods of the sweep have are left out.
    table["method"] = {key: value for key, value in tables.items() if key not in known or key in mine}
    put(table, "seed", job.seed)
    for field, value in job.trial:
        put(table, f"method.{job.method}.{field}", value)
    put(table, "name", job_name(job))
    put(table, "runs_dir", str(sweep.folder / slug(sweep.settings()[job.setting]) / job.method))
    config = validate(table)
    if job.rounds is None:
        return config
    return config.model_copy(update={"training": config.training.model_copy(update={"rounds": job.rounds})})


def put(table: Table, key: str, value: Any) -> None:
    """Set a dotted key."""
    *path, last = key.split(".")
    for part in path:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise UserError(f"{key}: {part} is a value, not a section; write a key of the configuration")
    table[last] = value


def job_name(job: Job) -> str:
    return "_".join([*(f"{field}{value:g}" for field, value in job.trial), f"seed{job.seed}"])


def slug(setting: Mapping[str, Any]) -> str:
    """A setting as a folder's name, such as dirichlet_beta-0.1_adapt-image."""
    parts = []
    for key, value in setting.items():
        text = "".join(letter if letter.isalnum() or letter in ".-" else "-" for letter in str(value))
        parts.append(f"{key.rpartition('.')[2]}-{text}")
    return "_".join(parts) or "all"
