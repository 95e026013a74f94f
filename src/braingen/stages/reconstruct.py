"""Stage 3: read the test images' embeddings out of the brain and draw them; as controls, out of random voxels or the true embeddings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import logging
from pathlib import Path
import time
from typing import Any, NamedTuple

import numpy as np
from safetensors.torch import load_file, save_file
import torch
from torch import Tensor

from braingen.clip.cache import fingerprint_of_files
from braingen.clip.image_target import CLIPImageEncoder
from braingen.config import Config
from braingen.data.batches import RepeatBatches
from braingen.data.betas import Betas
from braingen.data.captions import has_captions
from braingen.data.nsd import Layout
from braingen.data.trials import Repeats, group_repeats, test_trials, train_trials
from braingen.data.voxel_file import Responses, odd_scale
from braingen.diffusion.choose import best_of
from braingen.diffusion.decoder import BrainDecoder, negative_condition, to_pil
from braingen.diffusion.finetuning import NOT_TUNED, load_tuned
from braingen.diffusion.listening import RoutingRecorder, expert_counts
from braingen.diffusion.lora import merged_lora
from braingen.diffusion.sample import seeded_noise
from braingen.diffusion.sdxl import (
    backbone_folder,
    load_backbone,
    load_scheduler,
    pixels_per_latent,
    refuse_side,
    refuse_steps,
    scheduler_named,
)
from braingen.errors import UserError
from braingen.files import replaced_path, write_json
from braingen.records import ExpertEmbeddings
from braingen.routing.conditioning import all_experts, from_experts
from braingen.run_layout import EMBEDDINGS, INDEX, READER, ROUTING, drawn_folder, random_folders, run_folder
from braingen.stages.drawing import Drawn, draw_missing, drawn_files, gathered, notes
from braingen.stages.machine import device_of
from braingen.stages.steps import hash_seed
from braingen.stages.subjects import each_subject
from braingen.stages.targets import Targets
from braingen.stages.test_sets import at_test_set
from braingen.stages.tiny import check_backbone
from braingen.stages.trained import load_reader, modalities, tuned_folder
from braingen.stages.widths import refuse_misfits, refuse_other_widths
from braingen.stages.workers import Workers, complete, shared_run

logger = logging.getLogger(__name__)


class Parts(NamedTuple):
    """Everything a reconstruction needs."""

    decoder: BrainDecoder
    repeats: Repeats
    betas: Betas
    subject: int
    targets: Targets


def assemble(config: Config, targets: Targets) -> BrainDecoder:
    """Readers of earlier runs, the backbone, and what fine-tuning taught it, as one decoder."""
    backbone = load_backbone(config.backbone.path, config.backbone.ip_adapter)
    backbone = backbone._replace(scheduler=scheduler_named(config.sampler.scheduler, backbone.scheduler))
    image = load_reader(config, "image")
    text = load_reader(config, "text") if "text" in modalities(config) else None
    folder = tuned_folder(config)
    tuned = load_tuned(folder) if folder is not None else NOT_TUNED
    decoder = BrainDecoder.assemble(image, text, *backbone, targets.text_encoder, **tuned._asdict())
    refuse_other_widths(decoder.form, image, text)
    return decoder.to(device_of(config))


def check_drawing(config: Config) -> None:
    """Refuse settings of the sampler that the backbone cannot follow, before any of its weights is loaded.

    Raises
    ------
    UserError
        For parts that do not go together, more steps than the noise schedule has times, and pictures smaller than the autoencoder makes.
    """
    refuse_misfits(config)
    path, sampler = config.backbone.path, config.sampler
    refuse_steps(sampler.steps, scheduler_named(sampler.scheduler, load_scheduler(path)), "sampler.steps")
    refuse_side(sampler.size, pixels_per_latent(path), "sampler.size", multiple=False)


def drawn_images(config: Config) -> Repeats:
    """The test images that are drawn, with their presentations."""
    repeats = group_repeats(test_trials(Layout.of(config.data.root), config.data.subjects[0]))
    count = config.sampler.num_images or len(repeats.image_N)
    return Repeats(repeats.image_N[:count], repeats.rows_NR[:count])


def setup(config: Config) -> Parts:
    """Load what is needed and fail early."""
    if not (config.sampler.use_image or config.sampler.use_text):
        raise UserError("use_image and use_text are both off, so there is nothing to draw from: leave one of them on.")
    if not config.sampler.use_image and "text" not in modalities(config):
        raise UserError(
            "sampler.use_image is off and there is no text embedding to generate from (no captions, no text encoder): leave use_image on."
        )
    check_drawing(config)
    layout = Layout.of(config.data.root)
    subject = config.data.subjects[0]
    repeats = drawn_images(config)
    targets = Targets(config)
    decoder = assemble(config, targets)
    decoder.set_progress_bar_config(disable=True)
    return Parts(decoder, repeats, Betas.of(layout, subject), subject, targets)


def embeddings_of(config: Config, parts: Parts) -> dict[str, Tensor]:
    """Embeddings of all test images from the configured source: ``image``, ``text``, ``image_clip``, ``text_clip``, and their ``ids``."""
    if config.sampler.source != "ceiling":
        return read_responses(config, parts.decoder, parts.repeats, parts.betas, parts.subject)
    ids, reader = parts.repeats.image_N, parts.decoder
    found = {"ids": torch.from_numpy(ids)}
    for name, encoder in (("image", reader.brain_image), ("text", reader.brain_text)):
        if encoder is not None and (name == "image" or has_captions(Layout.of(config.data.root))):
            found[name] = parts.targets.of(name, ids)
            found[f"{name}_clip"] = encoder.standardised(found[name].to(reader.device)).cpu()
    return found


@torch.no_grad()
def read_responses(config: Config, decoder: BrainDecoder, repeats: Repeats, betas: Betas | Responses, subject: int) -> dict[str, Tensor]:
    """Read embeddings out of responses; for ``sampler.source: random`` out of as many drawn at random.

    Where routers or a single level are to be listened to, also what every expert says, in standardised units: ``image_experts``,
    ``text_experts``.
    """
    mixed = config.sampler.level is not None or any((decoder.router_image, decoder.router_text))
    if isinstance(betas, Betas) and config.sampler.source == "brain":  # responses of a file were looked at when it was read
        read_N = repeats.rows_NR[repeats.rows_NR >= 0]
        if told := odd_scale(betas.rows(np.sort(read_N)[:: -(-len(read_N) // 200)]), str(betas.path)):
            logger.warning(told)
    found: dict[str, list[Tensor]] = {"image": [], "text": [], "image_clip": [], "text_clip": []}
    for batch in RepeatBatches(repeats, betas, subject, 32):
        voxels_BRV, present_BR = batch.voxels_BRV, batch.present_BR
        if config.sampler.source == "random":  # z-scored voxels are of unit variance; so are these
            voxels_BRV = seeded_noise(batch.image_B.tolist(), tuple(voxels_BRV.shape[1:]), config.run.seed, "random voxels")
        if config.sampler.repeats == "first":
            voxels_BRV, present_BR = voxels_BRV[:, :1], present_BR[:, :1]
        voxels_BRV = voxels_BRV.to(decoder.device)
        read = decoder.read(voxels_BRV, subject, batch.image_B.tolist(), config.run.seed, present_BR, experts=mixed)
        for name, rows in zip(found, decoder.decoded(read)):
            if rows is not None:
                found[name].append(rows.float().cpu())
        for name, heard in (("image_experts", read.image), ("text_experts", read.text)):
            if mixed and heard is not None:
                found.setdefault(name, []).append(all_experts(heard).float().cpu())
    joined = {name: torch.cat(rows) for name, rows in found.items() if rows}
    return {"ids": torch.from_numpy(repeats.image_N), **joined}


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


class Embeddings(NamedTuple):
    """What pictures are drawn from; rows are images."""

    image_NTD: Tensor
    text_NTD: Tensor | None
    """Both in CLIP's own units; no text without a text encoder."""
    image_N: list[int]
    """Image ids."""
    experts: Mapping[str, Tensor] | None = None
    """'image', 'text' -> what every expert says, N x E x T x D, standardised; None where all experts are taken to say the same."""

    def heard(self, name: str, rows: slice, counts: Sequence[int]) -> Tensor | ExpertEmbeddings:
        """What is listened to of some rows; ``counts``: experts of every level."""
        if self.experts is not None:
            return from_experts(self.experts[name][rows], counts)
        table = self.image_NTD if name == "image" else self.text_NTD
        assert table is not None
        return table[rows]


def embeddings_in(read: Mapping[str, Tensor]) -> Embeddings:
    """What :func:`read_responses` decoded, as pictures are generated from it."""
    parts = {name: read.get(f"{name}_experts") for name in ("image", "text")}
    experts = {name: rows for name, rows in parts.items() if rows is not None}
    return Embeddings(read["image"], read.get("text"), read["ids"].tolist(), experts or None)


def drawer(
    config: Config, decoder: BrainDecoder, targets: Callable[[], CLIPImageEncoder], read: Embeddings
) -> Callable[[slice], list[Drawn]]:
    """How the configured sampler draws some rows of embeddings.

    Parameters
    ----------
    targets : the CLIP that pictures are read with; asked for only when there are several drawings to choose from
    """
    sampler = config.sampler
    with_text = sampler.use_text and read.text_NTD is not None and decoder.brain_text is not None
    encoders = {"image": decoder.brain_image, "text": decoder.brain_text}
    counts = {name: expert_counts(each) for name, each in encoders.items() if each is not None}
    level = sampler.level if read.experts else None
    for name in [name for name, used in (("image", sampler.use_image), ("text", sampler.use_text)) if used and level is not None]:
        if len(counts[name]) == 1:
            raise UserError(f"sampler.level = {level} has no effect: the {name} encoder has no levels. Leave it out.")
        if level is not None and level >= len(counts[name]):
            raise UserError(f"sampler.level = {level}, but the {name} encoder has levels 0 to {len(counts[name]) - 1}.")
    negative = negative_condition(decoder.form, backbone_folder(config.backbone.path), sampler.negative_prompt)

    def draw(some: slice) -> list[Drawn]:
        recorder = RoutingRecorder()

        def once(number: int) -> Tensor:
            return decoder.draw(
                read.heard("image", some, counts["image"]) if sampler.use_image else None,
                read.heard("text", some, counts["text"]) if with_text else None,
                read.image_N[some],
                seed=config.run.seed,
                steps=sampler.steps,
                guidance_scale=sampler.guidance_scale,
                guidance_end=sampler.guidance_end,
                ip_adapter_scale=sampler.ip_adapter_scale,
                size=sampler.size,
                negative=negative,
                sample=number,
                level=level,
                on_step=recorder if number == 0 else None,  # of the first drawing, where there are several
            )

        def routing(row: int) -> dict[str, Tensor]:
            return {name: value[row] for name, value in mixed.items()}

        if sampler.samples == 1:
            pictures = to_pil(once(0))
            mixed = recorder.tensors(decoder.scheduler.timesteps)
            return [Drawn(picture, None, routing(row)) for row, picture in enumerate(pictures)]
        reader = decoder.brain_image
        decoded_BTD = reader.standardised(read.image_NTD[some].to(reader.device))
        chosen = best_of(sampler.samples, once, lambda x: reader.standardised(targets()(x).target_BTD.to(reader.device)), decoded_BTD)
        mixed = recorder.tensors(decoder.scheduler.timesteps)
        similarity = [[round(value, 4) for value in row] for row in chosen.similarity_BS.tolist()]
        return [
            Drawn(picture, {"sample": int(np.argmax(exact)), "similarity": row}, routing(number))
            for number, (picture, row, exact) in enumerate(zip(to_pil(chosen.images_B3HW), similarity, chosen.similarity_BS.tolist()))
        ]

    return draw


def draw_embeddings(
    config: Config, decoder: BrainDecoder, targets: Callable[[], CLIPImageEncoder], folder: Path, workers: Workers
) -> dict[str, Tensor]:
    """Draw what the embeddings in a run folder say, by all processes; returns the embeddings."""
    read = load_file(folder / EMBEDDINGS)
    ids = read["ids"].tolist()
    draw = drawer(config, decoder, targets, embeddings_in(read))
    description = f"drawing {len(ids)} pictures ({folder.name})"
    with merged_lora(decoder.unet):
        draw_missing(folder, ids, config.sampler.batch_size, draw, workers, description)
    return read


def write_index(folder: Path, ids: list[int], **more: Mapping[str, Any]) -> None:
    """Merge, by image id, what the processes left beside their pictures, and list it: routing.safetensors and index.json."""
    gathered(folder, ids, folder / ROUTING)
    chosen = notes(folder, ids)
    write_json(folder / INDEX, {"images": ids, **more, **({"samples": chosen} if chosen else {})})


def reconstruct(config: Config) -> Path:
    """Generate every test image of every subject; what is already there is kept. Under ``accelerate launch`` processes share the pictures.

    Random voxels are drawn ``sampler.random_draws`` times, each time with other noise for the pictures as well.

    Returns
    -------
    folder : ``<image id>.png`` for every test image, ``embeddings.safetensors``, ``index.json``; of random voxels the first draw's.
        With several subjects the run folder, which has such a folder for each (`run_layout.subject_configs`)
    """
    config = at_test_set(config)
    check_backbone(config)
    return each_subject(config, reconstruct_subject)


def reconstruct_subject(config: Config) -> Path:
    """Generate the test images of the only subject of a configuration."""
    each = drawings(config)
    for drawing in each:
        reconstruct_into(*drawing)
    return each[0].folder


class Drawing(NamedTuple):
    """The test images drawn once."""

    config: Config
    """With the seed of this drawing."""
    folder: Path


def drawings(config: Config) -> list[Drawing]:
    """What :func:`reconstruct` draws: once what was seen, ``sampler.random_draws`` times random voxels; in any order."""
    if config.sampler.source != "random":
        return [Drawing(config, drawn_folder(config))]
    first, *others = random_folders(config)
    found = [Drawing(config, first)]
    for number, folder in enumerate(others, 2):
        own = config.run.model_copy(update={"seed": hash_seed(config.run.seed, "draw of random voxels", number)})
        found.append(Drawing(config.model_copy(update={"run": own}), folder))
    return found


def reconstruct_into(config: Config, folder: Path) -> Path:
    """Draw the configured source once, into a run folder; finished pictures of other settings are refused."""
    settings = {**config.model_dump(mode="json", include={"data", "backbone", "sampler"}), "seed": config.run.seed}
    # pictures of readers or backbones that have changed since are not passed off as those of the present ones
    settings["readers"] = {modality: fingerprint_of_files(run_folder(config, modality) / READER) for modality in modalities(config)}
    settings["weights"] = fingerprint_of_files(backbone_folder(config.backbone.path))
    tuned = tuned_folder(config)
    settings["finetuned"] = fingerprint_of_files(tuned) if tuned is not None else ""
    workers = Workers(config)
    with shared_run(workers, folder, settings, {"run": config.run.seed}, may_change=["sampler.batch_size", "sampler.random_draws"]) as run:
        if complete(workers, run, lambda: drawn_files(folder, run.summary)):
            return folder
        started = time.monotonic()
        parts = setup(config)
        if workers.main and not (folder / EMBEDDINGS).exists():
            with replaced_path(folder / EMBEDDINGS) as temporary:
                save_file({name: rows.contiguous() for name, rows in embeddings_of(config, parts).items()}, temporary)
        workers.wait()
        read = draw_embeddings(config, parts.decoder, lambda: parts.targets.image_encoder, folder, workers)
        if workers.main:
            ids = read["ids"].numpy()
            more = {}
            if "text" in read and has_captions(Layout.of(config.data.root)):
                more["captions"] = nearest_captions(config, parts.targets, read["text"], ids)
            write_index(folder, ids.tolist(), **more)
            run.mark_finished({"images": len(ids), "routing": (folder / ROUTING).exists(), "seconds": round(time.monotonic() - started, 1)})
        workers.wait()
    return folder
