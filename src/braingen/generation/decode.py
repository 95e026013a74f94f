"""`braingen decode`: decode embeddings from a file of voxels, and generate images from them."""

from __future__ import annotations

from collections.abc import Callable
import hashlib
from pathlib import Path
import time

from safetensors.torch import save_file
import torch

from braingen.config import Config
from braingen.config.shipped import backbone_folder
from braingen.data.voxel_file import SUFFIXES, load_responses, voxel_file, with_folders_statistics
from braingen.encoders.trained import modalities
from braingen.generation.brain_encoders import BrainEncoders
from braingen.generation.by_encoding_model import uses_encoding_model
from braingen.generation.pipeline import BrainDecoder
from braingen.generation.reconstruct import (
    assemble,
    check_generation,
    decode_responses,
    generate_images,
    load_encoders,
    write_index,
)
from braingen.generation.resumable import output_files
from braingen.generation.speed import prepare_unet
from braingen.generation.storage import decoder_folder
from braingen.generation.trained_modules import finetuned_folder
from braingen.pretrained.hub import backbone_key
from braingen.pretrained.sdxl import scheduler_named
from braingen.runtime.data_layout import Layout
from braingen.runtime.device import device_of
from braingen.runtime.distributed import Workers, complete, shared_run
from braingen.runtime.errors import UserError
from braingen.runtime.files import replaced_path
from braingen.runtime.fingerprints import fingerprint_of_files
from braingen.runtime.paths import EMBEDDING_DECODER, EMBEDDINGS, ROUTING, one_subject, run_folder
from braingen.runtime.precision import generation_type
from braingen.runtime.untrusted import folder_name
from braingen.targets.clip_image import CLIPImageEncoder
from braingen.targets.tables import Targets


def decoded_folder(config: Config) -> Path:
    """Return the output folder of `braingen decode`."""
    if config.decode.output:
        return Path(config.decode.output).expanduser()
    return config.run.folder / "decoded" / folder_name(config.decode.voxels, SUFFIXES)


def read_encoders(config: Config, targets: Targets | None, whole: bool) -> BrainEncoders:
    """Load the encoders of the decoder in the settings, or of the run.

    Parameters
    ----------
    targets : Targets | None
        Of the run's data; None with a saved decoder.
    whole : bool
        Whether they decode (:func:`braingen.generation.reconstruct.load_encoders`).
    """
    if targets is not None:
        return load_encoders(config, targets, whole, low_level=whole)
    found = BrainEncoders.of_folder(decoder_folder(config.decode.decoder), whole)
    return found.to(device_of(config))


def load_decoder(config: Config, targets: Targets | None, encoders: BrainEncoders) -> BrainDecoder:
    """Load the backbone to released encoders: that of the saved decoder, or that in the settings.

    Parameters
    ----------
    targets, encoders : Targets | None, BrainEncoders
        As for :func:`read_encoders`, and what it returned.
    """
    if targets is not None:
        return assemble(config, targets, encoders)
    there = {
        "brain_image": encoders.image,
        "brain_text": encoders.text,
        "brain_low_level": encoders.low_level,
    }
    dtype = generation_type(config)
    decoder = BrainDecoder.from_pretrained(config.decode.decoder, torch_dtype=dtype, **there)
    decoder.register_modules(
        scheduler=scheduler_named(config.generation.scheduler, decoder.scheduler)
    )
    decoder = decoder.to(device_of(config), dtype)
    prepare_unet(decoder.unet, config)
    decoder.set_progress_bar_config(disable=True)
    return decoder


def _weights(config: Config) -> dict[str, str]:
    """Fingerprints of all weights that determine embeddings and images."""
    if config.decode.decoder:
        return {"decoder": fingerprint_of_files(decoder_folder(config.decode.decoder))}
    found = {
        modality: fingerprint_of_files(run_folder(config, modality) / EMBEDDING_DECODER)
        for modality in modalities(config)
    }
    tuned = finetuned_folder(config)
    return found | {
        "backbone": backbone_key(backbone_folder(config.backbone.path), generation_type(config)),
        "finetuned": fingerprint_of_files(tuned) if tuned is not None else "",
    }


def _image_encoder(config: Config) -> Callable[[], CLIPImageEncoder]:
    path = config.backbone.image_encoder or backbone_folder(config.backbone.path)
    loaded: list[CLIPImageEncoder] = []

    def load() -> CLIPImageEncoder:
        if not loaded:
            encoder = CLIPImageEncoder.from_pretrained(
                path,
                output=config.backbone.image_output,
                projected=config.backbone.image_projected,
                dtype=torch.float32,
            )
            loaded.append(encoder.to(device_of(config)))
        return loaded[0]

    return load


def decode(config: Config) -> Path:
    """Decode a file of voxels and generate images; rows of one image id are its presentations.

    Returns
    -------
    folder : Path
        ``embeddings.safetensors``, ``<image id>.png`` for every image, ``index.json``, and
        ``routing.safetensors`` with routers.

    Raises
    ------
    UserError
        When the file, the decoder or the subject is missing, or they do not fit each other; nothing
        is written then.
    """
    if not config.decode.voxels:
        raise UserError(
            "There is nothing to decode: name a file of voxels, --voxels FILE (.npy, .npz, .h5,"
            " .nii.gz, .func.gii, GLMsingle's TYPED_*.hdf5, ...)."
        )
    if not (config.generation.use_image or config.generation.use_text):
        raise UserError(
            "use_image and use_text are both off, so there is no condition to generate from: leave"
            " one of them on."
        )
    if config.generation.source != "brain":
        raise UserError(
            f"generation.source = {config.generation.source} has no meaning for a file of voxels:"
            " leave it at brain."
        )
    if uses_encoding_model(config):
        raise UserError(
            "generation.decode_by and generation.choose_by have no encoding model for a file of"
            " voxels: leave them out, or use braingen reconstruct."
        )
    if config.decode.generate and not config.decode.decoder:
        check_generation(config)
    voxel_file(config.decode.voxels)  # reports a wrong path before the slow loading of the decoder
    one_subject(config, "braingen decode")
    subject = config.data.subjects[0]
    folder, workers = decoded_folder(config), Workers(config)
    decodes = workers.main and not (folder / EMBEDDINGS).exists()
    targets = None if config.decode.decoder else Targets(config)
    encoders = read_encoders(config, targets, whole=decodes)
    layout, as_they_are = Layout.of(config.data.root), config.decode.zscore == "none"
    given = load_responses(
        config.decode.voxels, subject, encoders.voxel_count(subject), layout, as_they_are
    )
    if not as_they_are:
        given = with_folders_statistics(given, layout, subject)
    repeats = given.grouped()
    if config.generation.num_images:
        count = config.generation.num_images
        repeats = repeats._replace(image_N=repeats.image_N[:count], rows_NR=repeats.rows_NR[:count])
    settings = config.model_dump(
        mode="json",
        include={
            "backbone": True,
            "generation": True,
            "decode": {"generate"},
            "data": {"subjects"},
        },
    )
    settings |= {"seed": config.run.seed, "weights": _weights(config)}
    settings["unet_type"] = str(generation_type(config)).removeprefix("torch.")
    settings["voxels"] = hashlib.sha256(
        given.voxels_NV.tobytes() + given.image_N.tobytes()
    ).hexdigest()[:16]
    with shared_run(
        workers, folder, settings, {"run": config.run.seed}, may_change=["generation.batch_size"]
    ) as run:
        if complete(
            workers, run, lambda: output_files(folder, run.summary, config.decode.generate)
        ):
            return folder
        started = time.monotonic()
        if decodes:
            with replaced_path(folder / EMBEDDINGS) as temporary:
                decoded = decode_responses(config, encoders, repeats, given, subject)
                save_file({name: rows.contiguous() for name, rows in decoded.items()}, temporary)
            encoders.release()  # before the backbone is loaded
        workers.wait()
        if config.decode.generate:
            decoder = load_decoder(config, targets, encoders)
            generate_images(config, decoder, _image_encoder(config), folder, workers)
        if workers.main:
            if config.decode.generate:
                write_index(folder, repeats.image_N.tolist())
            seconds = round(time.monotonic() - started, 1)
            run.mark_finished(
                {
                    "images": len(repeats.image_N),
                    "routing": (folder / ROUTING).exists(),
                    "seconds": seconds,
                }
            )
        workers.wait()
    return folder
