"""`feddlp data check` from the shell: what it prints and how it ends."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from feddlp import cli


@pytest.fixture
def photos(tmp_path) -> Path:
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (8, 6)).save(tmp_path / "photos" / name / "a.png")
    return tmp_path / "photos"


def feddlp(monkeypatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["feddlp", *words])
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.mark.parametrize("prefix", ["", "folder:"])
def test_a_good_folder_ends_well(photos, monkeypatch, capsys, prefix):
    assert feddlp(monkeypatch, "data", "check", f"{prefix}{photos}") == 0
    assert capsys.readouterr().out.splitlines()[0] == "photos: 2 images, 2 classes"


def test_an_unreadable_image_ends_with_one(photos, monkeypatch, capsys):
    (photos / "cat" / "b.png").write_bytes(b"")
    assert feddlp(monkeypatch, "data", "check", str(photos)) == 1
    assert f"{photos}/cat/b.png (the file is empty)" in capsys.readouterr().out


def test_a_site_may_have_one_class(photos, monkeypatch, capsys):
    (photos / "t.csv").write_text("path,label\ncat/a.png,x\n")
    (photos / "dog" / "a.png").unlink()
    (photos / "dog").rmdir()
    for source, name in ((photos, "photos"), (f"clients:{photos.parent}", photos.parent.name), (photos / "t.csv", "t")):
        assert feddlp(monkeypatch, "data", "check", str(source)) == 0
        first, second = capsys.readouterr().out.splitlines()[:2]
        assert first == f"{name}: 1 image, 1 class"
        assert "enough for a site" in second
        assert "feddlp run needs at least 2" in second


def test_a_class_without_images_is_listed_among_the_other_problems(photos, monkeypatch, capsys):
    (photos / "empty").mkdir()
    assert feddlp(monkeypatch, "data", "check", str(photos)) == 1
    (photos / "cat" / "b.png").write_bytes(b"")
    assert feddlp(monkeypatch, "data", "check", str(photos)) == 1
    printed = capsys.readouterr().out
    assert "without an image: 1 class (empty)" in printed
    assert f"{photos}/cat/b.png (the file is empty)" in printed


def test_a_table_needs_no_prefix(photos, monkeypatch, capsys):
    (photos / "t.csv").write_text("path,label\ncat/a.png,x\ndog/a.png,y\n")
    assert feddlp(monkeypatch, "data", "check", str(photos / "t.csv")) == 0


def test_what_is_not_there_is_the_users_error(tmp_path, monkeypatch, capsys):
    assert feddlp(monkeypatch, "data", "check", f"folder:{tmp_path}/nowhere") == 2
    assert capsys.readouterr().err.count("\n") == 1


# What a run does with it


def test_a_run_stops_at_a_bad_image_or_leaves_it_out_and_lists_it(photos, tmp_path, monkeypatch, capsys):
    for number in range(10):
        for name in ("cat", "dog"):
            Image.new("RGB", (8, 6), (20 * number, 0, 0)).save(photos / name / f"{number}.png")
    (photos / "cat" / "3.png").write_bytes(b"")
    words = [f"data.dataset=folder:{photos}", "data.partition=iid", "data.clients=2", "methods=zero_shot"]
    words += [f"runs_dir={tmp_path}", "name=tried", "model.checkpoint=tiny-clip"]
    assert feddlp(monkeypatch, "run", *words) == 2
    assert f"1 of 22 images cannot be read, the first one is {photos}/cat/3.png" in capsys.readouterr().err
    assert feddlp(monkeypatch, "run", *words, "data.on_bad_image=skip", "model.adapt=text") == 0
    assert f"cannot read 1 image, left out: {photos}/cat/3.png (the file is empty)" in capsys.readouterr().out
    listed = (tmp_path / "tried" / "left_out.csv").read_text()
    assert listed == f"path,reason\n{photos}/cat/3.png,the file is empty\n"
    partition = json.loads((tmp_path / "tried" / "partition.json").read_text())
    assert sum(sum(counts) for client in partition["clients"] for counts in client.values()) == 21


def test_natural_clients_are_named_in_the_record(photos, tmp_path, monkeypatch, capsys):
    owners = ["ann", "bob", "cid"]
    rows = [f"{name}/{number}.png,{name},{owners[number % 3]}" for number in range(9) for name in ("cat", "dog")]
    for row in rows:
        Image.new("RGB", (8, 6)).save(photos / row.partition(",")[0])
    (photos / "t.csv").write_text("\n".join(["path,label,client", *rows]))
    words = [f"data.dataset=csv:{photos / 't.csv'}", "data.partition=natural", "methods=zero_shot", "name=own"]
    assert feddlp(monkeypatch, "run", *words, "data.clients=3", f"runs_dir={tmp_path}") == 0
    assert json.loads((tmp_path / "own" / "partition.json").read_text())["client_names"] == owners
    table = [line.split(",")[3:5] for line in (tmp_path / "own" / "clients.csv").read_text().splitlines()]
    assert table == [["client", "name"], ["0", "ann"], ["1", "bob"], ["2", "cid"]]
    capsys.readouterr()
    assert feddlp(monkeypatch, "show", str(tmp_path / "own")) == 0
    assert "Clients: 0 (ann), 1 (bob), 2 (cid)." in capsys.readouterr().out
