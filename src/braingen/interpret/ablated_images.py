"""Images from ablated decoders, generated as `braingen reconstruct` does."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
import hashlib
from pathlib import Path
import shutil
from typing import Any

import numpy as np
import pandas as pd

from braingen.config import Config
from braingen.config.shipped import backbone_folder
from braingen.data.betas import Betas
from braingen.data.image_grid import open_picture
from braingen.data.trials import Repeats
from braingen.data.voxel_file import Responses
from braingen.evaluation.pixel import pixel_correlation
from braingen.generation.lora import merged_lora
from braingen.generation.pipeline import BrainDecoder
from braingen.generation.reconstruct import (
    batch_for,
    decode_responses,
    embeddings_in,
    image_generator,
)
from braingen.generation.resumable import generate_missing, png_path
from braingen.generation.trained_modules import finetuned_folder
from braingen.interpret.ablation import ablated
from braingen.interpret.inputs import SubjectData
from braingen.interpret.readout import DecoderPart, parts_of
from braingen.pretrained.hub import backbone_key
from braingen.runtime.contents import contents_of
from braingen.runtime.distributed import Workers
from braingen.runtime.errors import UserError
from braingen.runtime.files import write_json
from braingen.runtime.fingerprints import fingerprint_of_files
from braingen.runtime.paths import EMBEDDING_DECODER, run_folder
from braingen.runtime.precision import generation_type
from braingen.runtime.run_folder import CONTENTS
from braingen.runtime.text_files import read_json
from braingen.runtime.untrusted import folder_name
from braingen.targets.tables import Targets

UNDISTURBED = "undisturbed"
REGIONS = 3
"""Number of regions to ablate: those with the largest loss."""
Ablated = Mapping[str, DecoderPart | np.ndarray]
"""Name -> level or expert of the explained encoder, or voxels (bool V) of both encoders."""


def ablations_of(
    config: Config, experts: list[int], regions: Mapping[str, np.ndarray], table: pd.DataFrame
) -> dict[str, DecoderPart | np.ndarray]:
    """Select levels, experts in interpret.parts, regions with the largest loss, random voxels.

    Parameters
    ----------
    table : pd.DataFrame
        Rows of ablation.csv of one subject.
    """
    asked = config.interpret.parts
    found: dict[str, DecoderPart | np.ndarray] = {
        part.name: part
        for part in parts_of(experts)
        if part.level is not None
        and (part.expert is None or "experts" in asked or part.name in asked)
    }
    costs = table[
        (table["images"] == "all") & (table["score"] == "cosine") & (table["voxels"] > 0)
    ].sort_values("loss", ascending=False)
    names = costs["ablated"].head(REGIONS).tolist()
    found |= {name: regions[name] for name in names}
    if names:
        first_V = regions[names[0]]
        outside = np.flatnonzero(~first_V)
        if len(outside) >= first_V.sum():
            random_V = np.zeros_like(first_V)
            random_V[
                np.random.default_rng(config.run.seed).choice(
                    outside, int(first_V.sum()), replace=False
                )
            ] = True
            found[f"random as {names[0]}"] = random_V
    return found


def made_of(config: Config) -> dict[str, Any]:
    """Everything except the ablation that images depend on; a change regenerates them."""
    tuned = finetuned_folder(config)
    settings = config.model_dump(mode="json", include={"data", "backbone", "generation"})
    contents = contents_of(settings)
    for name in contents:  # the same data under another path are the same data
        section, field = name.split(".")
        del settings[section][field]
    return {
        **settings,
        CONTENTS: contents,
        "seed": config.run.seed,
        "modality": config.interpret.modality,
        "embedding_decoders": {
            name: fingerprint_of_files(run_folder(config, name) / EMBEDDING_DECODER)
            for name in ("image", "text")
        },
        "weights": backbone_key(backbone_folder(config.backbone.path), generation_type(config)),
        "finetuned": fingerprint_of_files(tuned) if tuned is not None else "",
    }


def generate_ablated(
    config: Config,
    decoder: BrainDecoder,
    targets: Targets,
    betas: Betas,
    subject: SubjectData,
    count: int,
    things: Ablated,
    folder: Path,
) -> pd.DataFrame:
    """Generate the first images undisturbed and with each ablation, as ``folder/<name>/<id>.png``.

    Returns
    -------
    pd.DataFrame
        Columns ablated, voxels, image, pixcorr (with the seen image).
    """
    config = config.model_copy(
        update={"generation": config.generation.model_copy(update={"source": "brain"})}
    )
    made = {**made_of(config), "images": subject.image_N[:count].tolist()}
    ids_N, rows_NR = subject.image_N[:count], subject.rows_NR[:count]
    ids = ids_N.tolist()
    seen_N3HW = targets.stimuli.images(ids_N)
    embedding_decoder = (
        decoder.brain_image if config.interpret.modality == "image" else decoder.brain_text
    )
    if embedding_decoder is None:
        raise UserError("This run has no text encoder to explain: use interpret.modality=image.")
    nothing: dict[str, None] = {UNDISTURBED: None}
    rows = []
    for name, thing in {**nothing, **things}.items():
        out = folder / folder_name(name.replace("/", "_"), ())
        own = {
            **made,
            "voxels": hashlib.sha256(np.packbits(thing).tobytes()).hexdigest()
            if isinstance(thing, np.ndarray)
            else "",
        }
        note = out / "made.json"
        if not note.exists() or read_json(note) != own:
            shutil.rmtree(out, ignore_errors=True)
            write_json(note, own)
        if not all(png_path(out, image).exists() for image in ids):
            ablated_V = (
                thing
                if isinstance(thing, np.ndarray)
                else np.zeros(subject.voxels_NV.shape[1], dtype=bool)
            )
            trials = rows_NR[rows_NR >= 0]
            voxels_MV = np.array(betas.rows(trials), dtype=np.float32)
            voxels_MV[:, ablated_V] = 0
            new_NR = np.full_like(rows_NR, -1)
            new_NR[rows_NR >= 0] = np.arange(len(trials))
            with (
                ablated(embedding_decoder, thing, subject.voxels_NV, subject.number)
                if isinstance(thing, DecoderPart)
                else nullcontext()
            ):
                outputs = decode_responses(
                    config,
                    decoder.encoders,
                    Repeats(ids_N, new_NR),
                    Responses(voxels_MV, np.repeat(ids_N, (rows_NR >= 0).sum(axis=1))),
                    subject.number,
                )
            generate = image_generator(
                config, decoder, lambda: targets.image_encoder, embeddings_in(outputs)
            )
            with merged_lora(decoder.unet):
                generate_missing(
                    out,
                    ids,
                    batch_for(config, decoder),
                    generate,
                    Workers(config),
                    f"generating {name}" if thing is None else f"generating without {name}",
                )
            for path in out.glob("*.safetensors"):  # routing records are not needed here
                path.unlink()
        generated_N3HW = np.stack(
            [
                np.asarray(open_picture(png_path(out, image)), dtype=np.float32) / 255
                for image in ids
            ]
        )
        scores_N = pixel_correlation(seen_N3HW, generated_N3HW.transpose(0, 3, 1, 2))
        voxels = int(thing.sum()) if isinstance(thing, np.ndarray) else 0
        rows += [
            {"ablated": name, "voxels": voxels, "image": image, "pixcorr": value}
            for image, value in zip(ids, scores_N)
        ]
    return pd.DataFrame(rows)
