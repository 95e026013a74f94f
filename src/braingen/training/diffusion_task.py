"""Fine-tuning as a task of the training loop: optimizer, schedule, checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from accelerate import Accelerator
import torch
from torch import Tensor, nn

from braingen.config import Config
from braingen.generation.conditioned_unet import ConditionedUNet
from braingen.generation.lora import lora_parameters
from braingen.generation.trained_modules import BEST, LAST, save_finetuned
from braingen.routing.diffuse_router import DiffuseRouter
from braingen.runtime.distributed import Workers
from braingen.runtime.errors import UserError
from braingen.runtime.run_folder import Run
from braingen.runtime.seeds import hash_seed
from braingen.training.checkpoints import Stateful
from braingen.training.diffusion_data import StepRows
from braingen.training.diffusion_step import DiffusionParts, step, validate
from braingen.training.schedules import warm_cosine
from braingen.training.steps import StepLosses
from braingen.training.trainer import UpdatesTask, run_task

SAVE_SECONDS = 5.0
"""States are saved after a validation when this much time has passed since the last."""


def trained_parameters(model: ConditionedUNet) -> dict[str, nn.Parameter]:
    """Everything the optimizer is given, by name: the LoRA and the routers."""
    return lora_parameters(model) | {
        name: parameter
        for name, parameter in model.named_parameters()
        if name.startswith("routers.")
    }


def eight_bit_adam() -> Callable[..., torch.optim.Optimizer]:
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
        eight_bit_adam() if tune.use_8bit_adam else torch.optim.AdamW
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


class DiffusionTask(UpdatesTask):
    """Fine-tuning, an epoch being ``finetune.validation_steps`` updates."""

    title = "fine-tuning"
    monitor = "validation/denoising"
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

    def save_best(self) -> None:
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
