"""The hyper-parameters of the methods: named variants, presets, and the checks that turn tables into methods.

A field takes its value from the first of these that has one:

    [method.NAME] field      of the user, for one method
    [method] field           of the user, for every method that has it
    the variant              assets/variants.toml, such as feddat_original, or a user's own [method.X] variant_of = NAME
    the preset               assets/presets.toml: learning rates that belong to a start of LoRA
    the default              of the method's class
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from feddlp.errors import UserError, nearest
from feddlp.methods import registry, summaries
from feddlp.model.hub import EMBEDDED

if TYPE_CHECKING:
    from feddlp.methods.base import Method

CHECKED = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # it becomes a folder's name
PresetName = Literal["auto", "tuned", "paper", "authors"]
Table = dict[str, Any]


class Setting(NamedTuple):
    """What a preset's values depend on."""

    preset: str
    adapt: str
    known_as: str  # one of the paper's data sets, or ""
    beta: float


@cache
def asset(name: str) -> Table:
    """One of the package's TOML files."""
    return tomllib.loads(files("feddlp").joinpath(f"assets/{name}").read_text("utf-8"))


def with_preset(table: Table) -> Table:
    """A configuration with what its preset decides outside of the methods, where it leaves that open."""
    found = sections_of(str(table.get("preset")))
    return table | {
        section: keys | own for section, keys in found.items() if isinstance(own := table.get(section, {}), dict)
    }


def demo(preset: str) -> Table:
    """The demo's configuration, less what the preset decides."""
    found = {section: dict(keys) if isinstance(keys, dict) else keys for section, keys in asset("demo.toml").items()}
    for section, keys in sections_of(preset).items():
        found[section] = {key: value for key, value in found[section].items() if key not in keys}
    return found


def variants() -> dict[str, Table]:
    """The named variants that come with the package."""
    return asset("variants.toml")


def descriptions() -> dict[str, str]:
    """One line for each method, from its docstring, and for each variant."""
    return summaries() | {name: table["summary"] for name, table in variants().items()}


def known_names(tables: Mapping[str, Any]) -> list[str]:
    """Everything that `methods` may name: methods, variants, and the user's own variants."""
    own = [name for name, table in tables.items() if isinstance(table, dict) and "variant_of" in table]
    return list(dict.fromkeys([*registry(), *variants(), *own]))


def base_of(name: str, tables: Mapping[str, Any]) -> str:
    """The method behind a name.

    Raises:
        UserError: a variant of something that is not a method, or a name that stands for something else already.
    """
    own = tables.get(name, {})
    fixed = variants().get(name, {}).get("variant_of", name)
    base = own.get("variant_of", fixed) if isinstance(own, dict) else name
    if base not in registry():
        raise UserError(f"method.{name}.variant_of={base} is not a method; {nearest(str(base), registry())}")
    if base != fixed and fixed in registry():
        raise UserError(f"method.{name}.variant_of={base}: {name} is {fixed} already; give the variant another name")
    return str(base)


def resolve_preset(preset: str, checkpoint: str) -> str:
    """The preset's own name in place of "auto".

    Raises:
        UserError: values tuned for the embedded model are asked for another one.
    """
    if preset == "auto":
        return "tuned" if checkpoint in EMBEDDED else "paper"
    if preset == "tuned" and checkpoint not in EMBEDDED:
        raise UserError(
            f"preset=tuned holds for {', '.join(EMBEDDED)} only, not for model.checkpoint={checkpoint}; "
            "use preset=paper or preset=authors"
        )
    return preset


def sections_of(preset: str) -> dict[str, Table]:
    """The keys outside of the methods that a preset sets, by section."""
    table = asset("presets.toml").get(preset, {})
    return {section: table[section] for section in ("data", "training") if section in table}


def preset_fields(setting: Setting, name: str, method: str) -> Table:
    """What a preset says of the fields of a method or a variant of it, learning rates included."""
    table = asset("presets.toml")
    preset, tower = table[setting.preset], "text" if setting.adapt == "text" else "image"
    alike = table["same_rates"]
    if tower in preset:  # chosen for this tower, whatever the data
        rows = preset[tower]
        return dict(rows.get(name) or rows.get(method) or rows.get(alike.get(method), {}))
    rates = table["published"][tower]
    own = any(name in rates[key] for key in rates)
    row = alike.get(name) or (name if own else alike.get(method, method))
    column = 0 if setting.beta >= math.sqrt(0.1 * 0.01) else 1  # the nearer of the paper's two
    found: Table = preset.get("method", {}) | preset.get("one_method", {}).get(method, {})
    for source in (rates["any"], rates.get(setting.known_as, {})):
        if row in source:
            found["lr"] = source[row][column]
        if row == "feddlp" and "kd_weight" in source:
            found["kd_weight"] = source["kd_weight"][column]
    return found


def source_of(name: str, method: Method, tables: Mapping[str, Any], setting: Setting, data: str) -> tuple[str, bool]:
    """Where a learning rate comes from, in words, and whether it was chosen on validation data of these images."""
    base = base_of(name, tables)
    published = asset("presets.toml")["published"]["text" if setting.adapt == "text" else "image"]
    row = asset("presets.toml")["same_rates"].get(base, base)
    rate = preset_fields(setting, name, base).get("lr")
    if method.lr != (options_model(base).model_fields["lr"].default if rate is None else rate):
        return "as configured", False
    if rate is None:
        return "the method's default", False
    if setting.preset == "tuned":
        return "preset tuned: chosen for tiny-clip on the digits", data == "digits" and setting.adapt != "both"
    if {name, row} & published.get(setting.known_as, {}).keys():
        return f"preset {setting.preset}: published for {setting.known_as}", False
    return f"preset {setting.preset}: a middle of those published for other data", False


@cache
def options_model(name: str) -> type[BaseModel]:
    """A strict pydantic twin of a method's dataclass."""
    hints = get_type_hints(registry()[name], include_extras=True)
    twins: Table = {field.name: (hints[field.name], field.default) for field in fields(registry()[name])}
    return create_model(f"method.{name}", __config__=CHECKED, **twins)


def check_method_tables(methods: Sequence[str], tables: Mapping[str, Any]) -> None:
    """Every method exists, every common key is known to a chosen method, every table belongs to a method."""
    names = known_names(tables)
    for name in methods:
        if name not in names:
            raise UserError(f"methods: {name!r} is not known; {nearest(name, names)}")
        if methods.count(name) > 1:
            raise UserError(f"methods: {name!r} is given twice; name each method once")
    known = {field for name in methods for field in options_model(base_of(name, tables)).model_fields}
    for key, value in tables.items():
        if key in names and not NAME.fullmatch(key):
            raise UserError(f"method.{key}: a variant's name is made of letters, digits, '.', '_' and '-'; rename it")
        if isinstance(value, dict) and key not in names:
            raise UserError(f"method.{key} is not a method; {nearest(key, names)}")
        if isinstance(value, dict):
            build_method(key, {key: value})  # also where the method is not chosen: a mistyped key is never dropped
        elif key not in known:
            raise UserError(f"method.{key} is not an option of {', '.join(methods)}; {nearest(key, known)}")


def build_method(name: str, tables: Mapping[str, Any], setting: Setting | None = None) -> Method:
    """One method or variant, with the values of the user, the variant and the preset."""
    base = base_of(name, tables)
    twin = options_model(base)
    common = {key: value for key, value in tables.items() if not isinstance(value, dict)}
    given = (preset_fields(setting, name, base) if setting else {}) | variant_fields(name) | common
    chosen = {key: value for key, value in given.items() if key in twin.model_fields}
    chosen |= {key: value for key, value in tables.get(name, {}).items() if key != "variant_of"}
    try:
        return registry()[base](**twin(**chosen).model_dump())
    except ValidationError as error:
        raise UserError(explain(error, f"method.{name}.", {f"method.{name}": twin.model_fields})) from error
    except ValueError as error:
        raise UserError(f"method.{name}: {error}") from error


def variant_fields(name: str) -> Table:
    return {key: value for key, value in variants().get(name, {}).items() if key not in ("variant_of", "summary")}


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
    message = first["msg"].removeprefix("Value error, ")
    text = message[0].lower() + message[1:]
    return f"{key}={first['input']}: {text}{more}"
