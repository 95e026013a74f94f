"""Stage 2: fine-tune the diffusion model: LoRA of the U-Net and routers, trained together.

B batch, E all experts, T tokens, D CLIP width, C h w latent sides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import Accelerator
import numpy as np
import torch
from torch import Tensor, nn

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
from braingen.generation.trained_modules import BEST, LAST, save_finetuned
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
from braingen.routing.guidance import kl_guidance
from braingen.runtime.device import accelerator_of, device_of
from braingen.runtime.distributed import Workers, complete, shared_run
from braingen.runtime.errors import UserError
from braingen.runtime.fingerprints import fingerprint_of_files
from braingen.runtime.memory import give_back
from braingen.runtime.paths import EMBEDDING_DECODER, run_folder, tuning_folder
from braingen.runtime.precision import frozen_type
from braingen.runtime.run_folder import Run
from braingen.runtime.seeds import hash_seed
from braingen.targets.tables import Targets
from braingen.training.checkpointing import uses_checkpointing
from braingen.training.checkpoints import Stateful
from braingen.training.conditioning_augmentation import mixing_weights, unsure
from braingen.training.diffusion_data import DiffusionData, StepRows, diffusion_data, pieces
from braingen.training.diffusion_loss import (
    denoising_loss,
    min_snr_weight,
    noisy_latents,
    offset_noise,
    prediction_target,
    signal_to_noise,
)
from braingen.training.schedules import warm_cosine
from braingen.training.steps import StepLosses
from braingen.training.trainer import UpdatesTask, run_task

SAVE_SECONDS = 5.0
"""States are saved after a validation when this much time has passed since the last."""


class DiffusionParts(NamedTuple):
    """Everything a fine-tuning needs."""

    model: ConditionedUNet
    data: DiffusionData
    alphas_cumprod: Tensor
    """The noise schedule."""
    prediction_type: str


class StepDraws(NamedTuple):
    """What chance decides in a pass; on the CPU."""

    t_B: Tensor
    noise_BChw: Tensor
    no_image_B: Tensor
    no_text_B: Tensor
    weights_BJ: Tensor
    """How errors of held-out reads are mixed."""


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
        Of the training pictures.
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
        _eight_bit_adam()


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
    for embedding_decoder in embedding_decoders.values():
        embedding_decoder.keep_scale(prior=config.router.prior_order == "step")
    give_back()
    backbone = load_backbone(path, config.backbone.ip_adapter, frozen_type(config), with_vae=False)
    unet = backbone.unet.to(device_of(config))
    form = ConditioningForm.of(
        text_form,
        cross_attention_dim=unet.config.cross_attention_dim,
        pooled_dim=pooled_width(unet),
        image_shape=(1, image_embedding_width(unet)),
    )
    refuse_other_widths(form, embedding_decoders["image"], embedding_decoders.get("text"))
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


def trained_parameters(model: ConditionedUNet) -> dict[str, nn.Parameter]:
    """Everything the optimizer is given, by name: the LoRA and the routers."""
    return lora_parameters(model) | {
        name: parameter
        for name, parameter in model.named_parameters()
        if name.startswith("routers.")
    }


def draw(
    config: Config,
    batch: int,
    latent_shape: tuple[int, ...],
    times: int,
    held_out: int,
    generator: torch.Generator,
) -> StepDraws:
    """What chance decides: times (one in each of B equal parts of the schedule), noise, dropped
    conditions, how errors are mixed.
    """
    order = torch.randperm(batch, generator=generator)
    t_B = (
        ((order + torch.rand(batch, generator=generator)) * (times / batch))
        .long()
        .clamp(max=times - 1)
    )
    noise = torch.randn(batch, *latent_shape, generator=generator)
    noise = offset_noise(noise, config.finetune.noise_offset, generator)
    chance_B = torch.rand(batch, generator=generator)
    both, image = config.finetune.drop_both, config.finetune.drop_both + config.finetune.drop_image
    text = image + config.finetune.drop_text
    no_image_B, no_text_B = (
        chance_B < image,
        (chance_B < both) | ((chance_B >= image) & (chance_B < text)),
    )
    return StepDraws(t_B, noise, no_image_B, no_text_B, mixing_weights(batch, held_out, generator))


def step(
    model: nn.Module,
    rows: np.ndarray,
    parts: DiffusionParts,
    config: Config,
    generator: torch.Generator,
) -> StepLosses:
    """The losses of one pass: weighted error of the prediction, and the pull on the time routers.

    Parameters
    ----------
    model : nn.Module
        The conditioned U-Net, wrapped for several processes or not.
    rows : np.ndarray
        Pictures of the pass.
    generator : torch.Generator
        Of everything that chance decides.
    """
    train, device = parts.data.train, parts.alphas_cumprod.device
    latents = train.latents_of(rows).to(device)
    drawn = draw(
        config,
        len(rows),
        tuple(latents.shape[1:]),
        len(parts.alphas_cumprod),
        _errors(parts),
        generator,
    )
    if config.finetune.reads == "as_held_out":
        reads = {
            name: unsure(train.truth[name][rows], parts.data.decoding_error[name], drawn.weights_BJ)
            for name in train.reads
        }
    else:
        reads = {name: train.read_of(name, rows) for name in train.reads}
    return _losses(model, latents, reads, drawn, parts, config, generator)


def _errors(parts: DiffusionParts) -> int:
    return len(parts.data.decoding_error["image"].error_JETD)


def _losses(
    model: nn.Module,
    latents_BChw: Tensor,
    reads: dict[str, Tensor],
    drawn: StepDraws,
    parts: DiffusionParts,
    config: Config,
    generator: torch.Generator,
) -> StepLosses:
    device, alphas = latents_BChw.device, parts.alphas_cumprod
    t_B, noise_BChw = drawn.t_B.to(device), drawn.noise_BChw.to(device)
    embeddings = (reads[name].to(device) if name in reads else None for name in ("image", "text"))
    noisy_BChw = noisy_latents(alphas, latents_BChw, noise_BChw, t_B)
    guess_BChw, routings = model(
        noisy_BChw,
        t_B,
        *embeddings,
        drawn.no_image_B.to(device),
        drawn.no_text_B.to(device),
        generator,
    )
    target_BChw = prediction_target(alphas, latents_BChw, noise_BChw, t_B, parts.prediction_type)
    weight_B = min_snr_weight(
        signal_to_noise(alphas, t_B), config.finetune.snr_gamma or None, parts.prediction_type
    )
    terms = {"denoising": denoising_loss(guess_BChw, target_BChw, weight_B).mean()}
    learned = [each for each in routings if each.levels_are_learned]
    if config.router.kl_scale and learned:
        sigma, times = config.router.kl_sigma, len(alphas)
        pulls = [
            kl_guidance(each.level_probabilities_BL, t_B, sigma=sigma, num_train_timesteps=times)
            for each in learned
        ]
        terms["guidance"] = config.router.kl_scale * torch.stack(pulls).mean()
    return StepLosses.of(terms)


@torch.no_grad()
def validate(parts: DiffusionParts, config: Config) -> dict[str, float]:
    """The objective on held-out training pictures, and its denoising loss: their own reads, the
    same noise and times, nothing left out.

    ``denoising`` chooses the checkpoint. ``loss`` is what is minimised, guidance of the time
    routers included; guidance tells how routers are set and nothing about images.
    """
    parts.model.eval()
    held_out, device = parts.data.held_out, parts.alphas_cumprod.device
    sums = {"loss": 0.0, "denoising": 0.0}
    for number, rows in enumerate(pieces(len(held_out.rows), 32)):
        generator = torch.Generator().manual_seed(hash_seed(config.run.seed, "validation", number))
        latents = held_out.latents_of(rows).to(device)
        drawn = draw(
            config, len(rows), tuple(latents.shape[1:]), len(parts.alphas_cumprod), 1, generator
        )
        whole = drawn._replace(
            no_image_B=torch.zeros_like(drawn.no_image_B),
            no_text_B=torch.zeros_like(drawn.no_text_B),
        )
        reads = {name: held_out.read_of(name, rows) for name in held_out.reads}
        found = _losses(parts.model, latents, reads, whole, parts, config, generator)
        sums["loss"] += len(rows) * found.total.item()
        sums["denoising"] += len(rows) * found.terms["denoising"].item()
    parts.model.train()
    return {name: value / len(held_out.rows) for name, value in sums.items()}


def _eight_bit_adam() -> Callable[..., torch.optim.Optimizer]:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise UserError(
            "use_8bit_adam needs bitsandbytes and a GPU: `pip install bitsandbytes`, or leave it"
            " out."
        ) from error
    return AdamW8bit


def optimizer_of(model: ConditionedUNet, config: Config) -> torch.optim.Optimizer:
    """AdamW; LoRA and routers have learning rates of their own, matrices decay."""
    tune = config.finetune
    groups = []
    for name, rate in (("lora", tune.learning_rate), ("routers", tune.router_learning_rate)):
        parameters = [
            p
            for key, p in trained_parameters(model).items()
            if key.startswith("routers.") == (name == "routers")
        ]
        for matrices, decay in ((True, tune.adam_weight_decay), (False, 0.0)):
            chosen = [p for p in parameters if (p.ndim > 1) == matrices]
            groups += [{"params": chosen, "lr": rate, "weight_decay": decay}] if chosen else []
    make: Callable[..., torch.optim.Optimizer] = (
        _eight_bit_adam() if tune.use_8bit_adam else torch.optim.AdamW
    )
    return make(groups)


def rate_factor(config: Config, step: int) -> float:
    """Learning rate as a share of its peak: linear warm-up, then constant or a half cosine
    to zero.
    """
    tune = config.finetune
    floor = 1.0 if tune.lr_scheduler == "constant" else 0.0
    return warm_cosine(step, tune.lr_warmup_steps, tune.max_train_steps, floor)


class TrainedOnly:
    """The trained parameters as a part of a saved state; the others are frozen.

    Parameters
    ----------
    parameters : dict[str, nn.Parameter]
        By name.
    """

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        self.parameters = parameters

    def state_dict(self) -> dict[str, Tensor]:
        """By name."""
        return {name: parameter.detach() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Set the values."""
        for name, parameter in self.parameters.items():
            parameter.copy_(state[name])


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


class DiffusionTask(UpdatesTask):
    """Fine-tuning, an epoch being ``finetune.validation_steps`` updates."""

    title = "fine-tuning"
    judged_by = "validation/denoising"
    higher_is_better = False
    validates_untrained = True  # fresh routers and LoRA: what is to be beaten

    def __init__(
        self,
        config: Config,
        parts: DiffusionParts,
        run: Run,
        accelerator: Accelerator,
        workers: Workers,
    ) -> None:
        tune = config.finetune
        self.accumulation, self.max_norm = tune.gradient_accumulation_steps, tune.clip_norm
        self.advice = (
            f"Lower finetune.learning_rate (now {tune.learning_rate:g}),"
            f" finetune.router_learning_rate ({tune.router_learning_rate:g}) or finetune.clip_norm"
            f" ({tune.clip_norm:g}), or compute in float32 (--mixed_precision no)."
        )
        self.config, self.run, self.workers = config, run, workers
        self.parameters = trained_parameters(parts.model)
        optimizer = optimizer_of(parts.model, config)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda number: rate_factor(config, number)
        )
        super().__init__(
            parts.model,
            optimizer,
            schedule,
            accelerator,
            updates=tune.max_train_steps,
            updates_per_epoch=tune.validation_steps,
            ema_decay=tune.ema_decay if tune.use_ema else None,
        )
        self.data = parts._replace(alphas_cumprod=parts.alphas_cumprod.to(accelerator.device))
        self.rows = StepRows(
            len(parts.data.train.rows),
            tune.train_batch_size,
            config.run.seed,
            accelerator.process_index,
            accelerator.num_processes,
        )

    def losses(self, batch: int, epoch: int, number: int) -> StepLosses:
        """Of :func:`step`."""
        # what chance decides depends on the number of the pass alone, so an interrupted run
        # ends with the same bits
        generator = torch.Generator().manual_seed(
            hash_seed(self.config.run.seed, f"pass of {self.rows.rank}", batch)
        )
        with self.accelerator.autocast():
            return step(self.model, self.rows.of(batch), self.data, self.config, generator)

    def clipped(self) -> Iterator[nn.Parameter]:
        """LoRA and routers."""
        return iter(self.parameters.values())

    def parts(self) -> Mapping[str, Stateful]:
        """LoRA and routers, their average, optimizer and schedule."""
        average = {} if self.average is None else {"average": self.average}
        if self.sharded:
            return {"schedule": self.schedule, **average}
        return {
            "trained": TrainedOnly(self.parameters),
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            **average,
        }

    def validate(self) -> dict[str, float]:
        """Of :func:`validate`."""
        with self.accelerator.autocast():
            found = validate(self.data, self.config)
        return {f"validation/{name}": value for name, value in found.items()}

    def keep(self) -> None:
        """LoRA and routers."""
        if self.workers.main:
            _save(self.run, BEST, self.data.model, self.config)

    def standing(self, best: float) -> str:
        """The denoising loss."""
        return f", held-out denoising loss {best:.4f}"

    def finish(self, best: float) -> dict[str, Any]:
        """Write the last weights."""
        with self.averaged():
            if self.workers.main:
                _save(self.run, LAST, self.data.model, self.config)
        return {"best_validation_denoising": best}


def fit(
    config: Config, parts: DiffusionParts, run: Run, accelerator: Accelerator, workers: Workers
) -> None:
    """Fine-tune."""
    task = DiffusionTask(config, parts, run, accelerator, workers)
    run_task(task, config, run, workers, SAVE_SECONDS)


def _save(run: Run, name: str, model: ConditionedUNet, config: Config) -> None:
    with run.replace(name) as temporary:
        routers = {
            key: router
            for key, router in model.routers.items()
            if isinstance(router, DiffuseRouter)
        }
        save_finetuned(temporary, model.unet, routers, config.router.prior_order)
