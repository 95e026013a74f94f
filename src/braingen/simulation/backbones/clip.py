"""Train the tiny CLIP: an image encoder and two text encoders with tokenizers.

First the three are trained together; then a new image encoder is trained against the finished text
encoder, with classification heads for what captions hardly teach.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

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
from braingen.simulation.scenes import BACKGROUNDS, COLOURS, OBJECTS, POSITIONS

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's own normalisation."""
VOCABULARY = 830
TOKENS = 16
THUMBNAIL = 12
THUMBNAIL_WEIGHT = 10.0
"""Loss weight of the thumbnail decoded from the image embedding, which keeps the layout."""
WIDTH = 128
LABELS = {
    "object": len(OBJECTS),
    "background": len(BACKGROUNDS),
    "colour": len(COLOURS),
    "position": len(POSITIONS),
}
"""Labels of the linear heads on the image embedding. Captions alone hardly teach position: few
scenes of a batch differ in nothing else, and an embedding trained on captions alone lacked it.
"""


class TinyCLIP(NamedTuple):
    """The trained encoders."""

    image: CLIPVisionModelWithProjection
    text_1: CLIPTextModel
    text_2: CLIPTextModelWithProjection
    tokenizer: CLIPTokenizer


def load_text_encoders(
    folder: Path,
) -> tuple[CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer]:
    """Load both text encoders and their tokenizer, in float32, from finished backbones."""
    first = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
    second = CLIPTextModelWithProjection.from_pretrained(
        folder / "text_encoder_2", dtype=torch.float32
    )
    return first.eval(), second.eval(), CLIPTokenizer.from_pretrained(folder / "tokenizer_2")


def train_tokenizer(captions: Iterable[str]) -> CLIPTokenizer:
    """Train a byte-pair vocabulary like CLIP's on the captions."""
    # the class's own normaliser and splitter, for the same text form in training and use
    backend = CLIPTokenizer(
        vocab={"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2},
        merges=[],
        model_max_length=TOKENS,
        pad_token="<|endoftext|>",
    )._tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        end_of_word_suffix="</w>",
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        show_progress=False,
    )
    backend.train_from_iterator(captions, trainer)
    import json

    learned = json.loads(backend.to_str())["model"]
    return CLIPTokenizer(
        vocab=learned["vocab"],
        merges=[tuple(pair) for pair in learned["merges"]],
        model_max_length=TOKENS,
        pad_token="<|endoftext|>",
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


def _image_tower(side: int) -> CLIPVisionModelWithProjection:
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
    tower = CLIPVisionModelWithProjection(vision)
    _rescale(tower)
    # the library's initial positions (0.02) are too small beside patches of unit scale
    nn.init.normal_(tower.vision_model.embeddings.position_embedding.weight, std=1.0)
    return tower


def _rescale(model: nn.Module) -> None:
    """Initialise for thousands of pairs; CLIP's own initial values need hundreds of millions."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)


class _Together(nn.Module):
    """The three encoders with their auxiliary heads."""

    def __init__(self, tokenizer: CLIPTokenizer, side: int) -> None:
        super().__init__()
        self.image = _image_tower(side)
        self.text_1 = CLIPTextModel(_text_config(tokenizer, 96, 2, 3))
        self.text_2 = CLIPTextModelWithProjection(_text_config(tokenizer, WIDTH, 3, 4))
        _rescale(self.text_1)
        _rescale(self.text_2)
        self.text_1_head = nn.Linear(96, WIDTH)
        self.thumbnail_head = nn.Linear(WIDTH, 3 * THUMBNAIL**2)
        self.logit_scale = nn.Parameter(torch.tensor(2.5))


class _Image(nn.Module):
    """The image encoder with its auxiliary heads."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.image = _image_tower(side)
        self.thumbnail_head = nn.Linear(WIDTH, 3 * THUMBNAIL**2)
        self.label_heads = nn.ModuleDict(
            {name: nn.Linear(WIDTH, count) for name, count in LABELS.items()}
        )
        self.logit_scale = nn.Parameter(torch.tensor(3.0))


def clip_pixels(images_B3HW: Tensor) -> Tensor:
    """Convert images in [0, 1] to CLIP's normalised pixels."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))
    return (images_B3HW - mean) / std


def _contrastive(image_BD: Tensor, text_BD: Tensor, same_BB: Tensor, scale: Tensor) -> Tensor:
    """Symmetric contrastive loss; pairs of equal content share the target evenly."""
    logits = scale.exp() * normalize(image_BD, dim=-1) @ normalize(text_BD, dim=-1).T
    targets = same_BB / same_BB.sum(1, keepdim=True)
    return 0.5 * (cross_entropy(logits, targets) + cross_entropy(logits.T, targets))


def _thumbnail_loss(predicted_BF: Tensor, images_B3HW: Tensor) -> Tensor:
    predicted = predicted_BF.view(len(images_B3HW), 3, THUMBNAIL, THUMBNAIL)
    target = adaptive_avg_pool2d(images_B3HW, THUMBNAIL)
    return THUMBNAIL_WEIGHT * (predicted - target).square().mean()


def _token_ids(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    return torch.tensor(
        tokenizer(texts, padding="max_length", truncation=True, max_length=TOKENS)["input_ids"]
    )


def _pixels(data: Corpus, rows: Tensor) -> Tensor:
    """Load images in [0, 1]; rows in ascending order."""
    return torch.from_numpy(data.images_N3HW[rows.numpy()]).float() / 255


def train_clip(
    data: Corpus, folder: Path, steps: int = 700, image_steps: int = 1000, batch: int = 256
) -> TinyCLIP:
    """Train the encoders; equal captions count as equal content.

    Parameters
    ----------
    steps : int, optional
        Of the three encoders together.
    image_steps : int, optional
        Of the final image encoder.
    """
    torch.manual_seed(1)
    batch = min(batch, len(data.captions))
    learned = folder / "tokenizer"
    # pairs of equal frequency are merged in no fixed order, so the vocabulary is trained once
    if not learned.exists():
        train_tokenizer(text for five in data.captions for text in five).save_pretrained(learned)
    tokenizer = CLIPTokenizer.from_pretrained(learned)
    trained = _Together(tokenizer, data.images_N3HW.shape[-1])
    ids = _token_ids(tokenizer, [text for five in data.captions for text in five]).view(
        len(data.captions), 5, TOKENS
    )

    def losses_of(step: int, generator: torch.Generator) -> Losses:
        rows = torch.randperm(len(ids), generator=generator)[:batch].sort().values
        which = torch.randint(5, (batch,), generator=generator)
        tokens = ids[rows, which]
        images = _pixels(data, rows)
        length = int((tokens != tokenizer.eos_token_id).sum(1).max()) + 1
        same = (tokens[:, None] == tokens[None]).all(-1).float()
        with torch.autocast("cpu", torch.bfloat16):
            image = trained.image(pixel_values=clip_pixels(images)).image_embeds.float()
            text_2 = trained.text_2(input_ids=tokens[:, :length]).text_embeds.float()
            text_1 = trained.text_1_head(
                trained.text_1(input_ids=tokens[:, :length]).pooler_output
            ).float()
        scale = trained.logit_scale.clamp(max=4.6)
        return {
            "text_2": _contrastive(image, text_2, same, scale),
            "text_1": 0.5 * _contrastive(image.detach(), text_1, same, scale),
            "thumbnail": _thumbnail_loss(trained.thumbnail_head(image), images),
        }

    train(
        trained,
        losses_of,
        folder,
        name="clip",
        steps=steps,
        learning_rate=1e-3,
        weight_decay=0.05,
        ema=0.99,
    )
    image = train_image_tower(data, trained.text_2, tokenizer, folder, image_steps)
    return TinyCLIP(image, trained.text_1, trained.text_2, tokenizer)


@torch.inference_mode()
def _embed_captions(
    data: Corpus, text: CLIPTextModelWithProjection, tokenizer: CLIPTokenizer
) -> tuple[Tensor, Tensor]:
    """Embed every distinct caption, and return each image's five indices."""
    distinct = sorted({caption for five in data.captions for caption in five})
    row = {caption: i for i, caption in enumerate(distinct)}
    pieces = [
        text(input_ids=_token_ids(tokenizer, distinct[i : i + 500])).text_embeds
        for i in range(0, len(distinct), 500)
    ]
    return torch.cat(pieces), torch.tensor(
        [[row[caption] for caption in five] for five in data.captions]
    )


def train_image_tower(
    data: Corpus,
    text: CLIPTextModelWithProjection,
    tokenizer: CLIPTokenizer,
    folder: Path,
    steps: int,
    batch: int = 192,
) -> CLIPVisionModelWithProjection:
    """Train an image encoder against finished captions, with heads for the scene's attributes."""
    torch.manual_seed(1)
    batch = min(batch, len(data.captions))
    trained = _Image(data.images_N3HW.shape[-1])
    captions_UD, caption_of_N5 = (
        part.clone() for part in _embed_captions(data, text.eval(), tokenizer)
    )
    labels = {name: torch.from_numpy(data.labels[name]) for name in LABELS}

    def losses_of(step: int, generator: torch.Generator) -> Losses:
        rows = torch.randperm(len(data.captions), generator=generator)[:batch].sort().values
        images = _pixels(data, rows)
        caption = caption_of_N5[rows, torch.randint(5, (batch,), generator=generator)]
        with torch.autocast("cpu", torch.bfloat16):
            image = trained.image(pixel_values=clip_pixels(images)).image_embeds.float()
        same = (caption[:, None] == caption[None]).float()
        losses = {
            "text": _contrastive(
                image, captions_UD[caption], same, trained.logit_scale.clamp(max=4.6)
            ),
            "thumbnail": _thumbnail_loss(trained.thumbnail_head(image), images),
        }
        for name, head in trained.label_heads.items():
            wanted = labels[name][rows]  # -1 where an object comes in one colour only
            losses[name] = cross_entropy(
                head(image), wanted, ignore_index=-1, reduction="sum"
            ) / max(1, int((wanted >= 0).sum()))
        return losses

    train(
        trained,
        losses_of,
        folder,
        name="image_tower",
        steps=steps,
        learning_rate=1e-3,
        weight_decay=0.05,
        ema=0.99,
    )
    return trained.image
