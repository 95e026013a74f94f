"""Stage 2: fine-tune the diffusion model: LoRA of the U-Net and routers, trained together.

B batch, E all experts, T tokens, D CLIP width, C h w latent sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from braingen.config import Config
from braingen.config.shipped import backbone_folder
from braingen.data.sealed_runs import refuse_test_set
from braingen.encoders.embedding_decoder import EmbeddingDecoder
from braingen.encoders.trained import load_embedding_decoders, modalities
from braingen.generation.attention import use_attention
from braingen.generation.compatibility import (
    form_of_files,
    refuse_incompatible,
    refuse_other_widths,
)
from braingen.generation.conditioned_unet import ConditionedUNet, expert_counts
from braingen.generation.lora import add_lora, lora_parameters
from braingen.generation.trained_modules import BEST
from braingen.pretrained.hub import backbone_key
from braingen.pretrained.sdxl import (
    image_embedding_width,
    load_backbone,
    own_size,
    pixels_per_latent,
    pooled_width,
    refuse_side,
)
from braingen.pretrained.tiny import check_backbone
from braingen.routing.conditioning import ConditioningForm
from braingen.routing.diffuse_router import DiffuseRouter
from braingen.runtime.device import accelerator_of, device_of
from braingen.runtime.distributed import Workers, complete, shared_run
from braingen.runtime.errors import UserError
from braingen.runtime.fingerprints import fingerprint_of_files
from braingen.runtime.memory import return_large_blocks
from braingen.runtime.paths import EMBEDDING_DECODER, run_folder, tuning_folder
from braingen.runtime.precision import frozen_type
from braingen.runtime.seeds import hash_seed
from braingen.targets.tables import Targets
from braingen.training.checkpointing import uses_checkpointing
from braingen.training.diffusion_data import diffusion_data
from braingen.training.diffusion_step import DiffusionParts
from braingen.training.diffusion_task import eight_bit_adam, fit


def router_of(
    config: Config, counts: tuple[int, ...], embedding: Sequence[int], latent_side: int, times: int
) -> DiffuseRouter:
    """A fresh router for an encoder's experts.

    Parameters
    ----------
    counts : tuple[int, ...]
        Experts of every level.
    embedding : Sequence[int]
        T and D.
    latent_side : int
        Of the training images.
    times : int
        Length of the noise schedule.
    """
    wanted = config.router
    return DiffuseRouter(
        num_experts=counts,
        clip_seq_dim=embedding[0],
        clip_emb_dim=embedding[1],
        time=wanted.time,
        time_choice=wanted.time_choice,
        time_hidden_dim=wanted.time_hidden_dim,
        time_context=wanted.time_context,
        time_context_size=wanted.space_grid or latent_side,
        space=wanted.space,
        space_grid=wanted.space_grid or latent_side,
        num_train_timesteps=times,
    )


def check(config: Config, embedding_decoders: dict[str, EmbeddingDecoder]) -> None:
    """Refuse what cannot be trained, before anything is computed."""
    routed = {
        name: embedding_decoder
        for name, embedding_decoder in embedding_decoders.items()
        if getattr(config.router, f"route_{name}")
    }
    shapes = [
        (expert_counts(embedding_decoder), embedding_decoder.mean_TD.shape)
        for embedding_decoder in routed.values()
    ]
    with torch.device("meta"):  # parameters are counted, not made
        routers = [router_of(config, counts, shape, 8, 1000) for counts, shape in shapes]
    trained = sum(parameter.numel() for router in routers for parameter in router.parameters())
    if not config.lora.rank and not trained:
        why = (
            f"routers without weights (router.time={config.router.time},"
            f" router.space={config.router.space})"
            if routed
            else "no routers"
        )
        raise UserError(
            f"rank = 0 and {why} leave nothing to train: give --rank 16, or routers that learn."
        )
    refuse_side(
        config.finetune.resolution, pixels_per_latent(config.backbone.path), "finetune.resolution"
    )
    for name, embedding_decoder in embedding_decoders.items():
        if config.router.prior_order == "step" and embedding_decoder.config.prior_use != "predict":
            raise UserError(
                f"prior_order = step needs a prior that gradients pass through: train {name} with"
                " prior.use=predict."
            )
    if config.finetune.use_8bit_adam:
        eight_bit_adam()


def setup(config: Config) -> DiffusionParts:
    """Load what is frozen, build what is trained, compute latents and reads, and fail early."""
    refuse_incompatible(config)
    embedding_decoders = load_embedding_decoders(config)
    check(config, embedding_decoders)
    targets, path = Targets(config), config.backbone.path
    size = config.finetune.resolution or own_size(path)
    text_form = targets.text_form
    early = form_of_files(config, text_form)
    if early is not None:  # before hours of work; once more with what was loaded
        refuse_other_widths(early, embedding_decoders["image"], embedding_decoders.get("text"))
    # What is computed once comes before the U-Net: its models are given back first.
    data = diffusion_data(
        config, targets, embedding_decoders, size, config.finetune.validation_images
    )
    counts = {
        name: expert_counts(embedding_decoder)
        for name, embedding_decoder in embedding_decoders.items()
    }
    targets.free()
    backbone = load_backbone(path, config.backbone.ip_adapter, frozen_type(config), with_vae=False)
    unet = backbone.unet.to(device_of(config))
    form = ConditioningForm.of(
        text_form,
        cross_attention_dim=unet.config.cross_attention_dim,
        pooled_dim=pooled_width(unet),
        image_shape=(1, image_embedding_width(unet)),
    )
    refuse_other_widths(form, embedding_decoders["image"], embedding_decoders.get("text"))
    if unet.device.type == "cpu":
        return_large_blocks(unet.get_memory_footprint())
    if uses_checkpointing(config, unet, size // pixels_per_latent(path)):
        unet.enable_gradient_checkpointing()
    use_attention(unet, config.finetune.attention)
    if config.lora.rank:
        add_lora(unet, config.lora.rank, config.run.seed)
        for parameter in lora_parameters(unet).values():
            parameter.data = parameter.data.float()
    times = backbone.scheduler.config.num_train_timesteps
    torch.manual_seed(hash_seed(config.run.seed, "routers", 0))
    routers = {
        name: (
            router_of(
                config,
                counts[name],
                embedding_decoder.mean_TD.shape,
                size // pixels_per_latent(path),
                times,
            ).to(unet.device)
        )
        for name, embedding_decoder in embedding_decoders.items()
        if (config.router.route_image if name == "image" else config.router.route_text)
    }
    model = ConditionedUNet(
        unet,
        form.to(unet.device),
        embedding_decoders,
        routers,
        counts,
        config.router.prior_order,
        size,
    )
    return DiffusionParts(
        model, data, backbone.scheduler.alphas_cumprod, backbone.scheduler.config.prediction_type
    )


def finetune(config: Config) -> Path:
    """Fine-tune; continues where an interrupted run stopped. Under ``accelerate launch`` in several
    processes.

    Returns
    -------
    Path
        The run folder: ``best/`` and ``last/`` with LoRA and routers, ``metrics.jsonl``.
    """
    refuse_test_set(config, "finetune")
    check_backbone(config)
    folder = tuning_folder(config)
    settings = config.model_dump(
        mode="json", include={"data", "backbone", "router", "lora", "finetune"}
    )
    settings["embedding_decoders"] = {
        name: fingerprint_of_files(run_folder(config, name) / EMBEDDING_DECODER)
        for name in modalities(config)
    }
    settings["weights"] = backbone_key(backbone_folder(config.backbone.path), frozen_type(config))
    workers = Workers(config)
    with shared_run(
        workers,
        folder,
        {**settings, "seed": config.run.seed},
        {"run": config.run.seed},
        may_change=["finetune.gradient_checkpointing"],
    ) as run:
        if not complete(workers, run, lambda: [folder / BEST]):
            accelerator = accelerator_of(config, folder, config.finetune.train_batch_size)
            fit(config, workers.main_first(lambda: setup(config)), run, accelerator, workers)
    return folder
