"""Published checkpoints as run folders: MindEye2's ``last.pth``, MoRE-Brain's encoders, priors,
diffusion routers and LoRA.

The architecture is read off names and shapes. Whatever the file holds is either loaded, or named:
as missing, unexpected, of another shape, derived from the settings, or not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
import re
from typing import Any, NamedTuple

from safetensors.torch import save_file
import torch
from torch import Tensor

from braingen.compat.encoder_settings import EncoderSettings, encoder_settings
from braingen.compat.keys import LoadReport, load_published
from braingen.compat.prior import network_state, published_name, settings_of
from braingen.compat.router import read_published_router
from braingen.config import Config
from braingen.data.nsd import subject_of_width
from braingen.encoders.embedding_decoder import EmbeddingDecoder
from braingen.generation.lora import LORA_FILE
from braingen.generation.lora_files import left_out, read_lora, unet_on_meta
from braingen.generation.trained_modules import BEST, ORDER, ROUTERS
from braingen.pretrained.sdxl import unet_config
from braingen.routing.diffuse_router import DiffuseRouter
from braingen.runtime.contents import contents_of
from braingen.runtime.errors import UserError
from braingen.runtime.files import replaced_path, write_json
from braingen.runtime.fingerprints import fingerprint_of_files
from braingen.runtime.paths import EMBEDDING_DECODER, run_folder, tuning_folder
from braingen.runtime.run_folder import CONTENTS, Run
from braingen.runtime.weights import read_entries, read_tensors, refuse_not_finite

REPORT = "import.json"
"""What became of every entry of the file, in the run folder."""
WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+")
"""Prefixes of models saved inside DistributedDataParallel or torch.compile."""
SHOWN = 6
"""Names per kind in an error message; import.json and the printed list hold all."""


class Checkpoint(NamedTuple):
    """A published file, sorted."""

    encoder: dict[str, Tensor]
    prior: dict[str, Tensor]
    """Empty where the file holds none."""
    not_read: list[str]
    """Entries that are no weights of encoder or prior: optimizer, schedule, epoch, curves."""


class Imported(NamedTuple):
    """What came of encoder and prior."""

    embedding_decoder: EmbeddingDecoder
    report: LoadReport
    """Of both, under published names."""
    derived: list[str]
    """Entries that follow from the settings and are computed here (noise tables, rotary
    frequencies).
    """


def import_checkpoint(config: Config, what: str) -> Path:
    """Turn published weights into a run folder that later stages read.

    Parameters
    ----------
    what : str
        'image' or 'text', an encoder with its prior; 'finetune', diffusion routers and LoRA.

    Returns
    -------
    Path
        The run folder, with ``import.json``.
    """
    return (
        import_finetuning(config) if what == "finetune" else import_embedding_decoder(config, what)
    )


def read_weights(path: Path) -> dict[str, Any]:
    """Entries of a ``.safetensors``, ``.pth``, ``.pt``, ``.ckpt`` or ``.bin`` file, without running
    anything in it.

    Raises
    ------
    UserError
        If it is missing, no such file, or holds Python objects beside tensors and plain values.
    """
    keep = "{k: d[k] for k in ('model_state_dict', 'prior_state_dict') if k in d}"
    entries = read_entries(
        path,
        "give the checkpoint's path, for instance --checkpoint train_logs/final_subj01/last.pth",
        keep,
    )
    if not isinstance(entries, Mapping) or not entries:
        raise UserError(
            f"{path} holds a {type(entries).__name__}; expected names with tensors, or a dictionary"
            " with model_state_dict."
        )
    return dict(entries)


def sorted_entries(entries: Mapping[str, Any]) -> Checkpoint:
    """Find encoder and prior in a file: MindEye2 keeps both in model_state_dict, MoRE-Brain the
    prior in prior_state_dict.
    """
    whole = "model_state_dict" in entries or "prior_state_dict" in entries
    not_read = (
        [key for key in entries if key not in ("model_state_dict", "prior_state_dict")]
        if whole
        else []
    )
    encoder, prior = {}, {}
    for source in (
        (entries.get("model_state_dict", {}), entries.get("prior_state_dict", {}))
        if whole
        else (entries,)
    ):
        if not isinstance(source, Mapping):
            raise UserError(
                f"The checkpoint's model_state_dict is a {type(source).__name__}; names with"
                " tensors were expected."
            )
        for key, value in source.items():
            bare = WRAPPERS.sub("", str(key))
            if not isinstance(value, Tensor):
                not_read.append(key)
            elif bare.startswith(("diffusion_prior.", "prior.")):
                prior[bare] = value
            else:
                encoder[bare] = value
    return Checkpoint(encoder, prior, not_read)


def assemble(config: Config, checkpoint: Checkpoint, settings: EncoderSettings) -> Imported:
    """Build the embedding decoder that a checkpoint was made for, and load it.

    Shapes are compared on the meta device first, so that nothing is allocated for a file that does
    not fit.

    Raises
    ------
    UserError
        If weights are missing, unexpected or of another shape and ``published.partial`` is off.
    """
    if "routing" in settings.arguments:
        settings.arguments["token_order"] = {"gpu": "gpu", "cpu": "native"}[
            config.published.trained_on
        ]
    prior = settings_of(checkpoint.prior) if checkpoint.prior else None
    arguments = {
        "encoder_class": settings.encoder_class,
        "encoder_config": settings.arguments,
        "prior_config": prior,
        "prior_use": "sample" if prior else "predict",
        "sample_steps": config.prior.sample_steps,
        "guidance_scale": config.prior.guidance_scale,
    }
    with torch.device("meta"):
        embedding_decoder = EmbeddingDecoder(**arguments)
    report, derived = _load(embedding_decoder, checkpoint)
    if not report.is_complete:
        _tell(report)
        if not config.published.partial:
            kinds = {
                "missing": report.missing,
                "unexpected": report.unexpected,
                "of another shape": report.other_shape,
            }
            found = "; ".join(
                f"{len(names)} {kind} ({', '.join(names[:SHOWN])})"
                for kind, names in kinds.items()
                if names
            )
            raise UserError(
                f"The checkpoint does not fit {settings.encoder_class} as its shapes describe it:"
                f" {found}. All are listed above; --partial imports what fits, and leaves the rest"
                " at its random initial values."
            )
        torch.manual_seed(config.run.seed)
        embedding_decoder = EmbeddingDecoder(**arguments)
    else:
        embedding_decoder = embedding_decoder.to_empty(device="cpu")
        # published encoders and priors work on embeddings as they are
        embedding_decoder.mean_TD.zero_()
        embedding_decoder.spread.fill_(1)
    _load(embedding_decoder, checkpoint)
    return Imported(embedding_decoder.eval(), report, derived)


def _load(
    embedding_decoder: EmbeddingDecoder, checkpoint: Checkpoint
) -> tuple[LoadReport, list[str]]:
    """Copy what fits; on the meta device this only compares."""
    report = load_published(embedding_decoder.encoder, checkpoint.encoder)
    if embedding_decoder.prior is None:
        return report, []
    found = network_state(checkpoint.prior)
    parameters = dict(embedding_decoder.prior.network.named_parameters())
    other_shape = []
    with torch.no_grad():
        for name in parameters.keys() & found.state.keys():
            if parameters[name].shape == found.state[name].shape:
                parameters[name].copy_(found.state[name])
            else:
                other_shape.append(
                    f"prior {published_name(name)}: {tuple(found.state[name].shape)} instead of"
                    f" {tuple(parameters[name].shape)}"
                )
    missing = [f"prior {published_name(name)}" for name in parameters.keys() - found.state.keys()]
    return (
        LoadReport(
            missing=report.missing + sorted(missing),
            unexpected=report.unexpected + sorted(found.unknown),
            other_shape=report.other_shape + sorted(other_shape),
        ),
        found.derived,
    )


def _tell(report: LoadReport) -> None:
    for kind, names in zip(("missing", "unexpected", "of another shape"), report):
        for name in names:
            print(f"{kind}: {name}")


def import_embedding_decoder(config: Config, modality: str) -> Path:
    """An encoder, and its prior where the file holds one, as a finished run of ``braingen
    train``.
    """
    path = config.published.checkpoint
    checkpoint = sorted_entries(read_weights(path))
    refuse_not_finite(checkpoint.encoder | checkpoint.prior, path)
    settings = encoder_settings(checkpoint.encoder, config.data.subjects, subject_of_width)
    imported = assemble(config, checkpoint, settings)
    kept = {
        "published": {
            **config.model_dump(mode="json")["published"],
            "fingerprint": fingerprint_of_files(path),
        },
        "encoder": {"model": settings.encoder_class, **settings.arguments},
        "prior": (
            None
            if imported.embedding_decoder.prior is None
            else dict(imported.embedding_decoder.config.prior_config)
        ),
    }
    folder = run_folder(config, modality)
    with Run.start(
        folder,
        {**kept, "seed": config.run.seed, CONTENTS: contents_of(kept)},
        {"run": config.run.seed},
    ) as run:
        if run.finished and (folder / EMBEDDING_DECODER).is_dir():
            return folder
        with run.replace(EMBEDDING_DECODER) as temporary:
            imported.embedding_decoder.save_pretrained(temporary)
        loaded = sum(parameter.numel() for parameter in imported.embedding_decoder.parameters())
        summary = {
            "checkpoint": str(path),
            **kept,
            "parameters": loaded,
            **imported.report._asdict(),
            "derived": imported.derived,
            "not_read": checkpoint.not_read,
        }
        write_json(folder / REPORT, summary)
        run.mark_finished({"imported": str(path), "parameters": loaded})
    subjects = ", ".join(
        f"{subject} ({count} voxels)" for subject, count in settings.arguments["subjects"].items()
    )
    prior = "with its prior" if checkpoint.prior else "no prior in the file"
    print(f"{settings.encoder_class} of subject {subjects}: {loaded:,} parameters, {prior}")
    print(
        f"derived: {len(imported.derived)}; not read:"
        f" {', '.join(checkpoint.not_read) or 'nothing'}; all names in {folder / REPORT}"
    )
    return folder


def import_finetuning(config: Config) -> Path:
    """Diffusion routers and LoRA of a published fine-tuning, as a finished run of ``braingen
    finetune``.
    """
    given = config.published
    files = {"image": given.router_image, "text": given.router_text}
    files = {name: path for name, path in files.items() if path != Path()}
    if not files and given.adapter == Path():
        raise UserError(
            "There is nothing to import: give --router_image, --router_text or --adapter."
        )
    counts = list(config.encoder.experts)
    routers: dict[str, DiffuseRouter] = {}
    idle: dict[str, list[str]] = {}
    for name, path in files.items():
        state = {
            WRAPPERS.sub("", key): value
            for key, value in read_tensors(path, "give the path of a diffusion router").items()
        }
        routers[name], idle[name] = read_published_router(state, counts)
    adapter = None
    if given.adapter != Path():
        settings = unet_config(config.backbone.path)
        adapter = read_lora(given.adapter, unet_on_meta(settings) if settings else None)
    used = [*files.values(), *([given.adapter] if given.adapter != Path() else [])]
    kept = {
        "published": {
            **config.model_dump(mode="json")["published"],
            "fingerprints": [fingerprint_of_files(path) for path in used],
        },
        "router": {name: dict(router.config) for name, router in routers.items()},
    }
    folder = tuning_folder(config)
    with Run.start(
        folder,
        {**kept, "seed": config.run.seed, CONTENTS: contents_of(kept)},
        {"run": config.run.seed},
    ) as run:
        if run.finished and (folder / BEST).is_dir():
            return folder
        with run.replace(BEST) as temporary:
            for name, router in routers.items():
                router.save_pretrained(temporary / ROUTERS[name])
            if adapter is not None:
                with replaced_path(temporary / LORA_FILE) as file:
                    save_file(adapter.weights, file, metadata={"format": "pt"})
            write_json(temporary / ORDER, {"prior_order": config.router.prior_order})
        write_json(folder / REPORT, {**kept, "without_influence": idle})
        run.mark_finished({"imported": [str(path) for path in used]})
    for remark in left_out(adapter) if adapter is not None else ():
        print(remark)
    for name, names in idle.items():
        print(
            f"router of the {name} embedding; without influence and left out:"
            f" {', '.join(names) or 'nothing'}"
        )
    return folder
