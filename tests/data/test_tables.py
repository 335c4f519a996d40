"""Tables of images: paths relative to the file, classes, clients and splits, and what can be wrong with a line."""

from __future__ import annotations

from pathlib import Path

import pytest
from pictures_factory import resize, save

from feddlp.data.datasets import find, load
from feddlp.errors import UserError

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
    assert find(write("path,label", "a.png,10", "a.png,9")).class_names == ("9", "10")


def test_a_path_may_be_absolute_and_a_missing_file_is_found_when_opened(write, tmp_path):
    source = find(write("path,label", f"{tmp_path}/a.png,x", "nowhere.png,y", "a.png,y"))
    dataset = load(source, resize, on_bad_image="skip")
    assert [file.reason for file in dataset.left_out] == ["No such file or directory"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["file,class", "a.png,x"], "no column path and no column label; .* found file,class"),
        (["path;label", "a.png;x"], "found path;label"),
        ([""], "no column path"),
        (["path,label"], "no line below its header"),
        (["path,label", "a.png,x"], r"1 label\(s\), at least 2"),
        (["path,label", "a.png,x", "b.png"], "line 3 has no label"),
        (["path,label", ",x"], "line 2 has no path"),
        (["path,label,client", "a.png,x,"], "line 2 has no client"),
        (["path,label,split", "a.png,x,maybe", "a.png,y,test"], "line 2 has the split 'maybe'; use train"),
        (["path,label", "a.png,x_y", "a.png,x-y"], "prompts would be alike"),
        (["path,label", '"a.png,x'], "not a CSV file"),
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
