"""A hub name: from the cache without a question, else fetched in one try, else one line that says how to get it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import httpx2 as httpx
import pytest
from huggingface_hub import constants, errors

from feddlp.errors import UserError
from feddlp.model import hub
from feddlp.model.checkpoint import load_backbone, load_config

NAME = "somebody/small-siglip"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The hub's cache, which is empty."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def unreachable(monkeypatch):
    """A machine without a network, which counts the tries."""
    tries = []

    def model_info(self, name, **_):
        tries.append(name)
        raise httpx.ConnectError("Name or service not known")

    monkeypatch.setattr(hub.hub.HfApi, "model_info", model_info)
    return tries


def put(cache: Path, checkpoint: Path) -> Path:
    """A checkpoint as the library keeps it in its cache."""
    folder = cache / "models--somebody--small-siglip"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    return Path(shutil.copytree(checkpoint, folder / "snapshots" / COMMIT))


def mistake(name: str = NAME) -> str:
    with pytest.raises(UserError) as raised:
        load_backbone(name, "image")
    assert str(raised.value).startswith(f"model.checkpoint={name} cannot be loaded: ")
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_what_is_in_the_cache_is_used_without_a_question(cache, unreachable, checkpoints):
    put(cache, checkpoints["siglip"])
    found, expected = (load_backbone(name, "image") for name in (NAME, str(checkpoints["siglip"])))
    assert found.fingerprint() == expected.fingerprint()
    assert unreachable == []


def test_a_name_that_is_nowhere_tells_how_to_fetch_it(cache, unreachable):
    line = mistake()
    assert f"config.json is not in {cache}/models--somebody--small-siglip" in line
    assert "the hub cannot be reached (Name or service not known)" in line
    assert f"run hf download {NAME} --local-dir FOLDER" in line
    assert "set model.checkpoint=FOLDER" in line
    assert unreachable == [NAME], "one try"


@pytest.mark.parametrize("file", ["model.safetensors", "spiece.model", "preprocessor_config.json"])
def test_what_the_cache_lacks_is_named(cache, unreachable, checkpoints, file):
    folder = put(cache, checkpoints["siglip"])
    (folder / file).unlink()
    line = mistake()
    assert f"{file} or " in line or f" or {file}" in line
    assert f"is not in {folder}" in line
    assert load_config(NAME).model_type == "siglip", "the configuration is there"


def test_a_network_that_refuses_is_not_asked_twice(cache, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    started = time.perf_counter()
    assert "the hub cannot be reached (" in mistake()
    assert time.perf_counter() - started < 10, "the library's own retries take 30 seconds"


def test_offline_a_process_ends_in_one_line(tmp_path):
    command = [sys.executable, "-m", "feddlp", "run", f"model.checkpoint={NAME}", "methods=zero_shot"]
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"config.json is not in {tmp_path}/home/hub/models--somebody--small-siglip" in done.stderr
    assert "offline mode is enabled" in done.stderr


@pytest.mark.parametrize("name", ["/no/such/model", "a/b/c", "./clip", "two words", "~/clip"])
def test_what_can_be_no_hub_name_is_a_folder_that_is_not_there(cache, unreachable, name):
    assert "there is no such folder; give tiny-clip, the folder of a CLIP or SigLIP checkpoint" in mistake(name)
    assert unreachable == []


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (errors.RepositoryNotFoundError, "no such model on the hub"),
        (errors.GatedRepoError, f"do so on hf.co/{NAME}, then hf auth login"),
    ],
)
def test_what_the_hub_refuses_is_told(cache, monkeypatch, error, told):
    def model_info(self, name, **_):
        raise error("refused", response=httpx.Response(404, request=httpx.Request("GET", "http://hub")))

    monkeypatch.setattr(hub.hub.HfApi, "model_info", model_info)
    assert told in mistake()


@pytest.fixture
def online(cache, monkeypatch, checkpoints):
    """online(files): a hub whose one repository has these files; gives the names that are downloaded."""

    def serve(*files: str) -> list[str]:
        fetched: list[str] = []

        def download(name, *, revision=None, allow_patterns=(), local_files_only=False, **_):
            if local_files_only:
                raise errors.LocalEntryNotFoundError("not here")
            fetched.extend(allow_patterns)
            folder = put(cache, checkpoints["siglip"])
            for file in folder.iterdir():
                if file.name not in allow_patterns:
                    file.unlink()
            return str(folder)

        info = SimpleNamespace(sha=COMMIT, siblings=[SimpleNamespace(rfilename=file) for file in files])
        monkeypatch.setattr(hub.hub.HfApi, "model_info", lambda *_, **__: info)
        monkeypatch.setattr(hub.hub, "snapshot_download", download)
        return fetched

    return serve


SMALL = ["config.json", "preprocessor_config.json", "spiece.model", "tokenizer_config.json"]


def test_weights_are_fetched_in_one_format(online):
    fetched = online(*SMALL, "model.safetensors", "pytorch_model.bin", "flax_model.msgpack", "onnx/model.safetensors")
    load_backbone(NAME, "image")
    assert sorted(fetched) == sorted([*SMALL, "model.safetensors"])


def test_pickled_weights_are_fetched_where_there_are_no_others(online):
    fetched = online(*SMALL, "pytorch_model.bin", "open_clip_pytorch_model.bin")
    mistake()
    assert sorted(fetched) == sorted([*SMALL, "pytorch_model.bin"])


def test_of_the_configuration_alone_nothing_else_is_fetched(online):
    fetched = online(*SMALL, "model.safetensors")
    assert load_config(NAME).model_type == "siglip"
    assert fetched == ["config.json"]


def test_a_repository_that_lacks_something_is_told(online):
    online("config.json", "model.safetensors", "preprocessor_config.json")
    assert "has no tokenizer.json or spiece.model or vocab.json and merges.txt on the hub" in mistake()


def test_a_repository_of_open_clip_is_told_apart(online):
    online("open_clip_config.json", "open_clip_pytorch_model.bin")
    assert "open_clip's files only" in mistake()
