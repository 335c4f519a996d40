"""Prediction with a client's model: the run's own accuracy, whatever the pictures are like."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file

import feddlp
from checkpoints import TOWERS
from feddlp import materials
from feddlp.config import load_config
from feddlp.data.datasets import to_pictures
from feddlp.data.pictures import BadImage, PictureFile
from feddlp.errors import UserError
from feddlp.inference import Prediction, Predictor, find_images, load_predictor
from feddlp.manifest import Manifest
from feddlp.model.hub import EMBEDDED
from feddlp.progress import PlainReporter
from terminal import assert_mistake, forked

CLIENT = 2


@pytest.fixture(scope="module")
def taken(played, tmp_path_factory) -> Path:
    """An exported adapter."""
    folder = tmp_path_factory.mktemp("taken") / "adapter"
    played("image").export(CLIENT, folder)
    return folder


@pytest.fixture
def photos(tmp_path, digits) -> Path:
    """Two classes of two pictures each, one of them damaged, and a file that is no picture."""
    for index, name in ((0, "zero"), (1, "one"), (10, "zero"), (11, "one")):
        (tmp_path / "photos" / name).mkdir(parents=True, exist_ok=True)
        to_pictures(digits.images[index : index + 1])[0].save(tmp_path / "photos" / name / f"{index}.png")
    (tmp_path / "photos" / "zero" / "damaged.png").write_bytes(b"no picture")
    (tmp_path / "photos" / "notes.txt").write_text("no picture either")
    return tmp_path / "photos"


@pytest.mark.parametrize("tower", TOWERS)
def test_every_method_predicts_as_it_was_scored(played, tower):
    run = played(tower)
    prepared = materials.prepare(run.config, PlainReporter(Console(quiet=True)))
    test = prepared.data.test.select([prepared.data.ids.index(CLIENT)])
    images = materials.datasets.load(materials.datasets.find("digits"), prepared.backbone.resize).images
    (rows,) = test.indices
    with run.folder.clients.open() as file:
        records = {row["method"]: row for row in csv.DictReader(file) if row["client"] == str(CLIENT)}  # the last round
    for method in run.config.methods:
        found = run.client(CLIENT, method).logits(images[rows]).argmax(-1)
        assert int((found == test.labels[rows]).sum()) == int(records[method]["test_correct"]), method


def test_squashed_images_are_squashed_wherever_they_are_predicted(tmp_path):
    """In the run, with its models from Python, exported as an adapter, and exported as a whole checkpoint."""
    for index in range(8):
        place = tmp_path / "wide" / str(index % 2)
        place.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((90, 30), 40 + 20 * (index % 2)).convert("RGB").save(place / f"{index}.png")
    words = ["data.resize=squash", f"data.dataset=folder:{tmp_path / 'wide'}", "data.partition=iid", "data.clients=1"]
    words += ["methods=flora", "training.rounds=1", f"runs_dir={tmp_path}", "model.adapt=image"]
    run = feddlp.run(load_config(None, words), PlainReporter(Console(quiet=True)))
    predictors = [run.client(0)]
    for merge in (False, True):
        run.export(0, tmp_path / str(merge), merge=merge)
        assert Manifest.read(tmp_path / str(merge)).resize == "squash"
        assert "squash (data.resize)" in (tmp_path / str(merge) / "README.md").read_text()
        predictors.append(load_predictor(tmp_path / str(merge)))
    pictures = sorted((tmp_path / "wide").glob("*/*.png"))
    small = [Image.open(path).resize((32, 32), Image.Resampling.BILINEAR) for path in pictures]
    for one in predictors:
        expected = one.logits(one.backbone.resize(small))
        torch.testing.assert_close(one.logits(one.backbone.resize([Image.open(path) for path in pictures])), expected)


def test_predictions_keep_the_order_and_name_what_cannot_be_read(taken, photos, digits):
    predictor = load_predictor(taken)
    files = find_images([photos / "one", photos / "zero"])
    progress = []
    found = list(predictor.stream(files, 2, lambda done, total: progress.append((done, total))))
    assert [one.image for one in found] == [str(file) for file in files]
    assert [bool(one.error) for one in found] == ["damaged" in file.name for file in files]
    assert progress == [(5, 5)]
    alone = predictor.logits(digits.images[1:2]).softmax(-1)[0]
    ((name, probability), _) = found[0].classes
    assert name == digits.class_names[int(alone.argmax())]
    assert probability == pytest.approx(alone.max().item(), abs=1e-5)


def test_a_picture_in_a_closed_folder_is_kept_to_be_named(nobody):
    closed = nobody / "closed"
    closed.mkdir()
    (closed / "1.png").write_bytes(b"")
    closed.chmod(0o600)
    (found,) = find_images([closed / "1.png"])
    with pytest.raises(BadImage, match="Permission denied"):
        PictureFile(found).open()
    closed.chmod(0o700)


def test_pictures_may_be_given_as_they_are_and_more_classes_asked_for_than_there_are(taken, digits):
    (found,) = load_predictor(taken).predict([Image.new("L", (50, 20))], top=99)
    assert {name for name, _ in found.classes} == set(digits.class_names)
    assert sum(probability for _, probability in found.classes) == pytest.approx(1)


def test_one_picture_need_not_be_in_a_list(taken, photos):
    predictor = load_predictor(taken)
    picture = photos / "one" / "1.png"
    assert predictor.predict(picture) == predictor.predict(str(picture)) == predictor.predict([picture])


def test_large_pictures_are_made_small_one_by_one(taken, monkeypatch):
    predictor = load_predictor(taken)
    at_once = []
    resize = predictor.backbone.resize
    monkeypatch.setattr(predictor.backbone, "resize", lambda images: at_once.append(len(images)) or resize(images))
    predictor.predict([Image.new("RGB", (300, 200))] * 5)
    assert at_once == [1] * 5


def test_evaluation_counts_by_class_whatever_the_order_of_the_classes(taken, digits):
    predictor = load_predictor(taken)
    scores = predictor.evaluate(digits)
    right = predictor.logits(digits.images).argmax(-1) == digits.labels
    assert sum(score.correct for score in scores) == int(right.sum())
    assert [score.images for score in scores] == torch.bincount(digits.labels).tolist()
    turned = type(digits)("turned", digits.images, 9 - digits.labels, digits.class_names[::-1], digits.template)
    assert predictor.evaluate(turned) == scores[::-1]


def test_a_class_that_the_model_does_not_know_is_a_mistake(taken, digits):
    other = type(digits)("other", digits.images, digits.labels, ("zeroo", *digits.class_names[1:]), digits.template)
    with pytest.raises(UserError, match="did you mean zero"):
        load_predictor(taken).evaluate(other)


# A folder that is not as it was


@pytest.fixture
def copy(taken, tmp_path) -> Path:
    return Path(shutil.copytree(taken, tmp_path / "copy"))


def change(folder: Path, **values: object) -> None:
    file = folder / "feddlp.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize("size", [0, 5, 200, -20])
def test_a_truncated_adapter_is_named(copy, size):
    file = copy / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(UserError, match=r"adapter_model.safetensors cannot be read"):
        load_predictor(copy)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 2}', b"\xff"])
def test_a_damaged_manifest_is_named(copy, content):
    (copy / "feddlp.json").write_bytes(content)
    with pytest.raises(UserError, match=r"feddlp.json is damaged"):
        load_predictor(copy)


def spoil(tensors: dict[str, torch.Tensor], how: str) -> None:
    """Something that an export never writes, at one layer."""
    down, up = sorted(name for name in tensors if "layers.1.mlp.fc1" in name)
    if how in ("nan", "inf", "-inf"):
        tensors[up][-1, -1] = float(how)
    elif how in ("int32", "bool", "float16", "float64"):
        tensors[up] = tensors[up].to(getattr(torch, how))
    elif how in ("no A", "no B"):
        tensors.pop(down if how == "no A" else up)
    elif how == "no layer":
        tensors.pop(down), tensors.pop(up)
    elif how == "nothing":
        tensors.clear()
    elif how == "one more":
        tensors["base_model.model.classifier.weight"] = torch.ones(2)
    elif how == "the same under another name":
        tensors[down.removeprefix("base_model.model.")] = tensors[down].clone()
    elif how == "another layer":
        tensors[down.replace("fc1", "fc9")], tensors[up.replace("fc1", "fc9")] = tensors.pop(down), tensors.pop(up)
    elif how == "rank 0":
        tensors[down], tensors[up] = tensors[down][:0].clone(), tensors[up][:, :0].clone()
    elif how == "transposed":
        tensors[down] = tensors[down].T.contiguous()
    elif how == "no axis":
        tensors[down] = torch.tensor(1.0)
    elif how == "another rank":
        tensors[down], tensors[up] = tensors[down][:1].clone(), tensors[up][:, :1].clone()


SPOILT = {
    "holds no layer": ["nothing"],
    "holds other tensors than an A and a B of each layer": ["no A", "no B", "one more", "the same under another name"],
    "does not fit the base checkpoint at ": ["another layer", "rank 0", "transposed", "no axis"],
    "that are not finite float32 numbers": ["nan", "inf", "-inf", "int32", "bool", "float16", "float64"],
    "adapter_config.json does not describe the layers in adapter_model.safetensors": ["no layer", "another rank"],
}


@pytest.mark.parametrize(("part", "how"), [(part, how) for part, every in SPOILT.items() for how in every])
def test_an_adapter_that_no_export_writes_is_refused_and_named(copy, part, how):
    file = copy / "adapter_model.safetensors"
    tensors = load_file(file)
    spoil(tensors, how)
    save_file(tensors, file)
    with pytest.raises(UserError, match=r"copy/adapter_(model\.safetensors|config\.json) .*; export it again") as found:
        load_predictor(copy)
    assert part in str(found.value)


@pytest.mark.parametrize(
    "change",
    [
        {"r": 64}, {"lora_alpha": 1}, {"rank_pattern": {}}, {"alpha_pattern": None}, {"target_modules": ["q_proj"]},
        {"use_rslora": True}, {"fan_in_fan_out": True}, {"peft_type": "IA3"}, {"bias": "all"}, {"target_modules": 3},
    ],
)  # fmt: skip
def test_a_configuration_that_contradicts_the_tensors_is_refused(copy, change):
    file = copy / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError, match=r"adapter_config.json does not describe the layers"):
        load_predictor(copy)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"3", b"\xff", b"[" * 100_000])
def test_a_damaged_configuration_of_the_adapter_is_named(copy, content):
    (copy / "adapter_config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"adapter_config.json cannot be read"):
        load_predictor(copy)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json", "feddlp.json"])
@pytest.mark.parametrize("how", ["gone", "folder", "pipe"])
def test_what_is_not_a_file_is_named(copy, name, how):
    (copy / name).unlink()
    if how != "gone":
        (Path.mkdir if how == "folder" else os.mkfifo)(copy / name)
    with pytest.raises(UserError, match=name):
        load_predictor(copy)


def test_numbers_that_overflow_are_no_prediction(copy, digits):
    file = copy / "adapter_model.safetensors"
    save_file({name: value.sign() * 1e30 for name, value in load_file(file).items()}, file)
    with pytest.raises(UserError, match="predicts numbers that are not finite"):
        load_predictor(copy).predict(to_pictures(digits.images[:1]))


def test_an_adapter_without_a_rank_left_still_predicts_as_the_base(played, digits, tmp_path):
    pictures = to_pictures(digits.images[:3])
    played("image").export(CLIENT, tmp_path / "gone", "gone")
    base = played("image").client(CLIENT, "zero_shot").predict(pictures)
    assert load_predictor(tmp_path / "gone").predict(pictures) == base


def test_the_commands_refuse_a_spoilt_adapter_in_one_line(feddlp, copy, photos):
    file = copy / "adapter_model.safetensors"
    save_file({name: torch.full_like(value, torch.nan) for name, value in load_file(file).items()}, file)
    for words in (["predict", "photos"], ["evaluate", "--data", "digits"]):
        assert_mistake(feddlp(*words, "--adapter", str(copy)), "adapter_model.safetensors", "export it again")


def test_an_adapter_of_another_tower_does_not_fit(played, copy, tmp_path):
    played("text").export(CLIENT, tmp_path / "text")
    shutil.copy(tmp_path / "text" / "adapter_model.safetensors", copy)
    with pytest.raises(UserError, match="does not fit"):
        load_predictor(copy)


def test_a_base_with_other_weights_is_refused_and_one_in_another_place_taken(copy, tmp_path):
    change(copy, backbone="0" * 64)
    with pytest.raises(UserError, match="has not the weights"):
        load_predictor(copy)


def test_a_base_that_was_moved_is_said(copy, tmp_path):
    change(copy, checkpoint="/nowhere/clip")
    with pytest.raises(UserError, match="/nowhere/clip cannot be loaded"):
        load_predictor(copy)
    moved = shutil.copytree(EMBEDDED["tiny-clip"], tmp_path / "moved")
    assert load_predictor(copy, checkpoint=str(moved)).class_names


# The commands


def test_a_model_is_taken_away_and_used(feddlp, played, photos):
    done = feddlp("export", str(played("image").path), "--client", "2", "--to", "mine")
    assert (done.code, done.err) == (0, "")
    assert "feddlp predict --adapter mine" in done.out
    text = feddlp("predict", "--adapter", "mine", "photos/one", "photos/zero/0.png", "--top", "2")
    assert (text.code, text.out.count("\n"), text.out.count("%")) == (0, 3, 6)
    rows = list(csv.DictReader(feddlp("predict", "--adapter", "mine", "photos/one", "--csv").out.splitlines()))
    assert [row["rank"] for row in rows] == ["1", "2", "3"] * 2
    scored = json.loads(feddlp("evaluate", "--adapter", "mine", "--data", "digits", "--json").out)
    assert scored["images"] == 1797
    assert scored["correct"] == sum(one["correct"] for one in scored["classes"])


def test_images_of_one_class_are_scored(feddlp, taken, photos):
    (photos / "site").mkdir()
    (photos / "one").rename(photos / "site" / "one")
    scored = feddlp("evaluate", "--adapter", str(taken), "--data", "photos/site", "--json")
    assert scored.code == 0, scored.err
    assert [(one["class"], one["images"]) for one in json.loads(scored.out)["classes"]] == [("one", 2)]


def test_damaged_pictures_are_named_and_survived(feddlp, taken, photos):
    ended = feddlp("predict", "--adapter", str(taken), "photos", "--json")
    assert ended.code == 1
    assert [("error" in one) for one in json.loads(ended.out)].count(True) == 1
    assert "photos/zero/damaged.png cannot be read" in ended.err
    assert ended.err.endswith("feddlp: error: 1 of 5 images could not be read; they are named above\n")


def test_file_names_that_are_no_text_are_shown_all_the_same(tmp_path, taken, photos):
    strange = os.fsdecode(b"caf\xe9.png")
    (photos / "one" / "1.png").rename(photos / "one" / strange)
    (photos / "one" / os.fsdecode(b"bad\xe9.png")).write_bytes(b"")
    ended = forked("predict", "--adapter", str(taken), "photos/one", "--csv", cwd=tmp_path)
    assert ended.code == 1
    assert "photos/one/caf\\udce9.png,1," in ended.out
    assert "bad\\udce9.png cannot be read (the file is empty)" in ended.err


def test_predictions_are_shown_as_they_come(feddlp, taken, photos, monkeypatch):
    def interrupted(self, *_: object) -> Iterator[Prediction]:
        yield Prediction("first.png", (("one", 0.9),))
        raise KeyboardInterrupt

    monkeypatch.setattr(Predictor, "stream", interrupted)
    ended = feddlp("predict", "--adapter", str(taken), "photos")
    assert (ended.code, ended.out) == (130, "first.png  one 90.0%\n")


def test_unknown_classes_are_told_before_images_are_opened(feddlp, taken, photos):
    (photos / "dog").mkdir()
    (photos / "zero" / "0.png").rename(photos / "dog" / "0.png")
    ended = feddlp("evaluate", "--adapter", str(taken), "--data", "photos")
    assert_mistake(ended, "the class 'dog' is none of the model's")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["predict", "--adapter", "nowhere", "photos"], "nowhere is not a folder that `feddlp export` wrote"),
        (["predict", "--adapter", "TAKEN", "nothing.jpg"], "nothing.jpg is not there"),
        (["predict", "--adapter", "TAKEN", "empty"], "empty: no images there"),
        (["predict", "--adapter", "TAKEN", "photos", "--csv", "--json"], "--csv and --json"),
        (["predict", "--adapter", "TAKEN", "photos", "--device", "gpu"], "gpu"),
        (["evaluate", "--adapter", "TAKEN", "--data", "folder:nowhere"], "cannot read the folder"),
        (["export", "RUN", "--client", "2", "--to", "photos"], "--to photos is there already"),
        (["export", "RUN", "--client", "2", "--to", "photos/notes.txt/x"], "cannot write there"),
        (["export", "RUN", "--client", "2", "--to", "x", "--seed", "5"], "--seed 5"),
        (["export", "RUN", "--client", "2", "--to", "x", "--adapter", "lokal"], "is not one of 'local', 'global'"),
        (["export", "photos", "--client", "2", "--to", "x"], "photos is not a run folder"),
    ],
)
def test_a_mistake_is_one_line(feddlp, played, taken, photos, words, part):
    (photos.parent / "empty").mkdir()
    names = {"TAKEN": str(taken), "RUN": str(played("image").path)}
    assert_mistake(feddlp(*(names.get(word, word) for word in words)), part)
    assert sorted(path.name for path in photos.parent.iterdir()) == ["empty", "photos"]
