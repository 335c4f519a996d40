"""Small random checkpoints of every family, as their authors lay them out: folders to be loaded, and to be spoilt."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, CLIPConfig, PreTrainedModel, SiglipConfig, SiglipTokenizer

from feddlp.model.family import family_of
from feddlp.model.hub import EMBEDDED

TOWERS = ("image", "text", "both")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SENTENCES = [*(f"a photo of the digit {name}." for name in DIGITS), "a cat", "an aircraft in a blue sky over the sea"]
IMAGE = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3}
TEXT = {"hidden_size": 16, "intermediate_size": 36, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = IMAGE | {"image_size": 16, "patch_size": 8}
POSITIONS = 40


def openai_like(folder: Path) -> None:
    """Sigmoid GELU, end token 2 as in the old configurations, which means the largest, and an old image processor."""
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED["tiny-clip"])
    text = TEXT | {"vocab_size": len(tokenizer), "max_position_embeddings": POSITIONS, "eos_token_id": 2}
    save(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=20), tokenizer, folder)
    old = {"do_resize": True, "size": 16, "resample": 3, "do_center_crop": True, "crop_size": 16, "do_normalize": True}
    old |= {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}
    write(folder / "preprocessor_config.json", old | {"feature_extractor_type": "CLIPFeatureExtractor"})


def laion_like(folder: Path) -> None:
    """GELU, the true end token, another token for padding, a width of its own for features."""
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED["tiny-clip"], pad_token="!")
    text = TEXT | {"vocab_size": len(tokenizer), "max_position_embeddings": POSITIONS, "hidden_act": "gelu"}
    text |= {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    vision = VISION | {"hidden_act": "gelu"}
    save(CLIPConfig(text_config=text, vision_config=vision, projection_dim=14), tokenizer, folder)


def siglip(folder: Path) -> None:
    """A sentencepiece tokenizer, which pads with its end token."""
    tokenizer = sentencepiece_tokenizer(folder)
    save(siglip_config(len(tokenizer)), tokenizer, folder)


def siglip2(folder: Path) -> None:
    """SigLIP2 of fixed resolution: the same model with Gemma's tokenizer, which does not lower the case."""
    tokenizer = gemma_tokenizer(folder)
    save(siglip_config(len(tokenizer)), tokenizer, folder)


CHECKPOINTS: dict[str, Callable[[Path], None]] = {
    "openai": openai_like,
    "laion": laion_like,
    "siglip": siglip,
    "siglip2": siglip2,
}


def siglip_config(words: int) -> SiglipConfig:
    text = TEXT | {"vocab_size": words, "max_position_embeddings": POSITIONS, "projection_size": IMAGE["hidden_size"]}
    text |= {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 1}
    return SiglipConfig(text_config=text, vision_config=VISION)


def save(config: CLIPConfig | SiglipConfig, tokenizer: Any, folder: Path) -> None:
    """A whole checkpoint."""
    random_model(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    family_of(config).processor(config.vision_config.image_size).save_pretrained(folder)


def random_model(config: CLIPConfig | SiglipConfig) -> PreTrainedModel:
    """No weight is 0, as biases are at the start, so that nothing can be forgotten unseen."""
    torch.manual_seed(0)
    model = family_of(config).model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        model.logit_scale.fill_(2.5)
        if config.model_type == "siglip":
            model.logit_bias.fill_(-3.3)
    return model


def sentencepiece_tokenizer(folder: Path) -> SiglipTokenizer:
    """A unigram model of a few sentences, by itself in a folder for now."""
    trained = io.BytesIO()
    special = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_writer=trained,
        vocab_size=90,
        hard_vocab_limit=False,
        minloglevel=2,
        **special,
    )
    folder.mkdir(exist_ok=True)
    (folder / "spiece.model").write_bytes(trained.getvalue())
    return SiglipTokenizer(str(folder / "spiece.model"))


def gemma_tokenizer(folder: Path) -> Any:
    """Byte-pair encoding as Gemma's, set as in SigLIP2's repositories."""
    tokens = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokens.normalizer = normalizers.Replace(" ", "▁")
    tokens.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokens.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    tokens.train_from_iterator(SENTENCES, trainers.BpeTrainer(vocab_size=90, special_tokens=special))
    tokens.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    folder.mkdir(exist_ok=True)
    tokens.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    settings = {
        "add_bos_token": False,
        "add_eos_token": True,
        "do_lower_case": True,
        "model_input_names": ["input_ids"],
    }
    settings |= {"padding_side": "right", "tokenizer_class": "GemmaTokenizer", **names}
    write(folder / "tokenizer_config.json", settings)
    write(folder / "config.json", {"model_type": "siglip"})
    return AutoTokenizer.from_pretrained(folder)


def write(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content), encoding="utf-8")


def change(file: Path, **fields: Any) -> None:
    """Set fields of a JSON file; None removes one."""
    content = json.loads(file.read_text(encoding="utf-8")) | fields
    write(file, {name: value for name, value in content.items() if value is not None})


def copy(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))
