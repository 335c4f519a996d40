"""Configuration: TOML plus `key=value` overrides, checked at the door.

Unknown keys are errors that name the nearest valid one. Everything that defines an algorithm (learning rate, ranks,
kd_weight) is a field of its method: `[method]` sets it for every method that has it, `[method.NAME]` for one; what is
left open comes from a preset (`hyperparameters`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tomli_w
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    ValidationError,
    model_validator,
)

from feddlp.config_values import Names, absolute_checkpoint, absolute_dataset, gibibytes
from feddlp.data.paper_sets import PAPER_SETS
from feddlp.data.partition import PartitionName, Splits
from feddlp.data.source import OnBadImage, Resizing
from feddlp.errors import UserError, nearest
from feddlp.files import MOST_TOML, parse_toml, read_given
from feddlp.hyperparameters import (
    CHECKED,
    PresetName,
    Setting,
    base_of,
    build_method,
    check_method_tables,
    demo,
    explain,
    options_model,
    resolve_preset,
    with_preset,
)
from feddlp.methods import find_again, registry
from feddlp.model import Adapt
from feddlp.names import is_text
from feddlp.provenance import Rate, check_tuning, is_open, recorded

if TYPE_CHECKING:
    from feddlp.methods.base import Method

Table = dict[str, Any]


PLACES = (
    "name", "runs_dir", "preset", "data.dataset", "data.on_bad_image", "model.checkpoint", "model.device",
    "training.rounds", "training.memory_limit", "training.wave", "training.client_store", "tune",
)  # fmt: skip
"""Keys that may change without changing the results of a round (but for rounding)."""


class Section(BaseModel):
    model_config = CHECKED


class DataConfig(Section):
    """Which images, and who holds them."""

    dataset: Annotated[str, AfterValidator(absolute_dataset)] = Field(
        "digits", description="a source with its argument, such as folder:photos; `feddlp datasets` lists them"
    )
    known_as: Literal["", "pets", "flowers", "aircraft", "dtd"] = Field(
        "", description="which of the paper's data sets the images are; decides its prompt and the preset's rates"
    )
    splits: Splits = Field(
        "merged", description="official splits: merged as in the paper, or kept = official, their test part for testing"
    )
    on_bad_image: OnBadImage = Field(
        "error", description="what becomes of images that cannot be read: an error, or left out and listed"
    )
    template: str = Field("", description="prompt with one {} for the class name; empty = the data set's own")
    train_template: str = Field("", description="prompt for training alone; empty = the same as for scoring")
    resize: Resizing = Field(
        "crop", description="crop = as the checkpoint's image processor does; squash = to a square, nothing cut off"
    )
    partition: PartitionName = Field(
        "dirichlet",
        description="dirichlet, pathological, iid, few_shot_iid, few_shot_pathological, or natural = as the data say",
    )
    clients: int = Field(10, ge=1, description="number of clients")
    dirichlet_beta: float = Field(0.1, gt=0, description="concentration of the Dirichlet; smaller = more skewed")
    classes_per_client: int = Field(2, ge=1, description="classes each client holds (pathological)")
    shots: int = Field(16, ge=1, description="samples of each class that a client gets (few_shot_*)")
    min_samples: int = Field(2, ge=2, description="fewest samples a client may hold")
    test_set: Literal["own", "common"] = Field(
        "own", description="own = each client keeps test samples; common = one set, held out first, for all clients"
    )
    test_share: float = Field(0.25, gt=0, lt=1, description="share of test samples, of each client or of the data set")
    validation_share: float = Field(0.1, ge=0, lt=1, description="validation samples, as a share of the training part")
    stratified: bool = Field(False, description="keep the shares of the classes when a client splits its samples")
    newcomers: int = Field(
        0, ge=0, description="clients, drawn by the partition seed, that join only when the federation is over"
    )
    partition_seed: int = Field(1, ge=0, lt=2**32, description="fixes partition and splits, whatever the run seed")

    @model_validator(mode="before")
    @classmethod
    def known_by_its_source(cls, values: Any) -> Any:
        """One of the paper's data sets under its own name need not be told twice."""
        kind = str(values.get("dataset", "")).partition(":")[0] if isinstance(values, dict) else ""
        return {"known_as": kind} | values if kind in PAPER_SETS else values


class ModelConfig(Section):
    """The frozen dual encoder."""

    checkpoint: Annotated[str, AfterValidator(absolute_checkpoint)] = Field(
        "tiny-clip",
        description="tiny-clip (embedded), the folder of a CLIP or SigLIP, or a hub name; see docs/checkpoints.md",
    )
    adapt: Adapt = Field("image", description="the tower that carries the adapters: image, text or both")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, ...")
    dtype: Literal["float32", "bfloat16", "float64"] = Field(
        "float32", description="of the frozen weights and of activations; adapters are kept in float32 at least"
    )


class TrainingConfig(Section):
    """The protocol, the same for every method."""

    rounds: int = Field(100, ge=1, description="communication rounds")
    local_epochs: int = Field(1, ge=1, description="passes over a client's training samples in a round")
    batch_size: int = Field(32, ge=1, description="samples of each client in a step")
    participation: float = Field(1.0, gt=0, le=1, description="share of the clients that take part in a round")
    report_rate: float = Field(1.0, ge=0, le=1, description="probability that a client's update reaches the server")
    newcomer_epochs: int = Field(1, ge=1, description="epochs of local training of clients that join at the end")
    memory_limit: Annotated[Literal["auto"] | float, BeforeValidator(gibibytes)] = Field(
        "auto", description="memory that the run may take, in GiB or as 512MiB; auto = half of what is free"
    )
    wave: int = Field(0, ge=0, description="clients that train side by side; 0 = as many as memory_limit allows")
    client_store: Literal["auto", "memory", "disk"] = Field(
        "auto", description="where clients wait for their next round; auto = in memory while that is small"
    )
    diagnostics: bool = Field(True, description="also score other ways to predict, on the test set, every round")


class DeploymentConfig(Section):
    """A federation over several machines; without effect where all clients are in one process."""

    wait: float = Field(600.0, gt=0, description="seconds to wait for the clients before the first round")
    deadline: float = Field(3600.0, gt=0, description="seconds that clients have for a round")
    grace: float = Field(90.0, ge=0, description="seconds to wait in a round for a client whose node went away")
    quorum: float = Field(0.5, gt=0, le=1, description="share of the clients asked that must answer, or the run stops")
    attempts: int = Field(3, ge=1, description="how often a client is asked in a round if its process dies")
    max_norm: float = Field(0.0, ge=0, description="largest L2 norm of a client's change to be averaged; 0 = any")
    max_samples: int = Field(1_000_000, ge=1, lt=2**53, description="most samples of a kind that a client may have")
    max_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="largest share of one client in an average of three or more; 1 = any; 0 = half where clients bring "
        "images of their own, so that nobody can check how many, else any",
    )


class Config(Section):
    """A complete run.

    `own_methods` and `rates` are written by a run. The former is read on this machine alone: code is never loaded from
    where somebody else's configuration says.
    """

    name: Annotated[str, BeforeValidator(lambda value: str(value))] = Field(
        "run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="the run folder's name"
    )
    runs_dir: str = Field("runs", description="where run folders are made")
    methods: Names = Field(("zero_shot", "local", "flora", "feddlp"), description="which methods, in this order")
    seed: int = Field(0, ge=0, description="the run seed: adapter starts and sample orders")
    preset: PresetName = Field(
        "auto", description="where open hyper-parameters come from: tuned, paper or authors; auto = by checkpoint"
    )
    tune: bool = Field(False, description="first choose learning rates on validation data, all from one short grid")
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    deployment: DeploymentConfig = DeploymentConfig()
    method: dict[str, Any] = Field(default_factory=dict, description="hyper-parameters of the methods")
    rates: dict[str, Rate] = Field(default_factory=dict, description="where the learning rates come from")
    own_methods: dict[str, dict[str, str]] = Field(default_factory=dict, description="files of methods of your own")

    def build_methods(self) -> dict[str, Method]:
        """The chosen methods with their fields.

        Raises:
            UserError: an unknown or repeated method, an unknown field, or a value out of range.
        """
        check_method_tables(self.methods, self.method)
        return {name: build_method(name, self.method, self.setting) for name in self.methods}

    @property
    def setting(self) -> Setting:
        """What the preset's values depend on."""
        preset = resolve_preset(self.preset, self.model.checkpoint)
        return Setting(preset, self.model.adapt, self.data.known_as, self.data.dirichlet_beta)

    def fingerprint(self) -> str:
        """A digest of what decides the results. Places may change, and so may the number of rounds.

        (The images, the weights and the code behind those places have fingerprints of their own, and what a preset
        decides is written out.)
        """
        table = self._table()
        for path in PLACES:
            section, _, key = path.rpartition(".")
            (table[section] if section else table).pop(key)
        table.pop("deployment")
        return hashlib.sha256(tomli_w.dumps(table).encode()).hexdigest()

    def to_toml(self) -> str:
        """Every key with its value, method fields included, and what a run records: a file that runs this again."""
        text = tomli_w.dumps(self._table() | recorded(self))
        if garbled := [line for line in text.split("\n") if not is_text(line)]:
            raise UserError(f"{garbled[0]}: not UTF-8, so no record can hold it; rename the file or folder")
        return text

    def _table(self) -> Table:
        table = self.model_dump(exclude={"rates", "own_methods"})
        table["method"] = {
            name: ({} if name in registry() else {"variant_of": base_of(name, self.method)}) | asdict(method)
            for name, method in self.build_methods().items()
        }
        for name in filter(partial(is_open, self), table["method"]):
            del table["method"][name]["lr"]
        return table


def valid_keys(model: type[BaseModel] = Config, section: str = "") -> dict[str, list[str]]:
    """Section ("" is the top) -> the names that are valid in it."""
    keys = {section: list(model.model_fields)}
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys.update(valid_keys(field.annotation, name))
    return keys


def parse_value(text: str) -> Any:
    """A TOML value; what is none is taken as a string, so that words need no quotes."""
    try:
        return parse_toml(f"value = {text}")["value"]
    except ValueError:
        return text


def apply_override(table: Table, override: str) -> None:
    """Set one dotted `key=value` in place. A common method key also wins over what the file says for one method."""
    key, equals, text = override.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        raise UserError(f"{override!r} is not an override; write key=value, for example training.rounds=5")
    target = table
    for part in path[:-1]:
        target = target.setdefault(part, {})
        if not isinstance(target, dict):
            raise UserError(
                f"{override}: {part} is a value, not a section; {nearest(part, filter(None, valid_keys()))}"
            )
    if isinstance(target.get(path[-1]), dict):
        raise UserError(f"{override}: {key.strip()} is a section; set one of its keys, as {key.strip()}.KEY=VALUE")
    target[path[-1]] = parse_value(text.strip())
    if path[0] == "method" and len(path) == 2:
        for own in target.values():
            if isinstance(own, dict):
                own.pop(path[1], None)


def validate(table: Table, own: bool = False) -> Config:
    """A checked configuration. own: it lies on this machine, and may say where methods are

    Raises:
        UserError: one line that names the first wrong key.
    """
    config = check_sections(with_preset(table))
    if own:
        find_again(config.own_methods)
    config.to_toml()
    check_tuning(config)
    return config


def recorded_config(path: Path) -> Config:
    """The config.toml of a run folder, complete as `Config.to_toml` wrote it; its methods are not built."""
    return check_sections(read_table(path))


def check_sections(table: Table) -> Config:
    """A configuration, all checked but the hyper-parameters of the methods.

    Raises:
        UserError: one line that names the first wrong key.
    """
    try:
        return Config(**table)
    except ValidationError as error:
        methods = {"method": [field for name in registry() for field in options_model(name).model_fields]}
        raise UserError(explain(error, "", valid_keys() | methods)) from error


def read_table(path: Path) -> Table:
    """A TOML file as a dictionary."""
    try:
        return parse_toml(read_given(path, MOST_TOML).decode("utf-8-sig"))
    except OSError as error:
        raise UserError(f"cannot read the configuration {path} ({error.strerror}); check the path") from error
    except ValueError as error:  # of the encoding too
        raise UserError(f"{path} is not valid TOML: {error}") from error


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """A file (the embedded demo where there is none) with overrides on top."""
    if path:
        return overridden(read_table(path), overrides, own=True)
    asked = [text.strip() for key, _, text in (word.partition("=") for word in overrides) if key.strip() == "preset"]
    return overridden(demo(asked[-1] if asked else "auto"), overrides)


def overridden(table: Table, overrides: Sequence[str], own: bool = False) -> Config:
    """A checked configuration, with overrides on top; own as in `validate`."""
    # A common method key first, so that it spares specific ones.
    for override in sorted(overrides, key=lambda override: override.partition("=")[0].count(".")):
        apply_override(table, override)
    if overrides:
        table.pop("rates", None)  # what was tuned, was tuned for the configuration as it was
    return validate(table, own)
