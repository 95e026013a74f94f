"""Stage 3: read the test images' embeddings out of the brain and draw them; as controls, out of random voxels or the true embeddings."""

from __future__ import annotations

from pathlib import Path
import time
from typing import NamedTuple

import numpy as np
from rich.progress import track
from safetensors.torch import load_file, save_file
import torch
from torch import Tensor

from braingen.brain.reader import BrainReader
from braingen.clip.cache import fingerprint_of_files
from braingen.config import Config
from braingen.data.batches import RepeatBatches
from braingen.data.betas import Betas
from braingen.data.nsd import Layout
from braingen.data.trials import Repeats, group_repeats, test_trials, train_trials
from braingen.diffusion.decoder import BrainDecoder, to_pil
from braingen.diffusion.finetuning import BEST, FINETUNE, NOT_TUNED, load_tuned
from braingen.diffusion.sample import seeded_noise
from braingen.diffusion.sdxl import backbone_folder, load_backbone
from braingen.errors import UserError
from braingen.files import replaced_path, write_json
from braingen.runs import Run
from braingen.stages.machine import device_of
from braingen.stages.targets import Targets
from braingen.stages.train import READER, run_folder

EMBEDDINGS = "embeddings.safetensors"
INDEX = "index.json"


class Parts(NamedTuple):
    """Everything a reconstruction needs."""

    decoder: BrainDecoder
    repeats: Repeats
    betas: Betas
    subject: int
    targets: Targets


def folder_of(config: Config, source: str | None = None) -> Path:
    """Where the pictures of a source (brain, random, ceiling) lie."""
    return config.run.folder / "reconstructions" / (source or config.sampler.source)


def load_reader(config: Config, modality: str) -> BrainReader:
    """The best checkpoint of an earlier ``braingen train image`` or ``train text``."""
    folder = run_folder(config, modality)
    if not (folder / READER).is_dir():
        raise UserError(
            f"There is no trained {modality} encoder in {folder}: run `braingen train {modality} --folder {config.run.folder}` first."
        )
    Run(folder).require_finished()
    return BrainReader.from_pretrained(folder / READER).eval()


def tuned_folder(config: Config) -> Path | None:
    """Where LoRA and routers of a finished fine-tuning lie; None where pictures are drawn without."""
    run = config.run.folder / FINETUNE
    if config.sampler.finetuned == "no" or (config.sampler.finetuned == "auto" and not (run / "config.yaml").exists()):
        return None
    if not (run / "config.yaml").exists():
        raise UserError(f"There is no fine-tuning in {run}: run `braingen finetune --folder {config.run.folder}` first.")
    Run(run).require_finished()
    return run / BEST


def assemble(config: Config, targets: Targets) -> BrainDecoder:
    """Readers of earlier runs, the backbone, and what fine-tuning taught it, as one decoder."""
    backbone = load_backbone(config.backbone.path, config.backbone.ip_adapter)
    image, text = load_reader(config, "image"), load_reader(config, "text")
    folder = tuned_folder(config)
    tuned = load_tuned(folder) if folder is not None else NOT_TUNED
    return BrainDecoder.assemble(image, text, *backbone, targets.text_encoder, **tuned._asdict()).to(device_of(config))


def setup(config: Config) -> Parts:
    """Load what is needed and fail early."""
    layout = Layout.of(config.data.root)
    subject = config.data.subjects[0]
    repeats = group_repeats(test_trials(layout, subject))
    if config.sampler.num_images:
        count = config.sampler.num_images
        repeats = Repeats(repeats.image_N[:count], repeats.rows_NR[:count])
    targets = Targets(config)
    decoder = assemble(config, targets)
    decoder.set_progress_bar_config(disable=True)
    return Parts(decoder, repeats, Betas.of(layout, subject), subject, targets)


@torch.no_grad()
def embeddings_of(config: Config, parts: Parts) -> dict[str, Tensor]:
    """Embeddings of all test images from the configured source: ``image``, ``text``, ``image_clip``, ``text_clip``, and their ``ids``."""
    ids = parts.repeats.image_N
    found: dict[str, list[Tensor]] = {"image": [], "text": [], "image_clip": [], "text_clip": []}
    if config.sampler.source == "ceiling":
        image, text = parts.targets.image(ids), parts.targets.text(ids)
        reader = parts.decoder
        return {
            "ids": torch.from_numpy(ids),
            "image": image,
            "text": text,
            "image_clip": reader.brain_image.standardised(image.to(reader.device)).cpu(),
            "text_clip": reader.brain_text.standardised(text.to(reader.device)).cpu(),
        }
    for batch in RepeatBatches(parts.repeats, parts.betas, parts.subject, 32):
        voxels_BRV, present_BR = batch.voxels_BRV, batch.present_BR
        if config.sampler.source == "random":  # z-scored voxels are of unit variance; so are these
            voxels_BRV = seeded_noise(batch.image_B.tolist(), tuple(voxels_BRV.shape[1:]), config.run.seed, "random voxels")
        if config.sampler.repeats == "first":
            voxels_BRV, present_BR = voxels_BRV[:, :1], present_BR[:, :1]
        decoded = parts.decoder.embed(
            voxels_BRV.to(parts.decoder.device), parts.subject, batch.image_B.tolist(), config.run.seed, present_BR
        )
        for name, rows in zip(found, decoded):
            found[name].append(rows.float().cpu())
    return {"ids": torch.from_numpy(ids), **{name: torch.cat(rows) for name, rows in found.items()}}


def nearest_captions(config: Config, targets: Targets, text_NTD: Tensor, ids: np.ndarray) -> dict[str, str]:
    """The caption of the training image whose text embedding is nearest (cosine around the mean); never a test caption."""
    layout = Layout.of(config.data.root)
    trials = train_trials(layout, config.data.subjects[0], config.data.num_sessions)
    images = np.unique(trials.table["image"].to_numpy())
    known = targets.text(images).flatten(1)
    mean = known.mean(0)
    known, asked = (torch.nn.functional.normalize(x.flatten(1) - mean, dim=1) for x in (known, text_NTD))
    best = (asked @ known.T).argmax(1)
    return {str(int(image)): targets.captions[int(images[row])][0] for image, row in zip(ids, best)}


def reconstruct(config: Config) -> Path:
    """Draw every test image; what is already drawn is kept.

    Returns
    -------
    folder : ``<image id>.png`` for every test image, ``embeddings.safetensors``, ``index.json``
    """
    folder = folder_of(config)
    settings = {**config.model_dump(mode="json", include={"data", "backbone", "sampler"}), "seed": config.run.seed}
    # pictures of readers or backbones that have changed since are not passed off as those of the present ones
    settings["readers"] = {modality: fingerprint_of_files(run_folder(config, modality) / READER) for modality in ("image", "text")}
    settings["weights"] = fingerprint_of_files(backbone_folder(config.backbone.path))
    tuned = tuned_folder(config)
    settings["finetuned"] = fingerprint_of_files(tuned) if tuned is not None else ""
    with Run.start(folder, settings, {"run": config.run.seed}, may_change=["sampler.batch_size"]) as run:
        if run.finished:
            return folder
        started = time.monotonic()
        parts = setup(config)
        if not (folder / EMBEDDINGS).exists():
            with replaced_path(folder / EMBEDDINGS) as temporary:
                save_file({name: rows.contiguous() for name, rows in embeddings_of(config, parts).items()}, temporary)
        read = load_file(folder / EMBEDDINGS)
        ids = read["ids"].numpy()
        step = config.sampler.batch_size
        starts = range(0, len(ids), step)
        for start in track(starts, description=f"drawing {len(ids)} pictures ({config.sampler.source})"):
            some = slice(start, start + step)
            paths = [folder / f"{image:06d}.png" for image in ids[some]]
            if all(path.exists() for path in paths):
                continue
            pictures = parts.decoder.draw(
                read["image"][some] if config.sampler.use_image else None,
                read["text"][some] if config.sampler.use_text else None,
                ids[some].tolist(),
                seed=config.run.seed,
                steps=config.sampler.steps,
                guidance_scale=config.sampler.guidance_scale,
                ip_adapter_scale=config.sampler.ip_adapter_scale,
                size=config.sampler.size,
            )
            for path, picture in zip(paths, to_pil(pictures)):
                with replaced_path(path) as temporary:
                    picture.save(temporary, format="PNG")
        captions = nearest_captions(config, parts.targets, read["text"], ids)
        write_json(folder / INDEX, {"images": ids.tolist(), "captions": captions})
        run.mark_finished({"images": len(ids), "seconds": round(time.monotonic() - started, 1)})
    return folder
