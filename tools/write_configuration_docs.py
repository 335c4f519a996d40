"""Write docs/configuration.md from the code; a test holds the file to it.

python tools/write_configuration_docs.py
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import feddlp
from feddlp.config import Config, options_model
from feddlp.methods import descriptions, registry

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
        elif name != "method":
            lines.append(row(name, field.default, field.description))
    return lines


def row(key: str, default: object, text: str | None) -> str:
    shown = ", ".join(default) if isinstance(default, tuple) else default
    return f"| `{key}` | {f'`{shown}`' if shown != '' else ''} | {text} |"


def method_rows() -> list[str]:
    common = set.intersection(*(set(options_model(name).model_fields) for name in registry()))
    lines = [
        "\n## Methods\n",
        "`method.KEY` sets a key for every method that has it, `method.NAME.KEY` for one method.\n",
        "All methods: "
        + ", ".join(describe("flora", key) for key in options_model("flora").model_fields if key in common)
        + ".\n",
    ]
    for name, text in descriptions().items():
        own = [describe(name, field.name) for field in fields(registry()[name]) if field.name not in common]
        lines.append(f"- **{name}**: {text}" + (f" Also: {', '.join(own)}." if own else ""))
    return lines


def describe(name: str, key: str) -> str:
    field = options_model(name).model_fields[key]
    choices = getattr(field.annotation, "__args__", ())
    return f"`{key}={field.default}`" + (f" (or {', '.join(map(str, choices[1:]))})" if choices else "")


def text() -> str:
    demo = (Path(feddlp.__file__).parent / "assets" / "demo.toml").read_text(encoding="utf-8")
    without = f"\nWithout a file, `feddlp run` starts from the demo instead of these defaults:\n\n```toml\n{demo}```\n"
    return HEAD + "\n".join(rows()) + "\n" + without + "\n".join(method_rows()) + "\n"


if __name__ == "__main__":
    TARGET.write_text(text(), encoding="utf-8")
