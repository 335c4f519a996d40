"""Write docs/configuration.md from the code; a test holds the file to it.

python tools/write_configuration_docs.py
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import feddlp
from feddlp.config import Config
from feddlp.hyperparameters import asset, options_model, variant_fields, variants
from feddlp.methods import registry
from feddlp.methods.base import GatedMethod, LoRAMethod, Method

TARGET = Path(__file__).parents[1] / "docs" / "configuration.md"
HEAD = """# Configuration

A TOML file, `key=value` words on the command line, or both; the words win. Unknown keys are errors. A complete file is
in every run folder. (Written by `tools/write_configuration_docs.py`.)

| key | default | |
|---|---|---|
"""


def rows() -> list[str]:
    lines = []
    for name, field in Config.model_fields.items():
        sections = getattr(field.annotation, "model_fields", None)
        if sections:
            lines += [row(f"{name}.{key}", inner.default, inner.description) for key, inner in sections.items()]
        elif name not in ("method", "own_methods", "rates"):
            lines.append(row(name, field.default, field.description))
    return lines


def row(key: str, default: object, text: str | None) -> str:
    shown = ", ".join(default) if isinstance(default, tuple) else default
    return f"| `{key}` | {f'`{shown}`' if shown != '' else ''} | {text} |"


def method_rows() -> list[str]:
    """The fields that families of methods have in common, and then each method with its own."""
    lines = [
        "\n## Methods\n",
        "`method.KEY` sets a key for every method that has it, `method.NAME.KEY` for one method. The docstrings in",
        "`src/feddlp/methods/` say what the keys mean.\n",
        f"- all methods: {listed('flora', own(Method))}.",
        f"- all methods with LoRA: {listed('flora', own(LoRAMethod))}.",
        f"- all methods with a gated LoRA: {listed('feddlp', own(GatedMethod))}.",
    ]
    common = {*own(Method), *own(LoRAMethod), *own(GatedMethod)}
    families: dict[type[Any], str] = {GatedMethod: ", with a gated LoRA", LoRAMethod: ", with LoRA", Method: ""}
    for name, method in registry().items():
        summary = (method.__doc__ or "").splitlines()[0].rstrip(".")
        family = next(text for base, text in families.items() if issubclass(method, base))
        mine = listed(name, [field.name for field in fields(method) if field.name not in common])
        lines.append(f"- **{name}**: {summary} ({mine or 'no keys of its own'}{family}).")
    return lines + variant_rows() + preset_rows()


def own(method: type[Any]) -> list[str]:
    """The fields that a class adds to its bases."""
    return [name for name in method.__annotations__ if name in {field.name for field in fields(method)}]


def listed(name: str, keys: list[str]) -> str:
    return ", ".join(describe(name, key) for key in keys)


def variant_rows() -> list[str]:
    """The named variants, with what makes them different."""
    lines = [
        "\n## Variants\n",
        "A variant is a method under a name of its own, with other values; `methods` may name it beside its method.",
        'Your own: `[method.my_variant]` with `variant_of = "feddlp"` and what is different.\n',
    ]
    for name, table in variants().items():
        values = ", ".join(f"`{key}={value}`" for key, value in variant_fields(name).items())
        lines.append(f"- **{name}** ({table['variant_of']}): {table['summary']} {values}.")
    return lines


def preset_rows() -> list[str]:
    """Where values come from that nobody gave."""
    lines = [
        "\n## Presets\n",
        "What a configuration leaves open is filled in by `preset`; every run folder holds the values that came of it.",
        "Learning rates go by tower and data set (`assets/presets.toml` in the package).\n",
    ]
    presets = {name: table for name, table in asset("presets.toml").items() if "summary" in table}
    return lines + [f"- **{name}**: {table['summary']}" for name, table in presets.items()]


def describe(name: str, key: str) -> str:
    field = options_model(name).model_fields[key]
    choices = getattr(field.annotation, "__args__", ())
    others = [str(choice) for choice in choices if choice != field.default]
    return f"`{key}={field.default}`" + (f" (or {', '.join(others)})" if others else "")


def text() -> str:
    demo = (Path(feddlp.__file__).parent / "assets" / "demo.toml").read_text(encoding="utf-8")
    without = f"\nWithout a file, `feddlp run` starts from the demo instead of these defaults:\n\n```toml\n{demo}```\n"
    return HEAD + "\n".join(rows()) + "\n" + without + "\n".join(method_rows()) + "\n"


if __name__ == "__main__":
    TARGET.write_text(text(), encoding="utf-8")
