"""Tables of images: paths relative to the file, classes, clients and splits, and what can be wrong with a line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures_factory import resize, save

from feddlp.data.datasets import find, load
from feddlp.errors import UserError
from feddlp.names import in_order

LINES = ["path,label,client,split", "a.png,b_c,ann,train", "deep/b.png,a,bob,val", '"c, d.png",a,ann,Test']


@pytest.fixture
def write(tmp_path):
    for name in ("a.png", "deep/b.png", "c, d.png"):
        save(tmp_path / name)

    def make(*lines: str, encoding: str = "utf-8") -> str:
        (tmp_path / "table.csv").write_text("\n".join(lines) + "\n", encoding=encoding)
        return f"csv:{tmp_path / 'table.csv'}"

    return make


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_table_says_all_that_is_known_of_an_image(write, encoding):
    source = find(write(*LINES, encoding=encoding))
    assert source.class_names == ("a", "b c")
    assert source.labels == [1, 0, 0]
    assert source.clients == ["ann", "bob", "ann"]
    assert source.parts == ["train", "validation", "test"]
    assert load(source, resize).images.shape == (3, 3, 4, 4)


def test_clients_and_splits_may_be_left_out_and_other_columns_are_ignored(write):
    source = find(write("label,size,path", "x,1,a.png", "y,2,deep/b.png"))
    assert (source.clients, source.parts) == ((), ())
    assert [Path(picture.name).name for picture in source.pictures] == ["a.png", "b.png"]


def test_labels_that_are_numbers_are_in_their_order(write):
    assert find(write("path,label", "a.png,10", "b.png,9")).class_names == ("9", "10")
    assert find(write("path,label", "a.png,1", "b.png,-1", "c.png,10")).class_names == ("-1", "1", "10")


@given(st.permutations(["1", "01", "001", "2", "02", "-0", "0"]))
def test_labels_of_equal_number_have_an_order_as_well(labels):
    # a dictionary stands for a set whose order is known
    assert in_order(dict.fromkeys(labels)) == ["-0", "0", "001", "01", "1", "02", "2"]


@pytest.mark.parametrize("again", ["a.png", "./a.png", "deep/../a.png", "link.png", "linked/../a.png", " a.png "])
def test_a_file_that_stands_on_two_lines_is_refused(write, tmp_path, again):
    (tmp_path / "link.png").symlink_to("a.png")
    (tmp_path / "linked").symlink_to("deep")
    for path in (again, str(tmp_path / "a.png")):
        with pytest.raises(
            UserError, match=r"/a\.png and .* are the same file, once under 'train' .* 'test'; keep one"
        ):
            find(write("path,label,split", "a.png,x,train", "deep/b.png,y,test", f"{path},x,test"))


def test_quotes_may_stand_after_spaces(write):
    source = find(write("path, label", 'a.png, "melanoma, in situ"', 'deep/b.png,  "x ""y"" z"'))
    assert source.class_names == ("melanoma, in situ", 'x "y" z')


def test_the_delimiter_is_counted_outside_quotes(write):
    source = find(write('path,label,"a;b;c"', "a.png,x,1", "deep/b.png,y,2"))
    assert source.class_names == ("x", "y")
    assert find(write('"a,b,c, ""d"",";path;label', "1;a.png;x", "2;deep/b.png;y")).class_names == ("x", "y")


def test_labels_of_any_length_have_an_order(write):
    assert find(write("path,label", f"a.png,{'9' * 5000}", "b.png,10")).class_names[0] == "10"


def test_class_names_are_read_in_nfc(write):
    assert find(write("path,label", "a.png,cafe\u0301", "b.png,tea")).class_names == ("caf\u00e9", "tea")


def test_lines_that_say_the_same_of_one_file_count_once(write, tmp_path):
    (tmp_path / "hard.png").hardlink_to(tmp_path / "a.png")
    source = find(write("path,label", "a.png,x", "hard.png,x", "deep/b.png,y", "./a.png,x"))
    assert source.labels == [0, 1]
    assert [file.reason for file in source.ignored] == [f"the same file as {tmp_path}/a.png"] * 2
    with pytest.raises(UserError, match=r"/a\.png and .*/hard\.png are the same file, once under 'x' .* 'y'; keep one"):
        find(write("path,label", "a.png,x", "hard.png,y"))


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir])
def test_what_is_no_file_is_not_waited_for(tmp_path, make):
    make(tmp_path / "table.csv")
    with pytest.raises(UserError, match=r"cannot read .*table\.csv \((not a regular file|Is a directory)\)"):
        find(f"csv:{tmp_path / 'table.csv'}")


@pytest.mark.parametrize("header", ["Path,LABEL", " path , label", "path;label", "Path ; Label"])
def test_a_header_may_be_written_as_spreadsheets_do(write, header):
    delimiter = ";" if ";" in header else ","
    source = find(write(header, f"a.png{delimiter}x", f"deep/b.png{delimiter}y"))
    assert source.class_names == ("x", "y")
    assert load(source, resize).images.shape == (2, 3, 4, 4)


@pytest.mark.parametrize("line", ["b\0.png,y", "b.png,y\0"])
def test_a_nul_is_no_text(write, line):
    with pytest.raises(UserError, match=r"table\.csv, line 3 has a NUL character"):
        find(write("path,label", "a.png,x", line, "deep/b.png,y"))


def test_an_empty_table_is_refused(tmp_path):
    (tmp_path / "table.csv").touch()
    with pytest.raises(UserError, match=r"no column path and no column label; .* found nothing"):
        find(f"csv:{tmp_path / 'table.csv'}")


def test_a_path_may_be_absolute_and_a_missing_file_is_found_when_opened(write, tmp_path):
    source = find(write("path,label", f"{tmp_path}/a.png,x", "nowhere.png,y", "deep/b.png,y"))
    dataset = load(source, resize, on_bad_image="skip")
    assert [file.reason for file in dataset.left_out] == ["No such file or directory"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["file,class", "a.png,x"], "no column path and no column label; .* found file,class"),
        (["path\tlabel", "a.png\tx"], "found path\tlabel"),
        (["Path;Klasse", "a.png;x"], "no column label; .* found path,klasse"),
        ([""], "no column path and no column label; .* found nothing"),
        (["path,label,Label ", "a.png,x,y"], "2 columns label; keep one"),
        (["path,label,split,split", "a.png,x,train,test"], "2 columns split; keep one"),
        (["path,label"], "no line below its header"),
        (["path,label", "a.png,x"], r"1 label and needs at least 2"),
        (["path,label", "a.png,x", "b.png"], "line 3 has no label"),
        (["path,label", ",x"], "line 2 has no path"),
        (["path,label,client", "a.png,x,"], "line 2 has no client"),
        (["path,label", "", "a.png,x", "", "b.png,"], "line 5 has no label"),
        (["path,label,note", 'a.png,x,"two', 'lines"', "b.png,,"], "line 4 has no label"),
        (["path,label,split", "a.png,x,maybe", "b.png,y,test"], "line 2 has the split 'maybe'; use train"),
        (["path,label", "a.png,x_y", "b.png,x-y"], "prompts would be alike"),
        (["path,label", "a.png,01 x", "b.png,01_x"], "prompts would be alike"),
        (["path,label", '"a.png,x'], "not a CSV file, line 2"),
        (["path,label", "a.png,melanoma, in situ", "b.png,nevus"], r"table\.csv, line 2 has 3 values, .* 2 columns; "),
        (["path,label", "a.png,x,", "b.png,y"], "line 2 has 3 values"),
        (["path;label", "a.png;x;y", "b.png;y"], "line 2 has 3 values"),
        (["path,label,note", "a.png,x,1", "b.png,y"], "line 3 has no note"),
        (["path,label", "   ", "a.png,x"], "line 2 has no path"),
        (["path,label", "a.png,caf\u00e9", "b.png,cafe\u0301"], r"alike \('caf\u00e9' .*'cafe\\u0301'\)"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(write, lines, message):
    with pytest.raises(UserError, match=message):
        find(write(*lines))


def test_a_table_that_cannot_be_read_is_named(tmp_path, write):
    with pytest.raises(UserError, match=r"cannot read .*nowhere\.csv \(No such file"):
        find(f"csv:{tmp_path / 'nowhere.csv'}")
    with pytest.raises(UserError, match="not a CSV file in UTF-8"):
        find(write("path,label", "größe.png,x", encoding="latin-1"))
    with pytest.raises(UserError, match="csv:FILE"):
        find("csv")
