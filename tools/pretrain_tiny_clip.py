"""Pre-train the embedded CLIP from scratch: `python tools/pretrain_tiny_clip.py`  (about 15 minutes on 2 cores).

Writes a genuine Hugging Face CLIP checkpoint folder to src/feddlp/assets/tiny-clip: config.json,
model.safetensors (float16), tokenizer.json + tokenizer_config.json, preprocessor_config.json.

The recipe is CLIP's: two transformers, one shared space, the symmetric contrastive loss with a learned
temperature. The material is rendered characters with captions (`tools/glyphs.py`). The script knows no
other data: the last step of a fixed schedule is the checkpoint, and the printed score is on held-out fonts.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from feddlp.data.characters import FONTS, IMAGE_SIZE, characters
from glyphs import HELD_OUT_FONTS, GlyphBatches

ASSETS = Path(__file__).parents[1] / "src" / "feddlp" / "assets" / "tiny-clip"
START, END = "<|startoftext|>", "<|endoftext|>"
VOCABULARY = 1024

# Ordinary prompts, so that the tokenizer has whole words for what people type, not only for the captions above.
ORDINARY_PROMPTS = """
a photo of a cat, a type of pet. a photo of a dog, a type of pet. a photo of a rose, a type of flower.
a photo of a sunflower, a type of flower. a photo of a boeing 737, a type of aircraft. a photo of a striped texture.
a photo of a woven texture. a bad photo of a car. a good photo of the house. a close-up photo of a bird. a black and
white photo of the tree. a cropped photo of the person. a bright photo of a horse. a dark photo of the ship. a jpeg
corrupted photo of a truck. a low resolution photo of the airplane. a blurry photo of a face. a pixelated photo of a
fish. a painting of a mountain. a sketch of the river. a cartoon of an animal. a photo of a large building. a photo of
a small chair. a photo of many people. an x-ray image of the chest. a histology image of tissue. a satellite image of a
city. a handwritten digit. a handwritten letter. a scanned page of text. a product on a shelf. a photo of my bag.
one two three four five six seven eight nine ten zero first second third last number digit letter character word sign
"""


def train_tokenizer(texts: list[str]) -> CLIPTokenizer:
    """CLIP's byte-level BPE with a small vocabulary learned from `texts`; any other text encodes byte by byte."""
    clip = CLIPTokenizer().backend_tokenizer
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer, learner.pre_tokenizer = clip.normalizer, clip.pre_tokenizer
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, end_of_word_suffix="</w>", initial_alphabet=symbols, show_progress=False
    )
    learner.train_from_iterator(texts, trainer)
    alphabet = [*symbols, *(symbol + "</w>" for symbol in symbols)]  # CLIP's order: bytes, word-final bytes, merges
    merges = [tuple(merge) for merge in json.loads(learner.to_str())["model"]["merges"]]
    merges = merges[: VOCABULARY - len(alphabet) - 2]
    words = [*alphabet, *("".join(merge) for merge in merges), START, END]
    return CLIPTokenizer(vocab={word: index for index, word in enumerate(words)}, merges=merges, model_max_length=77)


def build_model(tokenizer: CLIPTokenizer) -> CLIPModel:
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = CLIPConfig(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 3,
            "num_attention_heads": 3, "max_position_embeddings": 77, "pad_token_id": tokenizer.pad_token_id, **ids,
        },
        vision_config={
            "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4,
            "image_size": IMAGE_SIZE, "patch_size": 8,
        },
        projection_dim=96,
    )  # fmt: skip
    model = CLIPModel(config)
    model.set_attn_implementation("eager")  # the fused kernel's bfloat16 backward pass is many times slower on a CPU
    return model


def build_processor() -> CLIPImageProcessorPil:
    side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    return CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=side)


class Encoder:
    """The model with its pre-processing: uint8 images and captions to unit vectors."""

    def __init__(self, model: CLIPModel, tokenizer: CLIPTokenizer, processor: CLIPImageProcessorPil):
        self.model, self.tokenizer = model, tokenizer
        self.mean = torch.tensor(processor.image_mean)[:, None, None] * 255
        self.std = torch.tensor(processor.image_std)[:, None, None] * 255

    def images(self, images: Tensor) -> Tensor:
        features = self.model.get_image_features(pixel_values=(images - self.mean) / self.std).pooler_output
        return F.normalize(features, dim=-1)

    def texts(self, texts: list[str]) -> Tensor:
        tokens = self.tokenizer(texts, padding=True, truncation=True, max_length=77, return_tensors="pt")
        return F.normalize(self.model.get_text_features(**tokens).pooler_output, dim=-1)


def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor, groups: int) -> Tensor:
    """CLIP's symmetric loss inside each group. images and texts (groups * n, d)"""
    images, texts = (side.view(groups, -1, side.shape[-1]) for side in (images, texts))
    logits = scale * images @ texts.mT  # (groups, n, n)
    targets = torch.arange(logits.shape[-1]).expand(groups, -1)
    return (F.cross_entropy(logits.mT, targets) + F.cross_entropy(logits, targets)) / 2


@torch.no_grad()
def zero_shot_accuracy(encoder: Encoder, fonts: tuple[str, ...], seed: int) -> float:
    """Share of rendered characters that find their own name among all names, in %."""
    batches = GlyphBatches(fonts, groups=20, seed=seed)
    images, _ = batches.draw()
    names = encoder.texts([f"a photo of the {character.names[0]}." for character in characters()])
    predicted = (encoder.images(images) @ names.T).argmax(-1)
    return (predicted == torch.arange(len(names)).repeat(20)).float().mean().item() * 100


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up, then a half cosine down to zero."""
    warmup = max(1, steps // 20)
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (step + 1) / warmup if step < warmup else peak * 0.5 * (1 + math.cos(math.pi * progress))


def pretrain(encoder: Encoder, steps: int, groups: int, peak: float, seed: int) -> None:
    fonts = tuple(font for font in FONTS if font not in HELD_OUT_FONTS)
    batches = GlyphBatches(fonts, groups, seed)
    optimizer = torch.optim.AdamW(encoder.model.parameters(), betas=(0.9, 0.98), weight_decay=0.05)
    started = time.monotonic()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = learning_rate(step, steps, peak)
        images, captions = batches.draw()
        scale = encoder.model.logit_scale.clamp(max=math.log(100)).exp()
        with torch.autocast("cpu", torch.bfloat16):
            image_features, text_features = encoder.images(images), encoder.texts(captions)
        loss = contrastive_loss(image_features.float(), text_features.float(), scale, groups)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(encoder.model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 99:
            held_out = zero_shot_accuracy(encoder, HELD_OUT_FONTS, seed + 1)
            minutes = (time.monotonic() - started) / 60
            print(
                f"step {step + 1}/{steps}  loss {loss:.3f}  held-out fonts {held_out:.1f} %  {minutes:.1f} min",
                flush=True,
            )


def save(encoder: Encoder, processor: CLIPImageProcessorPil, folder: Path) -> None:
    encoder.model.logit_scale.data.clamp_(max=math.log(100))
    encoder.model.to(torch.float16).save_pretrained(folder)
    encoder.tokenizer.save_pretrained(folder)
    processor.save_pretrained(folder)
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"wrote {folder} ({size / 2**20:.2f} MiB)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--groups", type=int, default=5, help="copies of the character set in a batch")
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--to", type=Path, default=ASSETS)
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    material = GlyphBatches(FONTS, groups=40, seed=options.seed)
    tokenizer = train_tokenizer(material.draw()[1] + ORDINARY_PROMPTS.split(". ") * 3)
    processor = build_processor()
    encoder = Encoder(build_model(tokenizer), tokenizer, processor)
    pretrain(encoder, options.steps, options.groups, options.lr, options.seed)
    save(encoder, processor, options.to)


if __name__ == "__main__":
    main()
