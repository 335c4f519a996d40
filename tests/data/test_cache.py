"""Prepared pixels on the disk: the same as without, made once, resumable, checked, safe for two."""

from __future__ import annotations

import contextlib
import re
import threading
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from pictures_factory import noise, resize, save

from feddlp.data import cache, cache_folder, preparation
from feddlp.data.cache import PixelCache, cached_features
from feddlp.data.cache_folder import cache_root
from feddlp.data.pictures import PictureFile
from feddlp.data.preparation import Progress, in_memory
from feddlp.errors import UserError


@pytest.fixture
def pictures(tmp_path, monkeypatch) -> list[PictureFile]:
    """Seven, the third and the last of which are broken, prepared two at a time."""
    monkeypatch.setattr(preparation, "CHUNK", 2)
    files = [save(tmp_path / "photos" / f"{number}.png", noise((9 + number, 7))) for number in range(7)]
    for broken in (2, 6):
        files[broken].write_bytes(b"nothing")
    return [PictureFile(file) for file in files]


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    """The pictures that were opened."""
    names, read = [], PictureFile.open
    monkeypatch.setattr(PictureFile, "open", lambda self: names.append(self.path.stem) or read(self))
    return names


def silent(done: int, total: int) -> None:
    pass


def make(tmp_path: Path, settings: str = "a processor", notes: list[str] | None = None) -> PixelCache:
    return PixelCache(tmp_path / "cache", settings, [].append if notes is None else notes.append)


def state_of(tmp_path: Path) -> Path:
    return next((tmp_path / "cache").rglob("state.json"))


def test_cached_is_as_uncached_and_opened_once(pictures, opened, tmp_path):
    expected = in_memory(pictures, resize, silent)
    opened.clear()
    for _ in range(2):
        pixels = make(tmp_path)(pictures, resize, silent)
        assert torch.equal(pixels.images, expected.images)
        assert pixels.bad == expected.bad
        assert pixels.hash.hexdigest() == expected.hash.hexdigest()
        assert sorted(opened) == list("0123456")


@pytest.mark.parametrize("change", ["content", "order", "processor"])
def test_another_content_order_or_processor_has_pixels_of_its_own(pictures, opened, tmp_path, change):
    make(tmp_path)(pictures, resize, silent)
    opened.clear()
    if change == "content":
        save(pictures[4].path, noise((30, 30)))
    if change == "order":
        pictures.reverse()
    pixels = make(tmp_path, "another" if change == "processor" else "a processor")(pictures, resize, silent)
    assert sorted(opened) == list("0123456")
    assert torch.equal(pixels.images, in_memory(pictures, resize, silent).images)


@pytest.mark.parametrize("chunks", [1, 2, 3])
def test_a_killed_preparation_goes_on_where_it_stood(pictures, opened, tmp_path, chunks):
    with pytest.raises(Killed):
        make(tmp_path)(pictures, resize, kill_after(2 * chunks))
    opened.clear()
    pixels = make(tmp_path)(pictures, resize, silent)
    assert sorted(opened) == list("0123456"[2 * chunks :])
    assert torch.equal(pixels.images, in_memory(pictures, resize, silent).images)
    assert [index for index, _ in pixels.bad] == [2, 6]


class Killed(BaseException):
    pass


def kill_after(pictures: int) -> Progress:
    """Ends the preparation once so many pictures are done."""

    def progress(done: int, total: int) -> None:
        if done >= pictures:
            raise Killed

    return progress


def damage_pixels(file: Path, how: str) -> None:
    content = bytearray(file.read_bytes())
    content[5] ^= 1
    file.write_bytes({"pixel": content, "short": content[:100], "empty": b"", "zeros": bytes(len(content))}[how])


STATES = {
    "cut": lambda text: text[:-5],
    "no object": lambda text: "[]",
    "done alone": lambda text: '{"done": 4}',
    "further than there are pictures": lambda text: text.replace('"done":4', '"done":9').replace(
        "]],", "]," + ",".join(f'[{index},"x"]' for index in range(4, 9)) + "],"
    ),
    "done by name": lambda text: text.replace('"done":4', '"done":"4"'),
    "negative": lambda text: text.replace('"done":4', '"done":-4'),
    "bad without reasons": lambda text: re.sub(r'"bad":\[.*\],', '"bad":3,', text),
    "bad beyond the end": lambda text: text.replace("[2,", "[6,"),
    "bad twice": lambda text: re.sub(r'(\[2,"[^"]*"\])', r"\1,\1", text),
    "another digest": lambda text: re.sub('"sha256":".', '"sha256":"x', text),
}


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("damage", ["no pixels", "pixel", "short", "empty", "zeros", *STATES])
def test_what_is_damaged_is_made_again_finished_or_not(pictures, tmp_path, damage, finished):
    expected = in_memory(pictures, resize, silent)
    with contextlib.suppress(Killed):
        make(tmp_path)(pictures, resize, silent if finished else kill_after(4))
    state, notes = state_of(tmp_path), []
    pixels = state.with_name("pixels.u8")
    if damage in STATES:
        text = state.read_text().replace('"done":7', '"done":4')
        state.write_text(STATES[damage](text))
    elif damage == "no pixels":
        pixels.unlink()
    else:
        damage_pixels(pixels, damage)
    for _ in range(2):
        made = make(tmp_path, notes=notes)(pictures, resize, silent)
        assert torch.equal(made.images, expected.images)
        assert made.bad == expected.bad
        assert made.hash.hexdigest() == expected.hash.hexdigest()
    assert sum("are damaged and" in note for note in notes) == 1


def test_the_size_is_announced_before_anything_is_opened(pictures, opened, tmp_path):
    told = []
    make(tmp_path, notes=None)
    PixelCache(tmp_path / "cache", "", lambda note: told.append((note, list(opened))))(pictures, resize, silent)
    (note, before), *_ = told
    assert note.startswith("preparing 7 images once: 1 KiB in ")
    assert before == []


def test_a_full_disk_is_reported_before_anything_is_opened(pictures, opened, tmp_path, monkeypatch):
    monkeypatch.setattr(cache_folder.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 100}))
    with pytest.raises(UserError, match=r"cache.* has 1 KiB free, 1 KiB are needed; .* set FEDDLP_CACHE"):
        make(tmp_path)(pictures, resize, silent)
    monkeypatch.undo()

    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "ALLOCATE", full)
    with pytest.raises(UserError, match=r"No space left on device\); free some room or set FEDDLP_CACHE"):
        make(tmp_path)(pictures, resize, silent)
    assert opened == []


def test_a_place_that_is_no_folder_is_named(pictures, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match=r"image cache .* cannot be written .* FEDDLP_CACHE"):
        make(tmp_path)(pictures, resize, silent)


def test_a_second_run_waits_for_the_first(pictures, opened, tmp_path):
    notes, results = [], []
    folder = tmp_path / "cache" / "images" / make(tmp_path).key(pictures)
    folder.mkdir(parents=True)
    with FileLock(folder / ".lock"):
        runs = [
            threading.Thread(target=lambda: results.append(make(tmp_path, notes=notes)(pictures, resize, silent)))
            for _ in range(2)
        ]
        for run in runs:
            run.start()
        while len(notes) < 2:
            assert all(run.is_alive() for run in runs)
    for run in runs:
        run.join()
    assert notes[:2] == ["another run is preparing these images; waiting for it"] * 2
    assert sorted(opened) == list("0123456")
    assert torch.equal(results[0].images, results[1].images)


def test_training_on_the_map_changes_no_file(pictures, tmp_path):
    images = make(tmp_path)(pictures, resize, silent).images
    before = state_of(tmp_path).with_name("pixels.u8").read_bytes()
    images.zero_()
    assert state_of(tmp_path).with_name("pixels.u8").read_bytes() == before


def test_where_every_picture_is_bad_there_are_no_rows(pictures, tmp_path):
    for _ in range(2):
        assert make(tmp_path)([pictures[2]], resize, silent).images.shape == (0, 3, 4, 4)


def test_the_cache_lies_where_the_user_says(monkeypatch):
    monkeypatch.setenv("FEDDLP_CACHE", "~/pixels")
    assert cache_root() == Path.home() / "pixels"
    monkeypatch.delenv("FEDDLP_CACHE")
    assert cache_root() == Path.home() / ".cache" / "feddlp"


def test_the_settings_of_the_processor_are_text(backbones):
    assert '"resample"' in backbones["image"].resize_settings()


# Features


@pytest.mark.parametrize("damage", ["", "changed", "cut", "no room"])
def test_features_are_computed_once_and_again_where_the_file_is_damaged(tmp_path, damage, monkeypatch):
    expected, calls = torch.randn(5, 3), []

    def compute() -> torch.Tensor:
        calls.append(1)
        return expected

    assert torch.equal(cached_features(tmp_path, "a", compute), expected)
    (file,) = tmp_path.rglob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    if damage:
        file.write_bytes(content[:-7] if damage == "cut" else content)
    if damage == "no room":
        monkeypatch.setattr(cache, "write_atomically", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(UserError, match=r"No space left.* FEDDLP_CACHE"):
            cached_features(tmp_path, "a", compute)
        return
    assert torch.equal(cached_features(tmp_path, "a", compute), expected)
    assert len(calls) == (2 if damage else 1)
    assert torch.equal(cached_features(tmp_path, "b", lambda: expected + 1), expected + 1)
