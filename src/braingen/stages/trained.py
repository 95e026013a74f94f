"""What earlier stages trained, asked for by later ones: there and finished, or a sentence that says what to run."""

from __future__ import annotations

from pathlib import Path

from braingen.brain.reader import BrainReader
from braingen.config import Config
from braingen.data.captions import has_captions
from braingen.data.nsd import Layout
from braingen.data.sealed import training_root
from braingen.diffusion.finetuning import BEST
from braingen.errors import UserError
from braingen.run_layout import READER, run_folder, trained_models, tuning_folder
from braingen.runs import Run, has_work
from braingen.stages.machine import device_of


def load_reader(config: Config, modality: str) -> BrainReader:
    """The best checkpoint of an earlier ``braingen train image`` or ``train text``."""
    folder = run_folder(config, modality)
    if not (folder / READER).is_dir():
        names = trained_models(modality)
        there = f" Trained here: {', '.join(names)}." if names else ""
        raise UserError(
            f"There is no trained {modality} encoder in {folder}: run `braingen train {modality} --folder {config.run.folder}` first, "
            f"or name its run: --model_name_{modality} RUN.{there}"
        )
    Run(folder).require_finished()
    return BrainReader.from_pretrained(folder / READER).eval()


def modalities(config: Config) -> tuple[str, ...]:
    """The embeddings that are decoded: of the image, and of the text where there can be one.

    Pictures are generated from the image embedding alone where nobody trained a text encoder and
    either the data hold no captions or ``sampler.use_text`` is off. Where there are captions and
    text is wanted, a missing text encoder is an error (:func:`load_reader`).
    """
    if (run_folder(config, "text") / READER).is_dir():
        return ("image", "text")
    wanted = config.sampler.use_text and has_captions(Layout.of(training_root(config.data.root)))
    return ("image", "text") if wanted else ("image",)


def load_readers(config: Config) -> dict[str, BrainReader]:
    """The trained encoders, frozen, where the configuration computes."""
    return {
        name: load_reader(config, name).requires_grad_(False).to(device_of(config))
        for name in modalities(config)
    }


def tuned_folder(config: Config) -> Path | None:
    """Where LoRA and routers of a finished fine-tuning lie; None where pictures are drawn without."""
    run = tuning_folder(config)
    if config.sampler.finetuned == "no" or (config.sampler.finetuned == "auto" and not (run / "config.yaml").exists()):
        return None
    if config.sampler.finetuned == "auto" and not has_work(run):  # refused before it began
        return None
    if not (run / "config.yaml").exists():
        raise UserError(f"There is no fine-tuning in {run}: run `braingen finetune --folder {config.run.folder}` first.")
    Run(run).require_finished()
    return run / BEST
