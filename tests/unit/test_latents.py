"""The table of VAE latents: what the VAE makes of each picture, once, anew when picture, size or
weights change.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate
from unit.fake_backbone import small_vae, write_fake_backbone
from unit.fake_nsd import write_fake_nsd

from braingen.config import load_config
from braingen.targets.tables import Targets

IDS = np.array([9, 2, 5])


@pytest.fixture
def config(tmp_path):
    write_fake_nsd(tmp_path / "NSD", subjects=[1])
    write_fake_backbone(tmp_path / "backbone")
    return load_config(
        None,
        {
            "data.root": str(tmp_path / "NSD"),
            "backbone.path": str(tmp_path / "backbone"),
            "run.device": "cpu",
        },
    )


def expected(targets: Targets, size: int) -> torch.Tensor:
    pictures = torch.from_numpy(targets.stimuli.images(IDS))
    pictures = interpolate(
        pictures, size=(size, size), mode="bicubic", antialias=True, align_corners=False
    ).clamp(0, 1)
    vae = small_vae().eval()
    with torch.no_grad():
        return vae.encode(pictures * 2 - 1).latent_dist.mean * vae.config.scaling_factor


@pytest.mark.slow
def test_latents_are_the_vaes(config):
    targets = Targets(config)
    table = targets.latents(IDS, 32)
    assert (
        table.shape == (len(targets.stimuli), 4, 8, 8)
        and table.dtype == np.float16
        and isinstance(table, np.memmap)
    )
    torch.testing.assert_close(
        torch.from_numpy(table[IDS]).float(), expected(targets, 32), rtol=2e-3, atol=2e-3
    )
    assert not table[[0, 1, 3]].any()  # nothing else was computed


def test_what_is_there_is_not_computed_again_until_picture_size_or_weights_change(
    config, monkeypatch
):
    Targets(config).latents(IDS, 32)

    def again(self):
        raise LookupError

    monkeypatch.setattr(Targets, "vae", property(again))
    Targets(config).latents(IDS, 32)
    with pytest.raises(LookupError):
        Targets(config).latents(IDS, 16)
    with pytest.raises(LookupError):
        Targets(config).latents(np.array([0]), 32)
    weights = Path(config.backbone.path) / "vae" / "diffusion_pytorch_model.safetensors"
    before = weights.read_bytes()
    weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    with pytest.raises(LookupError):
        Targets(config).latents(IDS, 32)
    weights.write_bytes(before)
    with h5py.File(config.data.root / "coco_images_224_float16.hdf5", "a") as file:
        file["images"][5] = 0.25
    with pytest.raises(LookupError):
        Targets(config).latents(IDS, 32)
