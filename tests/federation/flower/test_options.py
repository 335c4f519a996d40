"""What messages advise can be done."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import click
import pytest
import typer

import feddlp
from feddlp import cli

ROOT = Path(feddlp.__file__).parent
FILES = sorted([*(ROOT / "federation/flower").glob("*.py"), *(ROOT / "commands").glob("*.py")])
RAISED = {"UserError", "RefusedError", "StoppedByUser", "SomeFailed"}


def options(command: click.Command) -> set[str]:
    """Those of a command and of all below it."""
    found = {name for parameter in command.params for name in parameter.opts}
    return found.union(*map(options, getattr(command, "commands", {}).values()))


def texts(tree: ast.AST):
    """What a file says in its errors."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in RAISED:
            for part in ast.walk(node):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield part.value


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_options_that_messages_name_exist(file):
    known = options(typer.main.get_command(cli.app)) | {"--help", "--version"}
    named = {option for text in texts(ast.parse(file.read_text())) for option in re.findall(r"--[a-z][a-z-]*", text)}
    assert named <= known


@pytest.mark.parametrize("guide", ["README.md", "docs/flower.md", "examples/flower/compose.yaml"])
def test_commands_of_the_guide_exist_with_their_options(guide):
    """Every `feddlp ...` line, continued lines included."""
    text = (ROOT.parent.parent / guide).read_text().replace("\\\n", " ")
    root = typer.main.get_command(cli.app)
    for line in re.findall(r"feddlp ((?:federate|keys) [a-z]+[^\n#`|]*)", text):
        group, name, *words = line.split()
        command = root.commands[group].commands[name]
        asked = {word.strip("',\"();") for word in words if word.startswith("--")}
        assert asked <= options(command), line
