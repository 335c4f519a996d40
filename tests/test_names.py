"""Names from outside reach terminals, tables, cards and pages with escapes, and obey nobody there."""

from __future__ import annotations

import csv
import io
import unicodedata
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feddlp import cli
from feddlp.data.source import LeftOut
from feddlp.errors import UserError
from feddlp.inference import ClassScore, Prediction
from feddlp.names import csv_text, in_order, nfc, printable, read_classes
from feddlp.printing import predictions, scores
from feddlp.progress import Console, LiveReporter, PlainReporter, shown
from feddlp.records import RunFolder
from feddlp.report.tables import text_table

FORBIDDEN = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")
WICKED = st.text(st.characters(categories=FORBIDDEN) | st.sampled_from("=+-@[]/abc,\"' \x1b\u202e\t\n"))


def forbidden(text: str, keep: str = "\n") -> set[str]:
    return {sign for sign in text if unicodedata.category(sign) in FORBIDDEN} - set(keep)


def printed(*things: object, reporter: type[PlainReporter] = PlainReporter) -> str:
    """What a console writes to stdout, and a reporter of it."""
    with redirect_stdout(io.StringIO()) as out:
        console = Console(width=500)
        for thing in things:
            console.print(thing)
            reporter(console).line(str(thing))
    return out.getvalue()


@given(WICKED)
def test_printable_text_is_readable_and_says_what_was_there(name):
    text = printable(name)
    assert not forbidden(text, "")
    assert printable(text) == text
    text.encode()
    plain = "\\" not in name
    assert not plain or text.encode("ascii", "backslashreplace").decode("unicode_escape") == name


def test_names_in_any_script_stay_as_they_are():
    for name in ("größe", "猫 🐈", "пёс", "قطة", "a-b_c (2).png", "e\u0301"):
        assert printable(name) == name


@given(WICKED)
def test_no_door_lets_a_name_command_a_terminal(name):
    table = text_table(name, [name, "n"], [[name, "1"]], name)
    assert not forbidden(printed(name, table))
    assert not forbidden(printed(name, reporter=LiveReporter))
    prediction, score = Prediction(name, ((name, 0.5),)), ClassScore(name, 1, 1)
    for form in ("text", "csv", "json"):
        text = "".join(predictions([prediction], form)) + scores([score], form)
        assert not forbidden(text), form
    with redirect_stdout(io.StringIO()) as out, redirect_stdout(shown(out)):
        print(name)
    assert not forbidden(out.getvalue(), "\n\t")


@given(WICKED)
def test_an_error_is_one_line_whatever_it_names(name):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stderr", err := io.StringIO())
        with pytest.raises(SystemExit):
            cli.fail(f"error: {name}", 2)
    assert err.getvalue().count("\n") == 1
    assert not forbidden(err.getvalue())


def test_markup_in_a_name_is_text():
    assert "[red]a[/red] [/] :cat:" in printed("[red]a[/red] [/] :cat:")


def test_a_console_still_colours_a_terminal():
    with redirect_stdout(io.StringIO()) as out, redirect_stdout(shown(out)):
        Console(force_terminal=True, color_system="standard").print("x", style="red")
    assert out.getvalue() == "\x1b[31mx\x1b[0m\n"


@given(st.lists(st.tuples(WICKED, st.integers() | st.floats(allow_nan=False)), min_size=1))
def test_no_cell_for_people_is_a_formula_and_numbers_are_untouched(rows):
    found = list(csv.reader(io.StringIO(csv_text(rows))))
    assert [row[1] for row in found] == [str(number) for _, number in rows]
    for text, *_ in found:
        assert not text.startswith(("=", "+", "@", "\t", "\r"))
        assert not text.startswith("-") or text[1:].isdecimal()
        assert not forbidden(text, "")


def test_images_left_out_are_listed_for_people(tmp_path):
    RunFolder(tmp_path).write_left_out([LeftOut("=cmd|'/c calc'!A0.png", "\x1b]0;x\x07"), LeftOut("-1", "ok")])
    listed = (tmp_path / "left_out.csv").read_text()
    assert listed == "path,reason\n'=cmd|'/c calc'!A0.png,\\x1b]0;x\\x07\n-1,ok\n"


# Classes


@settings(max_examples=50)
@given(st.lists(st.sampled_from(["1", "2", "10", "010", "-3", "x", "9" * 5000]), unique=True))
def test_the_order_of_classes_does_not_depend_on_how_they_come(names):
    assert in_order(names) == in_order(reversed(names))
    if "x" not in names:
        assert [len(name) for name in in_order(names) if name in ("2", "10", "9" * 5000)] == sorted(
            len(name) for name in names if name in ("2", "10", "9" * 5000)
        )


@given(st.lists(st.text(max_size=3), unique=True))
def test_two_ways_to_write_a_class_are_refused_or_become_two_names_in_nfc(written):
    try:
        names = read_classes("folder:x", written)
    except UserError:
        assert len({nfc(name.replace("_", " ").replace("-", " ")) for name in written}) < len(written)
    else:
        assert list(names) == written
        assert len(set(names.values())) == len(written)
        assert all(nfc(name) == name for name in names.values())


def test_the_process_is_given_back_its_streams(monkeypatch, capsys):
    import sys

    before = sys.stdout, sys.stderr
    monkeypatch.setattr("sys.argv", ["feddlp", "datasets"])
    cli.main()
    assert (sys.stdout, sys.stderr) == before
    assert "folder" in capsys.readouterr().out


def test_a_file_with_a_wicked_name_is_shown_in_one_line(monkeypatch, capsys, tmp_path):
    for kind in ("cat", "dog"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "a\nunreadable: 0\x1b[8m.png").write_bytes(b"")
    monkeypatch.setattr("sys.argv", ["feddlp", "data", "check", str(tmp_path)])
    with pytest.raises(SystemExit):
        cli.main()
    said = capsys.readouterr()
    assert f"  {Path(tmp_path) / 'cat'}/a\\nunreadable: 0\\x1b[8m.png (the file is empty)" in said.out
    assert not forbidden(said.out + said.err)


def test_class_names_that_are_decimal_numbers_are_ordered_by_size():
    assert in_order(["10.5", "2.5", "1.5", "-3"]) == ["-3", "1.5", "2.5", "10.5"]
    assert in_order(["10", "2", "1e1"]) == ["10", "1e1", "2"]
