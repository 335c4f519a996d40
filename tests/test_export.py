"""What is taken away is what the client had: other people's libraries read it and give our logits."""

from __future__ import annotations

import json
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from PIL import Image
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor, CLIPModel, CLIPProcessor, SiglipModel

from checkpoints import TOWERS
from feddlp import api
from feddlp.card import model_card
from feddlp.config import load_config
from feddlp.data.prompts import class_prompts
from feddlp.errors import UserError
from feddlp.export import check_free, export, new_folder, without_folders
from feddlp.inference import load_predictor, of_client
from feddlp.manifest import Manifest
from feddlp.model.backbone import Backbone
from feddlp.model.checkpoint import load_backbone
from feddlp.model.hub import EMBEDDED
from feddlp.names import printable
from feddlp.progress import PlainReporter
from feddlp.records import RunFolder
from feddlp.trained import ClientModel, low_rank, names_of, number_of, read_client, unchanged

LOCAL = [(name, "local") for name in ("feddlp", "pruned", "gone", "flora", "local", "feddat", "combined", "ffa")]
GLOBAL = [(name, "global") for name in ("feddlp", "feddat", "ffa", "ensemble")]
MOST_TELLING = ("feddlp", "pruned", "gone", "feddat")  # of one tower; with both towers all methods are tried
CLIENT = 2


def cases():
    for tower in TOWERS:
        for method, which in (*LOCAL, *GLOBAL):
            fast = tower == "both" or method in MOST_TELLING
            yield pytest.param(tower, method, which, marks=() if fast else pytest.mark.slow)


@pytest.fixture(scope="module")
def pixels(digits) -> torch.Tensor:
    return digits.images[::300]


@torch.no_grad()
def library_logits(model: CLIPModel, backbone: Backbone, folder: Path, pixels: torch.Tensor) -> torch.Tensor:
    """Logits as somebody without feddlp computes them; tokens and pixels are those of the checkpoint."""
    about = Manifest.read(folder)
    tokens = backbone.tokenizer(class_prompts(about.class_names, about.template), padding=True, return_tensors="pt")
    normalised = ((pixels - backbone.pixel_mean) / backbone.pixel_std).to(model.dtype)
    return model.eval()(pixel_values=normalised, **tokens).logits_per_image


def base() -> CLIPModel:
    return CLIPModel.from_pretrained(EMBEDDED["tiny-clip"], dtype=torch.float32)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft 0.21 on transformers 5.23
@pytest.mark.parametrize(("tower", "method", "which"), list(cases()))
def test_an_adapter_gives_our_logits_in_peft_and_in_transformers(played, tmp_path, pixels, tower, method, which):
    run = played(tower)
    run.export(CLIENT, tmp_path / "out", method, which)
    ours = run.client(CLIENT, method, which)
    expected = ours.logits(pixels)
    loaded = base()
    loaded.load_adapter(str(tmp_path / "out"))
    for model in (PeftModel.from_pretrained(base(), tmp_path / "out"), loaded):
        found = library_logits(model, ours.backbone, tmp_path / "out", pixels)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * ours.backbone.logit_scale)
    again = load_predictor(tmp_path / "out", device="cpu").logits(pixels)
    torch.testing.assert_close(again, expected, rtol=0, atol=1e-5 * ours.backbone.logit_scale)
    if method != "gone":
        assert (expected - run.client(CLIENT, "zero_shot").logits(pixels)).abs().max() > 0.1


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("method", ["feddlp", "pruned", "feddat"])
@pytest.mark.parametrize("tower", TOWERS)
def test_in_double_precision_the_logits_are_equal(played, tmp_path, pixels, tower, method):
    """What float32 leaves open: a cosine's last digit times a logit scale of up to 100."""
    played(tower).export(CLIENT, tmp_path / "out", method)
    model = read_client(played(tower).folder, method, CLIENT)
    exact = {name: {leaf: value.double() for leaf, value in theta.items()} for name, theta in model.theta.items()}
    backbone = load_backbone("tiny-clip", tower, dtype=torch.float64)
    about = Manifest.read(tmp_path / "out")
    ours = of_client(replace(model, theta=exact), backbone, about.class_names, about.template).logits(pixels)
    theirs = PeftModel.from_pretrained(base(), tmp_path / "out").double()
    found = library_logits(theirs, backbone, tmp_path / "out", pixels)
    torch.testing.assert_close(found, ours, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", ["feddlp", "pruned", "gone", "feddat", "fedavg"])
@pytest.mark.parametrize("tower", TOWERS)
def test_a_merged_checkpoint_is_a_clip_of_its_own(played, tmp_path, pixels, digits, tower, method):
    run, folder = played(tower), tmp_path / "out"
    run.export(CLIENT, folder, method, merge=True)
    ours = run.client(CLIENT, method)
    expected, close = ours.logits(pixels), 1e-5 * ours.backbone.logit_scale
    model = CLIPModel.from_pretrained(folder)
    assert model.dtype == torch.float32
    torch.testing.assert_close(library_logits(model, ours.backbone, folder, pixels), expected, rtol=0, atol=close)
    torch.testing.assert_close(load_predictor(folder, device="cpu").logits(pixels), expected, rtol=0, atol=close)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("kind", ["siglip", "siglip2"])
@pytest.mark.parametrize("tower", TOWERS)
def test_a_siglip_is_taken_away_as_a_clip_is(checkpoints, tmp_path, digits, kind, tower):
    words = [f"model.checkpoint={checkpoints[kind]}", f"model.adapt={tower}", "methods=feddlp", "method.lr=0.01"]
    small = ["data.clients=3", "data.partition=few_shot_iid", "data.shots=2", "training.rounds=1"]
    config = load_config(None, [*words, *small, f"runs_dir={tmp_path}"])
    run = api.run(config, PlainReporter(Console(quiet=True)))
    ours = run.client(CLIENT)
    pixels = ours.backbone.resize([Image.fromarray(one.permute(1, 2, 0).numpy()) for one in digits.images[::300]])
    expected, close = ours.logits(pixels), 1e-5 * ours.backbone.logit_scale
    run.export(CLIENT, tmp_path / "adapter")
    run.export(CLIENT, tmp_path / "merged", merge=True)
    loaded = SiglipModel.from_pretrained(checkpoints[kind], dtype=torch.float32)
    loaded.load_adapter(str(tmp_path / "adapter"))
    merged = AutoModel.from_pretrained(tmp_path / "merged")
    assert AutoProcessor.from_pretrained(tmp_path / "merged").image_processor.size == ours.backbone.processor.size
    prompts = class_prompts(run.client(CLIENT).class_names, Manifest.read(tmp_path / "adapter").template)
    tokens = ours.backbone.tokenizer([prompt.lower() for prompt in prompts], padding="max_length", max_length=40)
    normalised = (pixels - ours.backbone.pixel_mean) / ours.backbone.pixel_std
    for model in (loaded, merged):
        with torch.no_grad():
            found = model.eval()(pixel_values=normalised, input_ids=torch.tensor(tokens["input_ids"])).logits_per_image
        torch.testing.assert_close(found, expected, rtol=0, atol=close)
    for name in ("adapter", "merged"):
        again = load_predictor(tmp_path / name, device="cpu").logits(pixels)
        torch.testing.assert_close(again, expected, rtol=0, atol=close)


def test_a_merged_checkpoint_brings_its_tokenizer_and_its_processor(played, tmp_path, pixels):
    run = played("both")
    run.export(CLIENT, tmp_path / "out", merge=True)
    about = Manifest.read(tmp_path / "out")
    processor = CLIPProcessor.from_pretrained(tmp_path / "out")
    prompts = class_prompts(about.class_names, about.template)
    inputs = processor(text=prompts, images=list(pixels), return_tensors="pt", padding=True, truncation=True)
    with torch.no_grad():
        found = CLIPModel.from_pretrained(tmp_path / "out")(**inputs).logits_per_image
    torch.testing.assert_close(found, run.client(CLIENT).logits(pixels), rtol=0, atol=1e-3)


def test_pruned_ranks_and_layers_are_not_there(played, tmp_path):
    run = played("image")
    done = run.export(CLIENT, tmp_path / "out", "pruned")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    model = read_client(run.folder, "pruned", CLIENT)
    gates = {name: gate[0] for name, gate in model.theta["local"].items() if name.endswith(".gate")}
    living = {name.removesuffix(".gate"): int(gate.count_nonzero()) for name, gate in gates.items()}
    assert 0 < sum(living.values()) < sum(len(gate) for gate in gates.values())
    assert done.ranks == {layer: rank for layer, rank in living.items() if rank}
    assert config["rank_pattern"] == config["alpha_pattern"] == done.ranks
    assert set(config["target_modules"]) == done.ranks.keys()
    shapes = {
        key.split(".lora_")[0].removeprefix("base_model.model."): len(v) for key, v in tensors.items() if "_A" in key
    }
    assert shapes == done.ranks


def test_an_adapter_without_a_rank_is_one_layer_of_zeros(played, tmp_path):
    done = played("image").export(CLIENT, tmp_path / "out", "gone")
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert done.ranks == {}
    assert [int(tensor.count_nonzero()) for tensor in tensors.values()] == [0, 0]
    assert "all ranks were pruned" in (tmp_path / "out" / "README.md").read_text()


def test_the_global_adapter_is_the_servers(played):
    run = played("image")
    first, second = (low_rank(read_client(run.folder, "feddlp", client, "global")) for client in run.clients[:2])
    for site, factors in first.items():
        assert all(torch.equal(a, b) for a, b in zip(factors, second[site], strict=True))
    own, other = (low_rank(read_client(run.folder, "flora", client)) for client in run.clients[:2])
    assert any(not torch.equal(own[site][1], other[site][1]) for site in own)


def test_the_card_says_what_it_is(played, tmp_path):
    run = played("image")
    run.export(CLIENT, tmp_path / "out", "flora")
    card = (tmp_path / "out" / "README.md").read_text()
    rows = [row for row in run.folder.read_clients() if (row["method"], row["client"]) == ("flora", str(CLIENT))]
    tests, accuracy = rows[-1]["test_samples"], float(rows[-1]["test_accuracy"])
    for part in (
        f"{accuracy:.2f} % of the client's own {tests} test images",
        "after round 2 of 2",
        "Apache-2.0",
        "digits",
    ):
        assert part in card


def test_where_the_data_lie_is_not_told():
    assert without_folders("folder:/hospital/ward 3/patients") == "folder:patients"
    assert without_folders("csv:/hospital/list.csv") == "csv:list.csv"
    assert without_folders("hub:owner/name") == "hub:owner/name"
    assert without_folders("digits") == "digits"


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ({"client": 9}, "--client 9: the run has clients 0 to 3"),
        ({"method": "sora"}, "did you mean"),
        ({"method": "zero_shot"}, "trains nothing"),
        ({"method": "fedclip"}, "choose a LoRA method"),
        ({"method": "fedclip", "merge": True}, "choose a LoRA method"),
        ({"method": "fedavg"}, "add --merge"),
        ({"method": "ensemble"}, "use --adapter global"),
        ({"method": "local", "adapter": "global"}, "local shares nothing"),
    ],
)
def test_what_has_no_such_form_is_refused_and_leaves_nothing(played, tmp_path, words, part):
    with pytest.raises(UserError, match=part):
        played("image").export(**{"client": CLIENT, "to": tmp_path / "out", **words})
    assert list(tmp_path.iterdir()) == []


def test_an_export_of_a_run_that_goes_on_is_of_one_round(played, monkeypatch):
    folder = played("image").folder
    states = iter([folder.checkpoint_state("flora"), {"round": 3}, {"round": 3}])
    monkeypatch.setattr(RunFolder, "checkpoint_state", lambda self, method: next(states))
    with (
        pytest.raises(UserError, match="finished another round of flora just now; do it again"),
        unchanged(folder, "flora"),
    ):
        raise UserError("a file is gone")


def test_natural_clients_are_known_by_name(tmp_path, digits, monkeypatch):
    for client in ("ward 1", "ward 2"):
        for label, name in enumerate(("zero", "one")):
            (tmp_path / "photos" / client / name).mkdir(parents=True)
            for index in (digits.labels == label).nonzero()[:6, 0]:
                picture = Image.fromarray(digits.images[index].permute(1, 2, 0).numpy())
                picture.save(tmp_path / "photos" / client / name / f"{index}.png")
    words = [f"data.dataset=clients:{tmp_path}/photos", "data.partition=natural", "data.clients=2", "methods=flora"]
    config = load_config(None, [*words, "training.rounds=1", f"runs_dir={tmp_path}"])
    run = api.run(config, PlainReporter(Console(quiet=True)))
    run.export("ward 2", tmp_path / "out")
    about = Manifest.read(tmp_path / "out")
    assert (about.client, about.client_name) == (1, "ward 2")
    assert "client 1 (ward 2)" in (tmp_path / "out" / "README.md").read_text()
    assert run.export("0", tmp_path / "other").manifest.client_name == "ward 1"
    with pytest.raises(UserError, match="--client ward 3 is no number, and did you mean ward"):
        run.client("ward 3")


def test_a_newcomer_has_left_no_model(played):
    run = played("image")
    (late,) = set(range(run.config.data.clients)) - set(run.clients)
    with pytest.raises(UserError, match="joined when the run was over"):
        run.client(late)


@pytest.mark.parametrize("part", ["of the server", "of a client"])
def test_a_damaged_checkpoint_is_named(played, tmp_path, part):
    run = played("image")
    folder = run.path / "checkpoint" / "flora"
    commit = run.folder.checkpoint_state("flora")
    block = next(piece.file for piece in commit.clients if run.clients.index(CLIENT) in piece.rows)
    file = folder / (commit.tensors.file if part == "of the server" else block)
    whole = file.read_bytes()
    file.write_bytes(whole[:-8] + bytes(255 - byte for byte in whole[-8:]))
    try:
        with pytest.raises(UserError, match=f"{file.name} is damaged"):
            run.export(CLIENT, tmp_path / "out", "flora")
    finally:
        file.write_bytes(whole)
    assert list(tmp_path.iterdir()) == []


def test_who_never_took_part_has_the_servers_adapter_alone(tmp_path):
    words = [
        "methods=feddlp,ffa,local",
        "method.ffa={variant_of='flora',factors_trained='B'}",
        "data.clients=3",
        "data.partition=few_shot_iid",
        "data.shots=1",
        "training.rounds=1",
        "training.participation=0.3",
        f"runs_dir={tmp_path}",
    ]
    run = api.run(load_config(None, words), PlainReporter(Console(quiet=True)))
    ((present,),) = (piece.rows for piece in run.folder.checkpoint_state("feddlp").clients)
    absent = (present + 1) % 3
    ours, theirs = (low_rank(read_client(run.folder, "feddlp", client, "global")) for client in (absent, present))
    assert all(torch.equal(a, b) for site in theirs for a, b in zip(ours[site], theirs[site], strict=True))
    for method, which, part in (
        ("feddlp", "local", "never took part in a round of feddlp; choose another, or add --adapter global"),
        ("local", "local", "never took part in a round of local; choose another$"),
        ("ffa", "global", "not all of ffa travels"),
    ):
        with pytest.raises(UserError, match=part):
            read_client(run.folder, method, absent, which)
    assert low_rank(read_client(run.folder, "ffa", present, "global"))


def test_a_folder_appears_whole_or_not_at_all(played, tmp_path, monkeypatch):
    run = played("image")
    model = read_client(run.folder, "flora", CLIENT)

    def full(*_: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("feddlp.export.save_file", full)
    with pytest.raises(UserError, match="No space left on device"):
        export(run.folder, model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_taken_and_a_full_one_refused(tmp_path):
    (tmp_path / "out").mkdir()
    with new_folder(tmp_path / "out") as draft:
        (draft / "README.md").write_text("card")
    with pytest.raises(UserError, match="not an empty folder"):
        check_free(tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "README.md"]


# Who is meant


@pytest.fixture
def numbered(tmp_path) -> RunFolder:
    """Clients whose names are numbers."""
    folder = RunFolder(tmp_path)
    folder.write_partition({"class_names": [], "client_names": ["1", "2", "3", "east", "4"]})
    return folder


@pytest.mark.parametrize(
    ("given", "number"),
    [
        (1, 1), ("0", 0), ("4", 4), ("east", 3), ("number:1", 1), ("name:1", 0), ("name:3", 2), ("number:0", 0),
        ("7", 7),
    ],
)  # fmt: skip
def test_a_client_is_meant_by_number_or_by_name(numbered, given, number):
    assert number_of(numbered, given) == number


@pytest.mark.parametrize("given", ["1", "2", "3"])
def test_what_is_one_clients_number_and_anothers_name_is_refused(numbered, given):
    other = names_of(numbered)[int(given)]
    line = (
        rf"client {given} \({other}\) by its number, and client {int(given) - 1} \({given}\) by its name; write number"
    )
    with pytest.raises(UserError, match=line):
        number_of(numbered, given)


@pytest.mark.parametrize("given", ["west", "9" * 5000, "name:9", "number:x", "-1"])
def test_what_is_no_client_is_refused(numbered, given):
    with pytest.raises(UserError, match=f"--client {given} is no number"):
        number_of(numbered, given)


@pytest.mark.parametrize("name", ["a | b", "x\x1b]0;owned\x07", "a\nlicense: mine", "\u202etxt.exe"])
def test_a_card_shows_names_and_obeys_none(name, tmp_path):
    config = load_config(None, ["name=x"])
    manifest = Manifest(
        checkpoint="tiny-clip", adapt="image", dtype="float32", backbone="", class_names=[name], template=f"{{}}{name}",
        data=f"folder:{name}", method="feddlp", client=1, client_name=name, seed=0, round=1, adapter="local",
    )  # fmt: skip
    folder = RunFolder(tmp_path)
    model = ClientModel("feddlp", 1, 0, 1, "local", config.build_methods()["feddlp"], {}, "local")
    card = model_card(folder, config, model, manifest, {})
    assert not {sign for sign in card if unicodedata.category(sign)[0] == "C"} - {"\n"}
    assert "license: mine" not in card.split("\n")
    assert f"# feddlp, client 1 ({printable(name)})" in card
    assert all(line.count("|") == 3 for line in card.split("\n") if line.startswith("|"))
