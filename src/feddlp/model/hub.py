"""From `model.checkpoint` to a folder that holds everything: embedded, local, in the hub's cache, or fetched into it.

A hub name that is in the cache is used as it lies there, without asking the network, so that a run is the same today
and tomorrow; what is missing is fetched in one try, without the minutes of retries of the library.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

import huggingface_hub as hub
from huggingface_hub import constants, errors

EMBEDDED = {"tiny-clip": Path(__file__).parents[1] / "assets" / "tiny-clip"}
WAYS = f"give {', '.join(EMBEDDED)}, the folder of a CLIP or SigLIP checkpoint, or a hub name"
TIMEOUT = 10  # seconds for the first answer of the hub
OPEN_CLIP = (
    "it holds open_clip's files only (open_clip_config.json); give a checkpoint in the format of Hugging Face "
    "transformers, such as laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
)
SMALL = ("*.json", "*.txt", "*.model")

Alternatives = tuple[tuple[str, ...], ...]
"""Any of these, each of which may be several files."""

CONFIG: Alternatives = (("config.json",),)
WEIGHTS: Alternatives = (
    ("model.safetensors",),
    ("model.safetensors.index.json",),
    ("pytorch_model.bin",),
    ("pytorch_model.bin.index.json",),
)
TOKENIZER: Alternatives = (("tokenizer.json",), ("spiece.model",), ("vocab.json", "merges.txt"))
PROCESSOR: Alternatives = (("preprocessor_config.json",), ("processor_config.json",))
CHECKPOINT = (CONFIG, WEIGHTS, TOKENIZER, PROCESSOR)


class UnusableError(Exception):
    """What is wrong with a checkpoint; what can be done about it."""


def missing(folder: Path, needed: Sequence[Alternatives]) -> str:
    """The first file that a folder lacks, with what would do in its place; "" if it is complete."""
    for alternatives in needed:
        if not any(all((folder / name).is_file() for name in names) for names in alternatives):
            return " or ".join(" and ".join(names) for names in alternatives)
    return missing_part(folder / weights_file(folder)) if WEIGHTS in needed else ""


def missing_part(weights: Path) -> str:
    """The first file that an index of weights lists and that is not there; "" if all are, or there is no index."""
    if weights.suffix != ".json":
        return ""
    parts = sorted(set(json.loads(weights.read_text(encoding="utf-8"))["weight_map"].values()))
    return next((part for part in parts if not (weights.parent / part).is_file()), "")


def local_folder(checkpoint: str) -> Path:
    """Where an embedded or a local checkpoint lies; nowhere, if it is a hub name."""
    return EMBEDDED.get(checkpoint, Path(checkpoint).expanduser())


def weights_file(folder: Path) -> str:
    """The file that weights are read from, or that lists the files."""
    return next(name for (name,) in WEIGHTS if (folder / name).is_file())


def find_folder(checkpoint: str, needed: Sequence[Alternatives] = CHECKPOINT) -> Path:
    """The folder of an embedded checkpoint, a local one, or a hub name, with all that is needed in it.

    Raises:
        UnusableError: there is none, or it lacks something.
    """
    folder = local_folder(checkpoint)
    if folder.is_file():
        raise UnusableError(f"it is a file; {WAYS}")
    if not folder.is_dir():
        return find_on_hub(checkpoint, needed)
    if not (folder / "config.json").is_file() and (folder / "open_clip_config.json").is_file():
        raise UnusableError(OPEN_CLIP)
    if lacking := missing(folder, needed):
        raise UnusableError(f"{lacking} is missing in {folder}; copy it from where the checkpoint came from")
    return folder


def find_on_hub(name: str, needed: Sequence[Alternatives]) -> Path:
    """The folder of a hub name: as it is in the cache if that is complete, else after fetching what is missing.

    Raises:
        UnusableError: no such name, or the hub is out of reach.
    """
    folder = cached(name)
    if not (lacking := missing(folder, needed)):
        return folder
    try:
        return fetch(name, needed)
    except UnusableError:
        raise
    except errors.GatedRepoError as error:
        raise UnusableError(f"its terms must be accepted first; do so on hf.co/{name}, then hf auth login") from error
    except errors.RepositoryNotFoundError as error:
        raise UnusableError(f"there is no such folder, and no such model on the hub; {WAYS}") from error
    except Exception as error:  # whatever a network and its library may raise
        raise UnusableError(
            f"there is no such folder, {lacking} is not in {folder}, and the hub cannot be reached "
            f"({first_line(error)}); where there is a network run hf download {name} --local-dir FOLDER, copy FOLDER "
            "here, and set model.checkpoint=FOLDER"
        ) from error


def cached(name: str) -> Path:
    """Where the cache keeps a hub name, or would."""
    try:
        return Path(hub.snapshot_download(name, local_files_only=True))
    except errors.HFValidationError as error:
        raise UnusableError(f"there is no such folder; {WAYS}") from error
    except errors.LocalEntryNotFoundError:
        return Path(constants.HF_HUB_CACHE) / constants.REPO_ID_SEPARATOR.join(["models", *name.split("/")])


def fetch(name: str, needed: Sequence[Alternatives]) -> Path:
    """Download what is needed of a repository, weights in one format only."""
    info = hub.HfApi().model_info(name, timeout=TIMEOUT)
    files = [file.rfilename for file in info.siblings or [] if "/" not in file.rfilename]
    wanted = [file for file in files if any(fnmatch(file, pattern) for pattern in wanted_patterns(files, needed))]
    folder = Path(hub.snapshot_download(name, revision=info.sha, allow_patterns=wanted, ignore_patterns=["*/*"]))
    if "config.json" not in files and "open_clip_config.json" in files:
        raise UnusableError(OPEN_CLIP)
    if lacking := missing(folder, needed):
        raise UnusableError(f"{name} has no {lacking} on the hub; choose another checkpoint")
    return folder


def wanted_patterns(files: Sequence[str], needed: Sequence[Alternatives]) -> tuple[str, ...]:
    """Of a repository's files: the small ones, and weights as safetensors where it has them."""
    if WEIGHTS not in needed:
        return ("config.json",)
    safe = any(name in files for names in WEIGHTS[:2] for name in names)
    return (*SMALL, "model*.safetensors" if safe else "pytorch_model*.bin")


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
