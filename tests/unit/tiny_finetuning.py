"""Fine-tuning at the smallest size: a fake backbone, encoders of 16 units, and latents from a table
in place of the VAE's.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from unit.fake_backbone import fake_backbone, write_fake_backbone
from unit.tiny_training import IMAGES, tiny_config

from braingen.config import Config
from braingen.config.shipped import TINY
from braingen.encoders.embedding_decoder import EmbeddingDecoder, TargetScale
from braingen.targets.clip_text import CLIPTextEncoderDual
from braingen.targets.text_form import TextForm
from braingen.training import diffusion as finetune
from braingen.training import diffusion_data as diffusion_data

VOXELS = {"1": 41, "2": 42}
"""Of the subjects of `unit.fake_nsd`."""
WIDTH = 128
"""Of the shipped CLIP's embeddings of pictures and of its second text encoder's."""


@lru_cache(maxsize=1)
def text_encoder() -> CLIPTextEncoderDual:
    """The shipped one."""
    return CLIPTextEncoderDual.from_pretrained(TINY, dtype=torch.float32)


def table(modality: str) -> Tensor:
    """Embeddings in place of CLIP's."""
    return 1 + 2 * torch.randn(
        IMAGES, 1, WIDTH, generator=torch.Generator().manual_seed(len(modality))
    )


def latents() -> np.ndarray:
    """In place of the VAE's."""
    return (
        torch.randn(IMAGES, 4, 8, 8, generator=torch.Generator().manual_seed(9))
        .numpy()
        .astype(np.float16)
    )


class _Stimuli:
    simulated = True
    data_name = "random numbers"

    def __len__(self) -> int:
        return IMAGES


class TableTargets:
    """Stands in for `braingen.targets.tables.Targets`."""

    def __init__(self, config: Config | None = None) -> None:
        self.stimuli = _Stimuli()
        self.asked: list[tuple[list[int], int]] = []
        self.captions = {image: [f"caption {image}"] for image in range(IMAGES)}

    @property
    def text_encoder(self) -> CLIPTextEncoderDual:
        return text_encoder()

    @property
    def text_form(self) -> TextForm:
        return TextForm.of(text_encoder())

    def free(self) -> None:
        self.freed = getattr(self, "freed", 0) + 1

    def of(self, modality: str, image_ids: np.ndarray) -> Tensor:
        return table(modality)[torch.as_tensor(image_ids)]

    def image(self, image_ids: np.ndarray) -> Tensor:
        return self.of("image", image_ids)

    def text(self, image_ids: np.ndarray) -> Tensor:
        return self.of("text", image_ids)

    def latents(self, image_ids: np.ndarray, size: int) -> np.ndarray:
        self.asked.append((np.asarray(image_ids).tolist(), size))
        return latents()


def tiny_embedding_decoder(
    modality: str, prior: bool = True, prior_use: str = "predict"
) -> EmbeddingDecoder:
    """An encoder of two and four experts for both subjects, with random weights; image and text are
    of different ones.
    """
    torch.manual_seed(len(modality))
    encoder = {
        "subjects": VOXELS,
        "clip_seq_dim": 1,
        "clip_emb_dim": WIDTH,
        "hidden_dim": 16,
        "n_blocks": 1,
        "exp_factor_list": [2],
    }
    priors = (
        {"dim": WIDTH, "num_tokens": 1, "depth": 1, "dim_head": 16, "timesteps": 10}
        if prior
        else None
    )
    embedding_decoder = EmbeddingDecoder(
        "BrainMoEMulti", encoder, priors, prior_use, sample_steps=2
    )  # type: ignore[arg-type]
    embedding_decoder.set_scale(TargetScale(table(modality).mean(0), 2.0))
    return embedding_decoder.eval().requires_grad_(False)


def tiny_tuning(monkeypatch: Any, root: Path, folder: Path, **more: str) -> Config:
    """Settings of a fine-tuning that takes about a second, and the stand-ins in place."""
    backbone = folder.parent / "backbone"
    if not backbone.exists():
        write_fake_backbone(backbone)
    fixed = {"backbone__path": str(backbone), "lora__rank": "2", "router__time_hidden_dim": "16"}
    fixed |= {
        f"finetune__{name}": "0"
        for name in ("lr_warmup_steps", "drop_image", "drop_text", "drop_both")
    }
    fixed |= {
        "finetune__train_batch_size": "3",
        "finetune__gradient_accumulation_steps": "1",
        "finetune__max_train_steps": "3",
    }
    fixed |= {"finetune__validation_steps": "1", "finetune__validation_images": "3"}
    monkeypatch.setattr(finetune, "Targets", TableTargets)
    monkeypatch.setattr(
        finetune,
        "load_embedding_decoders",
        lambda config: {name: tiny_embedding_decoder(name) for name in ("image", "text")},
    )
    monkeypatch.setattr(finetune, "load_backbone", lambda *_, **__: fake_backbone())
    monkeypatch.setattr(diffusion_data, "fingerprint_of_files", lambda folder: str(folder))
    return tiny_config(root, folder, **fixed | more)
