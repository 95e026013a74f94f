"""Every configuration that is shipped builds what it describes, at its full size, on the meta
device: shapes without memory.
"""

from __future__ import annotations

import pytest
import torch

from braingen.config import load_config
from braingen.config.shipped import FOLDER
from braingen.data import nsd
from braingen.encoders.parameters import weight_decay_groups
from braingen.training.encoder_setup import build_embedding_decoder

CONFIGS = sorted(FOLDER.glob("*.yaml"))
NSD_TARGET = (1, 1280)
"""Tokens and width of ViT-bigG/14's pooled embedding, and of a caption's end-of-sequence state."""
SIMULATED_TARGET = (1, 128)


def target_of(config) -> tuple[int, int]:
    return SIMULATED_TARGET if config.backbone.path == "tiny" else NSD_TARGET


def voxels_of(config) -> dict[int, int]:
    simulated = config.backbone.path == "tiny"
    return {
        subject: config.simulation.num_voxels if simulated else nsd.VOXELS[subject]
        for subject in config.data.subjects
    }


@pytest.fixture(scope="module", params=CONFIGS, ids=lambda file: file.stem)
def built(request):
    config = load_config(request.param)
    with torch.device("meta"):
        return config, build_embedding_decoder(config, voxels_of(config), target_of(config))


@pytest.mark.slow
def test_a_batch_has_the_targets_shape(built):
    config, embedding_decoder = built
    subject, voxels = list(voxels_of(config).items())[-1]
    out = embedding_decoder.train()(torch.empty(4, voxels, device="meta"), subject)
    assert out.backbone_BTD.shape == out.clip_BTD.shape == (4, *target_of(config))
    assert out.level_backbone_BLTD.shape == (
        4,
        1 + len(config.encoder.exp_factor_list),
        *target_of(config),
    )
    assert out.balance_loss.shape == ()
    noise = None
    if shape := embedding_decoder.noise_shape:  # a prior that samples
        noise = torch.empty(4, *shape, device="meta")
    decoded = embedding_decoder.eval().embedding(out.backbone_BTD, noise)
    assert decoded.shape == (4, *target_of(config))


def test_every_subject_has_its_layer(built):
    config, embedding_decoder = built
    counted = sum(
        parameter.numel()
        for name, parameter in embedding_decoder.encoder.named_parameters()
        if "subject" in name
    )
    needed = sum(
        voxels * (config.encoder.bottleneck_dim or config.encoder.hidden_dim)
        for voxels in voxels_of(config).values()
    )
    assert counted >= needed


def test_the_optimizer_takes_every_parameter_that_has_an_effect(built):
    config, embedding_decoder = built
    given = [
        parameter
        for group in weight_decay_groups(embedding_decoder, config.training.weight_decay)
        for parameter in group["params"]
    ]
    assert len({id(parameter) for parameter in given}) == len(given)
    assert config.encoder.trunk == "published" or len(given) == len(
        list(embedding_decoder.parameters())
    )


def test_the_steps_of_an_epoch_fit_the_batch(built):
    """A batch shares its trials out evenly among the subjects."""
    config, _ = built
    assert config.training.batch_size % len(config.data.subjects) == 0


def test_configurations_are_commented_with_commands():
    assert {file.stem for file in CONFIGS} >= {"simulated", "nsd_subj01", "nsd_multi"}
    for file in CONFIGS:
        assert "braingen" in "".join(
            line for line in file.read_text().splitlines() if line.startswith("#")
        ), file
