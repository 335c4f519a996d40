"""The model card of an exported model: README.md with the front matter that the Hugging Face hub reads."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from feddlp import __version__
from feddlp.config import Config
from feddlp.manifest import Manifest
from feddlp.model.hub import EMBEDDED, local_folder
from feddlp.names import printable
from feddlp.records import RunFolder
from feddlp.trained import ClientModel

ELSEWHERE = "see the base checkpoint"


def model_card(
    folder: RunFolder, config: Config, model: ClientModel, manifest: Manifest, ranks: Mapping[str, int]
) -> str:
    """The text of README.md."""
    owner = manifest.owner if model.which == "local" else "all clients"
    facts = {
        "Base": f"{config.model.checkpoint} (adapted tower: {config.model.adapt})",
        "Licence of the base": licence(config.model.checkpoint),
        "Data": f"{manifest.data}, {len(manifest.class_names)} classes, {config.data.clients} clients "
        f"(partition: {config.data.partition})",
        "Prompt": f"`{manifest.template}`",
        "Images": f"{manifest.resize} (data.resize)",
        "Method": f"{model.method}, {'its own model' if model.which == 'local' else 'the shared adapter'}, "
        f"seed {model.seed}, after round {model.round} of {config.training.rounds}",
        "Accuracy": accuracy(folder, model),
        "Size": "a whole checkpoint" if manifest.merged else size(ranks),
    }
    table = "\n".join(f"| {name} | {printable(value).replace('|', '&#124;')} |" for name, value in facts.items())
    text = (
        f"{front_matter(config, manifest)}\n# {model.method}, {printable(owner)}\n\n| | |\n|---|---|\n{table}\n\n"
        f"## Use\n\n{usage(config, manifest)}\nMade by feddlp {__version__}, a tool for federated fine-tuning of "
        "vision-language models.\n"
    )
    return printable(text, keep="\n")


def front_matter(config: Config, manifest: Manifest) -> str:
    lines = ["tags: [federated-learning, feddlp]", "pipeline_tag: zero-shot-image-classification"]
    lines.append(f"library_name: {'transformers' if manifest.merged else 'peft'}")
    if not local_folder(config.model.checkpoint).is_dir():
        lines.append(f"base_model: {config.model.checkpoint}")
    return "\n".join(["---", *lines, "---", ""])


def accuracy(folder: RunFolder, model: ClientModel) -> str:
    """What the record says of this client's test samples."""
    if model.which == "global":
        return "not scored by itself; each client's own model was"
    rows = [row for row in folder.read_clients() if (row["method"], row["client"]) == (model.method, str(model.client))]
    found = [row for row in rows if int(row["round"]) <= model.round]
    if not found or not found[-1]["test_accuracy"]:
        return "the client has no test samples"
    return f"{float(found[-1]['test_accuracy']):.2f} % of the client's own {found[-1]['test_samples']} test images"


def size(ranks: Mapping[str, int]) -> str:
    if not ranks:
        return "all ranks were pruned: the adapter is one layer of zeros, and the model is the base"
    return f"{sum(ranks.values())} ranks in {len(ranks)} layers"


def licence(checkpoint: str) -> str:
    """As far as the base's folder says."""
    folder = local_folder(checkpoint)
    if checkpoint in EMBEDDED:
        return "Apache-2.0 (shipped with feddlp)"
    if not folder.is_dir():
        return f"see https://huggingface.co/{checkpoint}"
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    if text.startswith("---") and (named := re.search(r"^license:\s*(\S+)", text.split("---")[1], re.M)):
        return named[1]
    return next((f"see {path.name} of the base checkpoint" for path in sorted(folder.glob("LICEN[CS]E*"))), ELSEWHERE)


def place_of(checkpoint: str) -> str:
    """What `from_pretrained` takes for it."""
    folder = local_folder(checkpoint)
    return str(folder) if folder.is_dir() else checkpoint


def usage(config: Config, manifest: Manifest) -> str:
    """How to load it."""
    if manifest.merged:
        lines = ["from transformers import AutoModel, AutoProcessor", ""]
        lines += ['model = AutoModel.from_pretrained("DIR")', 'processor = AutoProcessor.from_pretrained("DIR")']
    else:
        place = place_of(config.model.checkpoint)
        lines = ["from peft import PeftModel", "from transformers import AutoModel", ""]
        lines += [f'base = AutoModel.from_pretrained({json.dumps(place, ensure_ascii=False)}, dtype="float32")']
        lines += ['model = PeftModel.from_pretrained(base, "DIR")  # or: base.load_adapter("DIR")']
    code = "\n".join(lines)
    return (
        f"DIR is this folder.\n\n```python\n{code}\n```\n\n"
        "```sh\nfeddlp predict --adapter DIR photo.jpg\n```\n\n"
        "Class names and prompt are in `feddlp.json`; logits are cosine similarities times the checkpoint's logit "
        "scale, plus its logit bias where it has one (SigLIP, whose prompts are lower-case and padded to full "
        "length).\n"
    )
