"""The tiny CLIP: an image encoder and two text encoders with their tokenizers, trained together on scenes and captions."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import trainers
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, cross_entropy, normalize
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from braingen.simulation.backbones.corpus import Corpus
from braingen.simulation.backbones.training import Losses, train

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's own normalisation."""
VOCABULARY = 830
TOKENS = 16
THUMBNAIL = 12
LAYOUT_WEIGHT = 40.0
"""Of the thumbnail that is drawn from the image embedding. Captions alone hardly teach where things are: in a batch few scenes differ in
nothing but the position, so without this the embedding forgets it."""
WIDTH = 128


class TinyCLIP(NamedTuple):
    """What the recipe makes."""

    image: CLIPVisionModelWithProjection
    text_1: CLIPTextModel
    text_2: CLIPTextModelWithProjection
    tokenizer: CLIPTokenizer


def train_tokenizer(captions: Iterable[str]) -> CLIPTokenizer:
    """Learn CLIP's kind of byte-pair vocabulary from the captions."""
    # the class's own normaliser and splitter, so that what is learned is what it will see
    backend = CLIPTokenizer(
        vocab={"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2}, merges=[], model_max_length=TOKENS, pad_token="<|endoftext|>"
    )._tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, end_of_word_suffix="</w>", special_tokens=["<|startoftext|>", "<|endoftext|>"], show_progress=False
    )
    backend.train_from_iterator(captions, trainer)
    import json

    learned = json.loads(backend.to_str())["model"]
    return CLIPTokenizer(
        vocab=learned["vocab"], merges=[tuple(pair) for pair in learned["merges"]], model_max_length=TOKENS, pad_token="<|endoftext|>"
    )


def _text_config(tokenizer: CLIPTokenizer, width: int, layers: int, heads: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=TOKENS,
        projection_dim=WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="eager",
    )


class _Trained(nn.Module):
    """The three encoders with the helper heads of their training."""

    def __init__(self, tokenizer: CLIPTokenizer, side: int) -> None:
        super().__init__()
        vision = CLIPVisionConfig(
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=side,
            patch_size=16,
            projection_dim=WIDTH,
            attn_implementation="eager",
        )
        self.image = CLIPVisionModelWithProjection(vision)
        self.text_1 = CLIPTextModel(_text_config(tokenizer, 96, 2, 3))
        self.text_2 = CLIPTextModelWithProjection(_text_config(tokenizer, WIDTH, 3, 4))
        # CLIP's own initial values are made for hundreds of millions of pairs; these learn from thousands
        for module in (*self.image.modules(), *self.text_1.modules(), *self.text_2.modules()):
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
        # beside patches of unit scale the library's positions (0.02) would stay unheard
        nn.init.normal_(self.image.vision_model.embeddings.position_embedding.weight, std=1.0)
        self.text_1_head = nn.Linear(96, WIDTH)
        self.layout_head = nn.Linear(WIDTH, 3 * THUMBNAIL**2)
        self.logit_scale = nn.Parameter(torch.tensor(2.5))


def clip_pixels(images_B3HW: Tensor) -> Tensor:
    """Pictures in [0, 1] to CLIP's normalised pixels."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))
    return (images_B3HW - mean) / std


def _contrastive(image_BD: Tensor, text_BD: Tensor, same_BB: Tensor, scale: Tensor) -> Tensor:
    """Symmetric contrastive loss whose target is shared evenly among pairs with the same content."""
    logits = scale.exp() * normalize(image_BD, dim=-1) @ normalize(text_BD, dim=-1).T
    targets = same_BB / same_BB.sum(1, keepdim=True)
    return 0.5 * (cross_entropy(logits, targets) + cross_entropy(logits.T, targets))


def train_clip(data: Corpus, folder: Path, steps: int = 1400, batch: int = 256) -> TinyCLIP:
    """Train the encoders; captions that are equal count as the same content."""
    torch.manual_seed(1)
    batch = min(batch, len(data.captions))
    learned = folder / "tokenizer"
    if not learned.exists():  # pairs of equal frequency are merged in no fixed order, so a vocabulary is learned once and kept
        train_tokenizer(text for five in data.captions for text in five).save_pretrained(learned)
    tokenizer = CLIPTokenizer.from_pretrained(learned)
    trained = _Trained(tokenizer, data.images_N3HW.shape[-1])
    ids = torch.tensor(
        tokenizer([text for five in data.captions for text in five], padding="max_length", truncation=True, max_length=TOKENS)["input_ids"]
    ).view(len(data.captions), 5, TOKENS)

    def losses_of(step: int, generator: torch.Generator) -> Losses:
        rows = torch.randperm(len(ids), generator=generator)[:batch]
        which = torch.randint(5, (batch,), generator=generator)
        tokens = ids[rows, which]
        images = torch.from_numpy(data.images_N3HW[np.sort(rows.numpy())]).float() / 255
        images = images[torch.argsort(torch.argsort(rows))]  # the file is read in order, the batch is not
        length = int((tokens != tokenizer.eos_token_id).sum(1).max()) + 1
        same = (tokens[:, None] == tokens[None]).all(-1).float()
        with torch.autocast("cpu", torch.bfloat16):
            image = trained.image(pixel_values=clip_pixels(images)).image_embeds.float()
            text_2 = trained.text_2(input_ids=tokens[:, :length]).text_embeds.float()
            text_1 = trained.text_1_head(trained.text_1(input_ids=tokens[:, :length]).pooler_output).float()
        scale = trained.logit_scale.clamp(max=4.6)
        layout = trained.layout_head(image).view(batch, 3, THUMBNAIL, THUMBNAIL)
        return {
            "text_2": _contrastive(image, text_2, same, scale),
            "text_1": 0.5 * _contrastive(image.detach(), text_1, same, scale),
            "layout": LAYOUT_WEIGHT * (layout - adaptive_avg_pool2d(images, THUMBNAIL)).square().mean(),
        }

    train(trained, losses_of, folder, name="clip", steps=steps, learning_rate=1e-3, weight_decay=0.05, ema=0.99)
    return TinyCLIP(trained.image, trained.text_1, trained.text_2, tokenizer)
