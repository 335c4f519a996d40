"""Configuration: TOML plus `key=value` overrides, checked at the door.

Unknown keys are errors that name the nearest valid one. Everything that defines an algorithm (learning rate, ranks,
kd_weight) is a field of its method: `[method]` sets it for every method that has it, `[method.NAME]` for one.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import tomli_w
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    create_model,
)

from feddlp.data.partition import PartitionName
from feddlp.errors import UserError, nearest
from feddlp.methods import registry
from feddlp.methods.base import Method
from feddlp.model.backbone import EMBEDDED, Tower

CHECKED = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
Table = dict[str, Any]


def split_names(value: Any) -> Any:
    """ "feddlp, flora" or ["feddlp", "flora"] -> ("feddlp", "flora")"""
    parts = value.split(",") if isinstance(value, str) else value
    return (
        tuple(part.strip() if isinstance(part, str) else part for part in parts) if isinstance(parts, list) else parts
    )


Names = Annotated[tuple[str, ...], BeforeValidator(split_names), PlainSerializer(", ".join), Field(min_length=1)]


def absolute_dataset(value: str) -> str:
    """folder:PATH with the path made absolute, so that a run can be resumed from anywhere."""
    kind, _, path = value.partition(":")
    return f"folder:{Path(path).expanduser().absolute()}" if kind == "folder" and path else value


def absolute_checkpoint(value: str) -> str:
    """A local folder made absolute; other names stay."""
    folder = Path(value).expanduser()
    return str(folder.absolute()) if value not in EMBEDDED and folder.is_dir() else value


class Section(BaseModel):
    model_config = CHECKED


class DataConfig(Section):
    """Which images, and who holds them."""

    dataset: Annotated[str, AfterValidator(absolute_dataset)] = Field(
        "digits", description="digits, or folder:PATH with one sub-folder per class"
    )
    template: str = Field("", description="prompt with one {} for the class name; empty = the data set's own")
    partition: PartitionName = Field("dirichlet", description="dirichlet, pathological or iid")
    clients: int = Field(10, ge=1, description="number of clients")
    dirichlet_beta: float = Field(0.1, gt=0, description="concentration of the Dirichlet; smaller = more skewed")
    classes_per_client: int = Field(2, ge=1, description="classes each client holds (pathological)")
    min_samples: int = Field(2, ge=2, description="fewest samples a client may hold")
    test_share: float = Field(0.25, gt=0, lt=1, description="each client's share of test samples")
    validation_share: float = Field(0.1, ge=0, lt=1, description="validation samples, as a share of the training part")
    partition_seed: int = Field(1, ge=0, lt=2**32, description="fixes partition and splits, whatever the run seed")


class ModelConfig(Section):
    """The frozen dual encoder."""

    checkpoint: Annotated[str, AfterValidator(absolute_checkpoint)] = Field(
        "tiny-clip", description="tiny-clip (embedded), a CLIP folder, or a hub name"
    )
    adapt: Tower = Field("image", description="the tower that carries the adapters: image or text")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, ...")
    dtype: Literal["float32", "bfloat16", "float64"] = Field(
        "float32", description="of the frozen weights and of activations; adapters are kept in float32 at least"
    )


class TrainingConfig(Section):
    """The protocol, the same for every method."""

    rounds: int = Field(100, ge=1, description="communication rounds")
    local_epochs: int = Field(1, ge=1, description="passes over a client's training samples in a round")
    batch_size: int = Field(32, ge=1, description="samples of each client in a step")


class Config(Section):
    """A complete run."""

    name: Annotated[str, BeforeValidator(lambda value: str(value))] = Field(
        "run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="the run folder's name"
    )
    runs_dir: str = Field("runs", description="where run folders are made")
    methods: Names = Field(("zero_shot", "local", "flora", "feddlp"), description="which methods, in this order")
    seed: int = Field(0, ge=0, description="the run seed: adapter starts and sample orders")
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    method: dict[str, Any] = Field(default_factory=dict, description="hyper-parameters of the methods")

    def build_methods(self) -> dict[str, Method]:
        """The chosen methods with their fields.

        Raises:
            UserError: an unknown or repeated method, an unknown field, or a value out of range.
        """
        check_method_tables(self.methods, self.method)
        return {name: build_method(name, self.method) for name in self.methods}

    def fingerprint(self) -> str:
        """A digest of what decides the results. Places may change, and so may the number of rounds.

        (The images and weights behind those places have fingerprints of their own.)
        """
        table = tomllib.loads(self.to_toml())
        for path in ("name", "runs_dir", "data.dataset", "model.checkpoint", "model.device", "training.rounds"):
            section, _, key = path.rpartition(".")
            (table[section] if section else table).pop(key)
        return hashlib.sha256(tomli_w.dumps(table).encode()).hexdigest()

    def to_toml(self) -> str:
        """Every key with its value, method fields included: a file that runs this again."""
        table = self.model_dump()
        table["method"] = {name: asdict(method) for name, method in self.build_methods().items()}
        return tomli_w.dumps(table)


@cache
def options_model(name: str) -> type[BaseModel]:
    """A strict pydantic twin of a method's dataclass."""
    hints = get_type_hints(registry()[name], include_extras=True)
    twins: Table = {field.name: (hints[field.name], field.default) for field in fields(registry()[name])}
    return create_model(f"method.{name}", __config__=CHECKED, **twins)


def check_method_tables(methods: Sequence[str], tables: Mapping[str, Any]) -> None:
    """Every method exists, every common key is known to a chosen method, every table belongs to a method."""
    for name in methods:
        if name not in registry():
            raise UserError(f"methods: {name!r} is not known; {nearest(name, registry())}")
        if methods.count(name) > 1:
            raise UserError(f"methods: {name!r} is given twice; name each method once")
    known = {field for name in methods for field in options_model(name).model_fields}
    for key, value in tables.items():
        if isinstance(value, dict) and key not in registry():
            raise UserError(f"method.{key} is not a method; {nearest(key, registry())}")
        if isinstance(value, dict):
            build_method(key, {key: value})  # also where the method is not chosen: a mistyped key is never dropped
        elif key not in known:
            raise UserError(f"method.{key} is not an option of {', '.join(methods)}; {nearest(key, known)}")


def build_method(name: str, tables: Mapping[str, Any]) -> Method:
    """One method from the common keys that it has and its own table."""
    twin = options_model(name)
    common = {key: value for key, value in tables.items() if not isinstance(value, dict) and key in twin.model_fields}
    try:
        return registry()[name](**twin(**{**common, **tables.get(name, {})}).model_dump())
    except ValidationError as error:
        raise UserError(explain(error, f"method.{name}.", {f"method.{name}": twin.model_fields})) from error


def explain(error: ValidationError, prefix: str, valid: Mapping[str, Any]) -> str:
    """A validation error as one line: the key, the value, what is wrong and what would be right."""
    first, others = error.errors()[0], error.error_count() - 1
    key = prefix + ".".join(str(part) for part in first["loc"])
    more = f" (and {others} more)" if others else ""
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        section, _, name = key.rpartition(".")
        elsewhere = [f"{other}.{name}" for other, names in valid.items() if name in names and other != section]
        hint = f"did you mean {elsewhere[0]}?" if elsewhere else nearest(name, valid.get(section, ()))
        return f"{key} is not a configuration key; {hint}{more}"
    text = first["msg"][0].lower() + first["msg"][1:]
    return f"{key}={first['input']}: {text}{more}"


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
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
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


def depth(override: str) -> int:
    return override.partition("=")[0].count(".")


def validate(table: Table) -> Config:
    """A checked configuration.

    Raises:
        UserError: one line that names the first wrong key.
    """
    try:
        config = Config(**table)
    except ValidationError as error:
        methods = {"method": [field for name in registry() for field in options_model(name).model_fields]}
        raise UserError(explain(error, "", valid_keys() | methods)) from error
    config.build_methods()
    return config


def read_table(path: Path) -> Table:
    """A TOML file as a dictionary."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the configuration {path} ({error.strerror}); check the path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from error


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """A file (the embedded demo where there is none) with overrides on top."""
    table = read_table(path) if path else tomllib.loads(files("feddlp").joinpath("assets/demo.toml").read_text("utf-8"))
    for override in sorted(overrides, key=depth):  # a common method key first, so that it spares specific ones
        apply_override(table, override)
    return validate(table)
