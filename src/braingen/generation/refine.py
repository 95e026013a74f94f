"""Stage 4: refine reconstructions by image-to-image diffusion, conditioned on the decoded text.

The output folder has the form of the input folder, so everything that reads or scores
reconstructions does so with refined ones.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
import shutil
import time

import numpy as np
from safetensors.torch import load_file
import torch
from torch import Tensor

from braingen.config import Config
from braingen.config.shipped import backbone_folder
from braingen.generation.pipeline import to_pil
from braingen.generation.refiner import Refinement, Refiner, load_refiner, refine_images, steps_run
from braingen.generation.resumable import (
    GeneratedImage,
    generate_missing,
    open_image,
    output_files,
    png_path,
)
from braingen.generation.speed import prepare_unet
from braingen.pretrained.hub import backbone_key
from braingen.pretrained.sdxl import load_scheduler, pixels_per_latent, refuse_side, scheduler_named
from braingen.pretrained.tiny import check_backbone
from braingen.runtime.device import device_of
from braingen.runtime.distributed import Workers, complete, shared_run
from braingen.runtime.errors import UserError
from braingen.runtime.files import refuse_stand_in, replaced_path, write_json
from braingen.runtime.memory import give_back
from braingen.runtime.paths import EMBEDDINGS, INDEX, generated_folder, one_subject, typed_run
from braingen.runtime.precision import generation_type
from braingen.runtime.run_folder import Run
from braingen.runtime.subjects import each_subject
from braingen.runtime.text_files import read_json
from braingen.types import Conditioning

REFINED = "_refined"
"""Suffix of a folder of refined images."""


def recons_of(config: Config) -> Path:
    """Return the folder of reconstructions to refine."""
    return (
        Path(config.refinement.recons).expanduser()
        if config.refinement.recons
        else generated_folder(config)
    )


def refined_folder(config: Config) -> Path:
    """Return the folder of the refined images."""
    if config.refinement.output:
        return Path(config.refinement.output).expanduser()
    recons = recons_of(config)
    return recons.with_name(recons.name + REFINED)


def _digest(folder: Path, ids: list[int]) -> str:
    """Hash of the images and embeddings that are refined; changed ones are refused."""
    digest = hashlib.sha256()
    for path in [folder / EMBEDDINGS, *(png_path(folder, image) for image in ids)]:
        refuse_stand_in(path, "run `braingen reconstruct` again, it generates missing images")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def refined_is_there(config: Config) -> bool:
    """Whether the configured reconstructions have been refined.

    Raises
    ------
    UserError
        When they were refined from other images than the present ones.
    """
    folder = refined_folder(config)
    if not (folder / "config.yaml").exists() or not Run(folder).finished:
        return False
    if Run(folder).config["recons"] != _digest(recons_of(config), _require(config)):
        raise UserError(
            f"{folder} was refined from other images than those now in {recons_of(config)}:"
            " remove it, and refine again."
        )
    return True


def _require(config: Config) -> list[int]:
    """Return image ids of finished reconstructions."""
    folder = recons_of(config)
    lacking = [name for name in (INDEX, EMBEDDINGS) if not (folder / name).is_file()]
    if lacking:
        raise UserError(
            f"{folder} holds no finished reconstructions (no {lacking[0]}): run `braingen"
            f" reconstruct {typed_run(config.run.folder)}` first, or name another run's folder:"
            " --recons FOLDER."
        )
    if refined_folder(config) == folder:
        raise UserError(
            f"refinement.output = {folder} is the folder of the reconstructions themselves; give"
            " another one."
        )
    if config.refinement.use_image and config.backbone.refiner:
        raise UserError(
            "refinement.use_image needs the base model's IP-Adapter; SDXL's refiner has none: leave"
            " one of the two settings out."
        )
    return [int(image) for image in read_json(folder / INDEX)["images"]]


def _model(config: Config) -> str:
    """Return the model that refines."""
    return config.backbone.refiner or config.backbone.path


def _setting(config: Config) -> str:
    return "backbone.refiner" if config.backbone.refiner else "backbone.path"


def setup(config: Config) -> Refiner:
    """Load the refiner, and fail early."""
    settings = config.refinement
    adapter = None
    if settings.use_image:
        adapter = config.backbone.ip_adapter or str(
            Path(backbone_folder(config.backbone.path)) / "ip_adapter"
        )
    path = _model(config)
    text = config.backbone.text_output
    refiner = load_refiner(
        path,
        text_output=text,
        ip_adapter=adapter,
        negative_prompt=settings.negative_prompt,
        dtype=generation_type(config),
    )
    for name in ("aesthetic_score", "negative_aesthetic_score"):
        if not refiner.scored and getattr(settings, name) != Refinement._field_defaults[name]:
            raise UserError(
                f"refiner.{name} = {getattr(settings, name):g} has no effect: {path} is a base"
                " model, and SDXL's refiner alone is given an aesthetic score. Leave it out, or"
                " name the refiner with backbone.refiner."
            )
    device = device_of(config)
    give_back(collect=True)  # the text encoder
    unet = refiner.unet.to(device)
    prepare_unet(unet, config)
    return refiner._replace(
        unet=unet,
        vae=refiner.vae.to(device),
        scheduler=scheduler_named(settings.scheduler, refiner.scheduler),
        form=refiner.form.to(device),
        unconditional=Conditioning(*(x.to(device) for x in refiner.unconditional[:3])),  # type: ignore[union-attr, arg-type]
    )


def _read(folder: Path, ids: list[int]) -> Tensor:
    """Load images of one size as B x 3 x H x W in [0, 1]."""
    images = []
    for number in ids:
        with open_image(png_path(folder, number)) as image:
            images.append(np.asarray(image.convert("RGB")))
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255


def refine(config: Config) -> Path:
    """Refine all reconstructions of every subject, or one folder; refined images are kept.

    Returns
    -------
    folder : Path
        Has the form of the input folder; with several subjects the run folder.
    """
    if config.refinement.recons:
        return refine_folder(config)
    if config.refinement.output:
        return refine_folder(one_subject(config, "refinement.output"))
    return each_subject(config, refine_folder)


def refine_folder(config: Config) -> Path:
    """Refine one folder of reconstructions."""
    recons, folder, chosen = recons_of(config), refined_folder(config), config.refinement
    ids = _require(config)
    check_backbone(config)
    settings = config.model_dump(
        mode="json", include={"backbone": True, "refinement": True, "data": {"subjects"}}
    )
    settings |= {"seed": config.run.seed, "recons": _digest(recons, ids)}
    settings["unet_type"] = str(generation_type(config)).removeprefix("torch.")
    settings["weights"] = backbone_key(backbone_folder(_model(config)), generation_type(config))
    how = Refinement(**chosen.model_dump(include=set(Refinement._fields)))
    steps = steps_run(
        scheduler_named(chosen.scheduler, load_scheduler(_model(config), _setting(config))), how
    )
    refuse_side(chosen.size, pixels_per_latent(_model(config)), "refinement.size")
    workers = Workers(config)
    free = ["refinement.batch_size", "refinement.recons", "refinement.output"]
    with shared_run(workers, folder, settings, {"run": config.run.seed}, may_change=free) as run:
        if complete(workers, run, lambda: output_files(folder, run.summary)):
            return folder
        started = time.monotonic()
        embeddings = load_file(recons / EMBEDDINGS)
        if "text" not in embeddings and not chosen.use_image:
            raise UserError(
                f"{recons} was generated without a text embedding, which is what refining is"
                " conditioned on: refine with the base model and the decoded image instead,"
                " refinement.use_image=true."
            )
        refiner = setup(config)
        row = {image: number for number, image in enumerate(embeddings["ids"].tolist())}

        def refine_rows(some: slice) -> list[GeneratedImage]:
            rows = [row[image] for image in ids[some]]
            refined = refine_images(
                refiner,
                _read(recons, ids[some]),
                embeddings["text"][rows] if "text" in embeddings else None,
                ids[some],
                how,
                seed=config.run.seed,
                image_BTD=embeddings["image"][rows] if chosen.use_image else None,
                size=chosen.size,
            )
            return [GeneratedImage(image) for image in to_pil(refined)]

        generate_missing(
            folder,
            ids,
            chosen.batch_size,
            refine_rows,
            workers,
            f"refining {len(ids)} images of {recons.name}",
        )
        if workers.main:
            with replaced_path(folder / EMBEDDINGS) as temporary:
                shutil.copyfile(recons / EMBEDDINGS, temporary)
            write_json(folder / INDEX, read_json(recons / INDEX))
            run.mark_finished(
                {
                    "images": len(ids),
                    "steps": steps,
                    "of_steps": how.steps,
                    "seconds": round(time.monotonic() - started, 1),
                }
            )
        workers.wait()
    return folder
