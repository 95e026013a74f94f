"""Where things lie in the folder of a run, as stages, report and study agree on it.

Importing this loads no torch.
"""

from __future__ import annotations

from pathlib import Path

from braingen.config import Config

NAMED_IN = (Path("train_logs"), Path("runs"))
"""Where an encoder is looked for by the name of its run: as published, and ours."""
READER = "reader"
"""Folder of the best checkpoint in a training run."""
SOURCES = ("brain", "random", "ceiling")
"""What pictures are drawn from: brain activity, random voxels, the true embeddings."""
EMBEDDINGS = "embeddings.safetensors"
INDEX = "index.json"
"""Beside the pictures: what they were drawn from, and which there are."""
ROUTING = "routing.safetensors"
"""Beside them: how levels and experts were mixed, per picture and step; only where there are routers."""


def run_folder(config: Config, modality: str) -> Path:
    """Where the image or text run of a configuration lies: run.image and run.text, or beside each other in the run's folder.

    run.image and run.text may be the folder of the encoder, the ``--model_name`` that it was trained under, or that name in
    ``train_logs/`` or ``runs/``: the first of these that holds a run.
    """
    named = config.run.image if modality == "image" else config.run.text
    if named is None:
        return config.run.folder / modality
    places = [named, *(parent / named for parent in NAMED_IN if len(named.parts) == 1)]
    folders = [folder for place in places for folder in (place, place / modality)]
    trained = (folder for folder in folders if (folder / READER).is_dir() or (folder / "config.yaml").is_file())
    return next(trained, named)


def trained_models(modality: str) -> list[str]:
    """Names, for ``--model_name_image`` and ``--model_name_text``, of the trained encoders below the current folder."""
    found = {folder.parent.parent for parent in (Path(), *NAMED_IN) for folder in parent.glob(f"*/{modality}/{READER}")}
    return sorted(folder.name for folder in found)


def tuning_folder(config: Config) -> Path:
    """Where the fine-tuning of a configuration lies: run.finetune, or in the run's folder."""
    return config.run.finetune or config.run.folder / "finetune"


def drawn_in(run: Path, source: str) -> Path:
    """Where a run's pictures of a source lie."""
    return run / "reconstructions" / source


def drawn_folder(config: Config, source: str | None = None) -> Path:
    """Where the pictures of a source lie, by default the configured one; those of a single level beside them."""
    level = "" if config.sampler.level is None else f"_level{config.sampler.level}"
    return drawn_in(config.run.folder, f"{source or config.sampler.source}{level}")


def random_folders(config: Config) -> list[Path]:
    """Where the pictures of every draw of random voxels lie: ``random``, ``random_2``, ..."""
    first = drawn_folder(config, "random")
    return [first, *(first.with_name(f"{first.name}_{draw}") for draw in range(2, config.sampler.random_draws + 1))]
