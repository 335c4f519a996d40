"""Archives: unpacked whole or not at all, announced, and named where they cannot be."""

from __future__ import annotations

import errno
import os
import tarfile
from pathlib import Path

import pytest

from feddlp.data.archives import key_of, unpacked
from feddlp.data.cache_folder import cache_root
from feddlp.data.datasets import find
from feddlp.errors import UserError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FEDDLP_CACHE", str(tmp_path / "cache"))


def pack(folder: Path, how: str = "gz") -> Path:
    (folder / "numbers").write_bytes(os.urandom(100_000))
    with tarfile.open(folder / f"numbers.tar.{how}", f"w:{how}") as opened:
        opened.add(folder / "numbers", "deep/numbers")
    return folder / f"numbers.tar.{how}"


def left_behind() -> list[Path]:
    return [path for path in (cache_root() / "archives").iterdir() if path.suffix != ".lock"]


@pytest.mark.parametrize("how", ["gz", "bz2", "xz"])
def test_an_archive_is_unpacked_once_and_that_is_announced(tmp_path, how, caplog):
    archive = pack(tmp_path, how)
    folders = {unpacked([archive], [tmp_path / "numbers"]) for _ in range(2)}
    (folder,) = folders
    for file in ("deep/numbers", "numbers"):
        assert (folder / file).read_bytes() == (tmp_path / "numbers").read_bytes()
    (record,) = caplog.records
    assert f"{archive} once into {folder.parent}" in record.getMessage()
    assert left_behind() == [folder]


@pytest.mark.parametrize("how", ["gz", "bz2", "xz"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_archive_is_named_and_leaves_nothing(tmp_path, how, damage):
    archive = pack(tmp_path, how)
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 0xFF
    archive.write_bytes({"cut": content[:50_000], "flipped": content, "empty": b""}[damage])
    with pytest.raises(UserError, match=rf"numbers\.tar\.{how} .*download it again"):
        unpacked([archive], [])
    assert left_behind() == []


def test_without_room_nothing_is_left(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    archive = pack(tmp_path)
    monkeypatch.setattr(tarfile.TarFile, "makefile", full)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\); .* FEDDLP_CACHE"):
        unpacked([archive], [])
    assert left_behind() == []


def test_an_archive_that_may_not_be_read_is_named(nobody, monkeypatch):
    monkeypatch.setenv("FEDDLP_CACHE", str(nobody / "cache"))
    archive = pack(nobody)
    archive.chmod(0)
    with pytest.raises(UserError, match=r"cannot read .*numbers\.tar\.gz \(Permission denied\)"):
        unpacked([archive], [])


def test_a_path_that_is_no_text_has_a_key(tmp_path):
    assert key_of([tmp_path / os.fsdecode(b"caf\xe9")]) != key_of([tmp_path / "cafe"])


def test_an_archive_cannot_write_outside_of_its_folder(tmp_path):
    (tmp_path / "evil").write_text("x")
    with tarfile.open(tmp_path / "dtd-r1.0.1.tar.gz", "w:gz") as opened:
        opened.add(tmp_path / "evil", "../evil")
    with pytest.raises(UserError, match=r"is damaged \(.*outside"):
        find(f"dtd:{tmp_path}")
    assert left_behind() == []
