"""Stage 3: decode the test images' embeddings from voxels, and generate images from them.

Controls generate from random voxels, or from the true embeddings (oracle).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import logging
from pathlib import Path
import time
from typing import Any, Literal, NamedTuple

import numpy as np
from safetensors.torch import load_file, save_file
import torch
from torch import Tensor

from braingen.config import Config
from braingen.config.shipped import backbone_folder
from braingen.data.batches import RepeatBatches
from braingen.data.betas import Betas
from braingen.data.captions import has_captions
from braingen.data.model_facts import model_facts
from braingen.data.sealed import is_sealed
from braingen.data.sealed_runs import at_test_set
from braingen.data.trials import Repeats, group_repeats, test_trials
from braingen.data.voxel_file import Responses, odd_scale
from braingen.encoders.embedding_decoder import EmbeddingDecoder
from braingen.encoders.trained import load_embedding_decoder, load_latent_encoder, modalities
from braingen.generation.batch import batch_of, batch_that_fits
from braingen.generation.brain_encoders import BrainEncoders, refuse_level
from braingen.generation.by_encoding_model import ByEncodingModel, uses_encoding_model
from braingen.generation.captions import training_captions
from braingen.generation.compatibility import (
    form_of_files,
    refuse_incompatible,
    refuse_other_widths,
)
from braingen.generation.conditioned_unet import RoutingRecorder, expert_counts
from braingen.generation.lora import merged_lora
from braingen.generation.pipeline import BrainDecoder, negative_condition, to_pil
from braingen.generation.rerank import Similarity, best_of, by_embedding
from braingen.generation.resumable import (
    GeneratedImage,
    gather_tensors,
    generate_missing,
    notes,
    output_files,
)
from braingen.generation.sampling import CoarseImage, decode_latents, seeded_noise
from braingen.generation.speed import prepare_unet
from braingen.generation.trained_modules import (
    NOT_FINETUNED,
    FinetunedModules,
    finetuned_folder,
    load_finetuned,
)
from braingen.pretrained.hub import backbone_key
from braingen.pretrained.sdxl import (
    image_size,
    load_backbone,
    load_scheduler,
    pixels_per_latent,
    refuse_side,
    refuse_steps,
    scheduler_named,
)
from braingen.pretrained.tiny import check_backbone
from braingen.runtime.data_layout import Layout
from braingen.runtime.device import device_of
from braingen.runtime.distributed import Workers, complete, shared_run
from braingen.runtime.errors import UserError
from braingen.runtime.files import replaced_path, write_json
from braingen.runtime.fingerprints import fingerprint_of_files
from braingen.runtime.memory import give_back
from braingen.runtime.paths import (
    EMBEDDING_DECODER,
    EMBEDDINGS,
    INDEX,
    LATENT_ENCODER,
    LOW_LEVEL,
    ROUTING,
    encoding_folder,
    generated_folder,
    low_level_folder,
    random_folders,
    run_folder,
)
from braingen.runtime.precision import generation_type
from braingen.runtime.seeds import hash_seed
from braingen.runtime.subjects import each_subject
from braingen.targets.clip_image import CLIPImageEncoder
from braingen.targets.tables import Targets
from braingen.types import ExpertStack

logger = logging.getLogger(__name__)
LATENTS = "latents"
"""Name of the coarse images' latents beside the embeddings."""


class ReconstructionParts(NamedTuple):
    """What a reconstruction has before any model: test trials, voxels and targets."""

    repeats: Repeats
    betas: Betas
    subject: int
    targets: Targets


def tuned_modules(config: Config) -> FinetunedModules:
    """LoRA file, routers and order of the prior of the fine-tuning that is used."""
    folder = finetuned_folder(config)
    return load_finetuned(folder) if folder is not None else NOT_FINETUNED


def load_encoders(
    config: Config, targets: Targets, whole: bool = True, low_level: bool = True
) -> BrainEncoders:
    """Load the trained encoders, and no part of the backbone.

    Parameters
    ----------
    whole : bool, optional
        Load everything of them; else each is dropped again before the next but for what generation
        needs (:meth:`BrainEncoders.release`).
    low_level : bool, optional
        Load the low-level path too, where it is used.

    Raises
    ------
    UserError
        When one is missing, or its embeddings have other widths than the backbone's files say.
    """
    form = form_of_files(config, targets.text_form)
    tuned = tuned_modules(config)

    def encoder(modality: Literal["image", "text"]) -> EmbeddingDecoder:
        found = load_embedding_decoder(config, modality)
        if not whole:
            found.keep_scale(prior=tuned.prior_order == "step")
            give_back()
        return found

    image = encoder("image")
    text = encoder("text") if "text" in modalities(config) else None
    if form is not None:
        refuse_other_widths(form, image, text)
    path = load_latent_encoder(config) if low_level and uses_low_level(config) else None
    routers = {"image": tuned.router_image, "text": tuned.router_text}
    routed = tuple(name for name, router in routers.items() if router is not None)
    return BrainEncoders(image, text, path, tuned.prior_order, routed).to(device_of(config))


def assemble(
    config: Config, targets: Targets, encoders: BrainEncoders | None = None
) -> BrainDecoder:
    """Assemble trained encoders, the backbone and the fine-tuned modules into one decoder.

    Parameters
    ----------
    encoders : BrainEncoders | None, optional
        Those of :func:`load_encoders`, released where everything is decoded already; loaded whole,
        and kept beside the backbone, when left out.
    """
    text_form = targets.text_form
    encoders = encoders or load_encoders(config, targets)
    image, text = encoders.image, encoders.text
    backbone = load_backbone(
        config.backbone.path, config.backbone.ip_adapter, generation_type(config)
    )
    backbone = backbone._replace(
        scheduler=scheduler_named(config.generation.scheduler, backbone.scheduler)
    )
    tuned = tuned_modules(config)
    decoder = BrainDecoder.assemble(
        image, text, *backbone, text_form, low_level=encoders.low_level, **tuned._asdict()
    )
    refuse_other_widths(decoder.form, image, text)
    _describe(decoder, config, targets)
    decoder.to(device_of(config))
    prepare_unet(decoder.unet, config)
    decoder.set_progress_bar_config(disable=True)
    return decoder


def _describe(decoder: BrainDecoder, config: Config, targets: Targets) -> None:
    """Give a decoder what its card and its captions are made from."""
    encoder, run = decoder.brain_image.config, run_folder(config, "image")
    subjects = encoder.encoder_config["subjects"]
    decoder.facts = model_facts("decoder", encoder.encoder_class, subjects, run, config.data.root)
    layout = Layout.of(config.data.root)
    if decoder.brain_text is not None and not is_sealed(layout) and has_captions(layout):
        decoder.caption_library = lambda: training_captions(config, targets)


def uses_low_level(config: Config) -> bool:
    """Whether images start from the coarse image of the low-level path.

    Raises
    ------
    UserError
        When it is asked for and not trained.
    """
    sampler = config.generation
    wanted = "yes" if sampler.source == LOW_LEVEL else sampler.low_level
    if wanted == "no" or sampler.source == "oracle" or sampler.level is not None:
        return False
    trained = (low_level_folder(config) / LATENT_ENCODER).is_dir()
    if wanted == "yes" and not trained:
        raise UserError(
            f"There is no trained low-level path in {low_level_folder(config)}: run `braingen train"
            " low_level` first, or leave generation.low_level at auto."
        )
    return trained


def check_generation(config: Config) -> None:
    """Refuse settings that the backbone does not support, before loading any weights.

    Raises
    ------
    UserError
        For parts that do not fit each other, more steps than the noise schedule has times, and
        images smaller than the autoencoder supports.
    """
    refuse_incompatible(config)
    path, sampler = config.backbone.path, config.generation
    refuse_steps(
        sampler.steps, scheduler_named(sampler.scheduler, load_scheduler(path)), "generation.steps"
    )
    refuse_side(sampler.size, pixels_per_latent(path), "generation.size", multiple=False)


def repeats_to_generate(config: Config) -> Repeats:
    """Return the test images to generate, with their presentations."""
    repeats = group_repeats(test_trials(Layout.of(config.data.root), config.data.subjects[0]))
    count = config.generation.num_images or len(repeats.image_N)
    return Repeats(repeats.image_N[:count], repeats.rows_NR[:count])


def setup(config: Config, decodes: bool = True) -> ReconstructionParts:
    """Check the settings and find the data, before any model is loaded.

    Parameters
    ----------
    decodes : bool, optional
        Whether this process decodes: of an oracle the true embeddings are computed then.
    """
    if not (config.generation.use_image or config.generation.use_text):
        raise UserError(
            "use_image and use_text are both off, so there is no condition to generate from: leave"
            " one of them on."
        )
    if not config.generation.use_image and "text" not in modalities(config):
        raise UserError(
            "generation.use_image is off and there is no text embedding to generate from (no"
            " captions, no text encoder): leave use_image on."
        )
    check_generation(config)
    layout = Layout.of(config.data.root)
    subject = config.data.subjects[0]
    repeats = repeats_to_generate(config)
    targets = Targets(config)
    if config.generation.source == "oracle" and decodes:  # before the encoders are there
        for name in _known(config):
            targets.of(name, repeats.image_N)
        targets.free()
    return ReconstructionParts(repeats, Betas.of(layout, subject), subject, targets)


def reads_voxels(config: Config) -> bool:
    """Whether the encoders are run; true embeddings and encoding models need their scale alone."""
    return config.generation.source != "oracle" and config.generation.decode_by == "encoder"


def _known(config: Config) -> tuple[str, ...]:
    """The embeddings that are true of the images: of the text only where there are captions."""
    captions = has_captions(Layout.of(config.data.root))
    return tuple(name for name in modalities(config) if name == "image" or captions)


def embeddings_of(
    config: Config, parts: ReconstructionParts, encoders: BrainEncoders
) -> dict[str, Tensor]:
    """Return embeddings of all test images from the configured source.

    The keys are ``image``, ``text``, ``image_clip``, ``text_clip`` and ``ids``.
    """
    if reads_voxels(config):
        return decode_responses(config, encoders, parts.repeats, parts.betas, parts.subject)
    if config.generation.source != "oracle":
        model = ByEncodingModel(config, parts.targets, parts.repeats, parts.betas)
        found = model.decode(encoders.image, encoders.text)
        if (low_level := encoders.low_level) is not None:
            voxels_NV = torch.from_numpy(model.responses_NV).float().to(low_level.device)
            found[LATENTS] = low_level.latents_of(voxels_NV, parts.subject).float().cpu()
        return found
    ids = parts.repeats.image_N
    found = {"ids": torch.from_numpy(ids)}
    for name, encoder in (("image", encoders.image), ("text", encoders.text)):
        if encoder is not None and (name == "image" or has_captions(Layout.of(config.data.root))):
            found[name] = parts.targets.of(name, ids)
            found[f"{name}_clip"] = encoder.standardised(found[name].to(encoder.device)).cpu()
    return found


@torch.no_grad()
def decode_responses(
    config: Config,
    encoders: BrainEncoders,
    repeats: Repeats,
    betas: Betas | Responses,
    subject: int,
) -> dict[str, Tensor]:
    """Decode embeddings from voxels; for ``generation.source: random`` from normal noise.

    With routers or ``generation.level`` the experts' embeddings are returned too, in standardised
    units: ``image_experts``, ``text_experts``. With a low-level path ``latents`` are those of the
    coarse images.
    """
    mixed = config.generation.level is not None or bool(encoders.routed)
    # responses of a file were checked when it was read
    if isinstance(betas, Betas) and config.generation.source == "brain":
        used_N = repeats.rows_NR[repeats.rows_NR >= 0]
        sample = betas.rows(np.sort(used_N)[:: -(-len(used_N) // 200)])
        if warning := odd_scale(sample, str(betas.path)):
            logger.warning(warning)
    found: dict[str, list[Tensor]] = {"image": [], "text": [], "image_clip": [], "text_clip": []}
    for batch in RepeatBatches(repeats, betas, subject, 32):
        voxels_BRV, present_BR = batch.voxels_BRV, batch.present_BR
        if config.generation.source == "random":  # unit variance, as z-scored voxels
            voxels_BRV = seeded_noise(
                batch.image_B.tolist(),
                tuple(voxels_BRV.shape[1:]),
                config.run.seed,
                "random voxels",
            )
        if config.generation.repeats == "first":
            voxels_BRV, present_BR = voxels_BRV[:, :1], present_BR[:, :1]
        voxels_BRV = voxels_BRV.to(encoders.device)
        decoded = encoders.decode_embeddings(
            voxels_BRV, subject, batch.image_B.tolist(), config.run.seed, present_BR, experts=mixed
        )
        for name, rows in zip(found, encoders.unrouted(decoded)):
            if rows is not None:
                found[name].append(rows.float().cpu())
        if decoded.latents_BChw is not None:
            found.setdefault(LATENTS, []).append(decoded.latents_BChw.float().cpu())
        for name, outputs in (("image_experts", decoded.image), ("text_experts", decoded.text)):
            if mixed and outputs is not None:
                found.setdefault(name, []).append(outputs.experts_BETD.float().cpu())
    joined = {name: torch.cat(rows) for name, rows in found.items() if rows}
    return {"ids": torch.from_numpy(repeats.image_N), **joined}


def nearest_captions(
    config: Config, targets: Targets, text_NTD: Tensor, ids: np.ndarray
) -> dict[str, str]:
    """Return the training caption nearest to every text embedding (cosine around the mean)."""
    nearest = training_captions(config, targets).nearest(text_NTD)
    return {str(int(image)): caption for image, caption in zip(ids, nearest)}


class Embeddings(NamedTuple):
    """Embeddings that images are generated from; rows are images."""

    image_NTD: Tensor
    text_NTD: Tensor | None
    """Both in CLIP's own units; no text without a text encoder."""
    image_N: list[int]
    """Image ids."""
    experts: Mapping[str, Tensor] | None = None
    """'image', 'text' -> standardised embeddings of all experts, N x E x T x D; None where all
    experts share the embedding.
    """
    latents_NChw: Tensor | None = None
    """Of the coarse images; None without a low-level path."""

    def outputs(self, name: str, rows: slice, counts: Sequence[int]) -> Tensor | ExpertStack:
        """Return the encoder outputs of some rows; ``counts``: experts of every level."""
        if self.experts is not None:
            return ExpertStack.of_experts(self.experts[name][rows], counts)
        table = self.image_NTD if name == "image" else self.text_NTD
        assert table is not None
        return table[rows]


def embeddings_in(decoded: Mapping[str, Tensor]) -> Embeddings:
    """Group the tensors of :func:`decode_responses` as the input of the diffusion model."""
    parts = {name: decoded.get(f"{name}_experts") for name in ("image", "text")}
    experts = {name: rows for name, rows in parts.items() if rows is not None}
    return Embeddings(
        decoded["image"],
        decoded.get("text"),
        decoded["ids"].tolist(),
        experts or None,
        decoded.get(LATENTS),
    )


def image_generator(
    config: Config,
    decoder: BrainDecoder,
    targets: Callable[[], CLIPImageEncoder],
    embeddings: Embeddings,
    evidence: Callable[[slice], Similarity] | None = None,
) -> Callable[[slice], list[GeneratedImage]]:
    """Return a function that generates images from rows of embeddings with the configured sampler.

    Parameters
    ----------
    targets : Callable[[], CLIPImageEncoder]
        Returns the CLIP that embeds generated images; called only with several samples per image.
    evidence : Callable[[slice], Similarity] | None, optional
        Rows -> how well generated images fit the responses; None: the nearest to the decoded
        embedding is kept.
    """
    sampler = config.generation
    with_text = (
        sampler.use_text and embeddings.text_NTD is not None and decoder.brain_text is not None
    )
    encoders = {"image": decoder.brain_image, "text": decoder.brain_text}
    counts = {name: expert_counts(each) for name, each in encoders.items() if each is not None}
    level = sampler.level if embeddings.experts else None
    if level is not None:
        used = {"image": sampler.use_image, "text": with_text}
        refuse_level(
            {name: counts[name] for name, on in used.items() if on}, level, "generation.level"
        )
    negative = negative_condition(
        decoder.form, backbone_folder(config.backbone.path), sampler.negative_prompt
    )

    def nearest_embedding(some: slice) -> Similarity:
        embedding_decoder = decoder.brain_image
        decoded_BTD = embedding_decoder.standardised(
            embeddings.image_NTD[some].to(embedding_decoder.device)
        )
        return by_embedding(
            lambda x: embedding_decoder.standardised(
                targets()(x).target_BTD.to(embedding_decoder.device)
            ),
            decoded_BTD,
        )

    def coarse_images(some: slice) -> CoarseImage | None:
        if embeddings.latents_NChw is None:
            return None
        return CoarseImage(embeddings.latents_NChw[some], sampler.strength, sampler.blend)

    def generate(some: slice) -> list[GeneratedImage]:
        coarse = coarse_images(some)
        if sampler.source == LOW_LEVEL:
            assert coarse is not None
            latents = coarse.latents_B4hw.to(decoder.device)
            blurry_B3HW = decode_latents(decoder.vae, latents, embeddings.image_N[some])
            return [GeneratedImage(image, None, {}) for image in to_pil(blurry_B3HW)]
        recorder = RoutingRecorder()

        def one_sample(number: int) -> Tensor:
            return decoder.generate(
                embeddings.outputs("image", some, counts["image"]) if sampler.use_image else None,
                embeddings.outputs("text", some, counts["text"]) if with_text else None,
                embeddings.image_N[some],
                seed=config.run.seed,
                steps=sampler.steps,
                guidance_scale=sampler.guidance_scale,
                guidance_end=sampler.guidance_end,
                ip_adapter_scale=sampler.ip_adapter_scale,
                size=sampler.size,
                negative=negative,
                sample=number,
                level=level,
                on_step=recorder if number == 0 else None,  # routing of the first sample only
                coarse=coarse,
            )

        def routing(row: int) -> dict[str, Tensor]:
            return {name: value[row] for name, value in mixed.items()}

        if sampler.samples == 1:
            images = to_pil(one_sample(0))
            mixed = recorder.tensors(decoder.scheduler.timesteps)
            return [GeneratedImage(image, None, routing(row)) for row, image in enumerate(images)]
        chosen = best_of(
            sampler.samples,
            one_sample,
            nearest_embedding(some) if evidence is None else evidence(some),
        )
        mixed = recorder.tensors(decoder.scheduler.timesteps)
        similarity = [[round(value, 4) for value in row] for row in chosen.similarity_BS.tolist()]
        return [
            GeneratedImage(image, {"sample": int(np.argmax(exact)), "similarity": row}, routing(n))
            for n, (image, row, exact) in enumerate(
                zip(to_pil(chosen.images_B3HW), similarity, chosen.similarity_BS.tolist())
            )
        ]

    return generate


def batch_for(config: Config, decoder: BrainDecoder) -> int:
    """Images at once, with the decoder on its device."""
    chosen = config.generation
    if chosen.batch_size != "auto" or decoder.unet.device.type != "cuda":
        return batch_of(chosen.batch_size)
    size = chosen.size or image_size(decoder.unet, decoder.vae)
    return batch_that_fits("auto", decoder.unet, decoder.vae, size)


def generate_images(
    config: Config,
    decoder: BrainDecoder,
    targets: Callable[[], CLIPImageEncoder],
    folder: Path,
    workers: Workers,
    evidence: Callable[[slice], Similarity] | None = None,
) -> dict[str, Tensor]:
    """Generate images from a run folder's embeddings with all processes; returns the embeddings."""
    decoded = load_file(folder / EMBEDDINGS)
    ids = decoded["ids"].tolist()
    generate = image_generator(config, decoder, targets, embeddings_in(decoded), evidence)
    description = f"generating {len(ids)} images ({folder.name})"
    with merged_lora(decoder.unet):
        generate_missing(folder, ids, batch_for(config, decoder), generate, workers, description)
    return decoded


def _generated(
    config: Config,
    parts: ReconstructionParts,
    encoders: BrainEncoders,
    folder: Path,
    workers: Workers,
) -> dict[str, Tensor]:
    """Load the backbone and generate from a run folder's embeddings, which are returned."""
    decoder = assemble(config, parts.targets, encoders)
    evidence = None
    if config.generation.choose_by == "responses":
        model = ByEncodingModel(config, parts.targets, parts.repeats, parts.betas)
        evidence = model.similarity
    return generate_images(
        config, decoder, lambda: parts.targets.image_encoder, folder, workers, evidence
    )


def write_index(folder: Path, ids: list[int], **more: Mapping[str, Any]) -> None:
    """Merge the processes' outputs by image id into routing.safetensors and index.json."""
    gather_tensors(folder, ids, folder / ROUTING)
    chosen = notes(folder, ids)
    write_json(folder / INDEX, {"images": ids, **more, **({"samples": chosen} if chosen else {})})


def reconstruct(config: Config) -> Path:
    """Generate every test image of every subject; finished images are kept.

    Under ``accelerate launch`` the images are split between processes. Random voxels are sampled
    ``generation.random_draws`` times, with new noise for the images too.

    Returns
    -------
    folder : Path
        ``<image id>.png`` for every test image, ``embeddings.safetensors``, ``index.json``; for
        random voxels those of the first sample. With several subjects the run folder, which holds
        such a folder per subject (`braingen.runtime.paths.subject_configs`).
    """
    config = at_test_set(config)
    check_backbone(config)
    return each_subject(config, reconstruct_subject)


def reconstruct_subject(config: Config) -> Path:
    """Generate the test images of the only subject of a configuration."""
    tasks = generation_tasks(config)
    for task in tasks:
        reconstruct_into(*task)
    return tasks[0].folder


class GenerationTask(NamedTuple):
    """One sample of all test images."""

    config: Config
    """With the seed of this sample."""
    folder: Path


def generation_tasks(config: Config) -> list[GenerationTask]:
    """List the tasks of :func:`reconstruct`: one, or ``generation.random_draws`` for random voxels.

    They may run in any order.
    """
    if config.generation.source != "random":
        return [GenerationTask(config, generated_folder(config))]
    first, *others = random_folders(config)
    found = [GenerationTask(config, first)]
    for number, folder in enumerate(others, 2):
        own = config.run.model_copy(
            update={"seed": hash_seed(config.run.seed, "draw of random voxels", number)}
        )
        found.append(GenerationTask(config.model_copy(update={"run": own}), folder))
    return found


def reconstruct_into(config: Config, folder: Path) -> Path:
    """Generate one sample of all test images into a run folder."""
    settings = {
        **config.model_dump(mode="json", include={"data", "backbone", "generation"}),
        "seed": config.run.seed,
    }
    # images of earlier embedding decoders or backbones are refused, not taken for current ones
    settings["embedding_decoders"] = {
        modality: fingerprint_of_files(run_folder(config, modality) / EMBEDDING_DECODER)
        for modality in modalities(config)
    }
    settings["unet_type"] = str(generation_type(config)).removeprefix("torch.")
    settings["weights"] = backbone_key(
        backbone_folder(config.backbone.path), generation_type(config)
    )
    if uses_encoding_model(config):
        settings["encoding_model"] = fingerprint_of_files(encoding_folder(config))
    if uses_low_level(config):
        settings["low_level"] = fingerprint_of_files(low_level_folder(config) / LATENT_ENCODER)
    tuned = finetuned_folder(config)
    settings["finetuned"] = fingerprint_of_files(tuned) if tuned is not None else ""
    workers = Workers(config)
    with shared_run(
        workers,
        folder,
        settings,
        {"run": config.run.seed},
        may_change=["generation.batch_size", "generation.random_draws"],
    ) as run:
        if complete(workers, run, lambda: output_files(folder, run.summary)):
            return folder
        started = time.monotonic()
        decodes = workers.main and not (folder / EMBEDDINGS).exists()
        parts = setup(config, decodes)
        whole = decodes and reads_voxels(config)
        encoders = load_encoders(config, parts.targets, whole, low_level=decodes)
        if decodes:
            with replaced_path(folder / EMBEDDINGS) as temporary:
                save_file(
                    {
                        name: rows.contiguous()
                        for name, rows in embeddings_of(config, parts, encoders).items()
                    },
                    temporary,
                )
            encoders.release()  # before the backbone is loaded
            parts.targets.free()
        workers.wait()
        more: dict[str, Mapping[str, str]] = {}
        if workers.main:  # before the backbone: texts that are not in the cache need their encoder
            decoded = load_file(folder / EMBEDDINGS)
            if "text" in decoded and has_captions(Layout.of(config.data.root)):
                ids = decoded["ids"].numpy()
                more["captions"] = nearest_captions(config, parts.targets, decoded["text"], ids)
        decoded = _generated(config, parts, encoders, folder, workers)
        if workers.main:
            ids_N = decoded["ids"].tolist()
            write_index(folder, ids_N, **more)
            run.mark_finished(
                {
                    "images": len(ids_N),
                    "routing": (folder / ROUTING).exists(),
                    "seconds": round(time.monotonic() - started, 1),
                }
            )
        workers.wait()
    return folder
