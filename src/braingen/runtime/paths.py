"""Where things lie in the folder of a run, as stages, report and study agree on it.

Importing this loads no torch.
"""

from __future__ import annotations

from pathlib import Path
import re

from braingen.config import Config
from braingen.runtime.errors import UserError
from braingen.runtime.text_files import read_yaml

NAMED_IN = (Path("train_logs"), Path("runs"))
"""Where an encoder is looked for by the name of its run: as published, and ours."""
EMBEDDING_DECODER = "embedding_decoder"
"""Folder of the best checkpoint in a training run."""
SOURCES = ("brain", "random", "oracle")
"""What pictures are drawn from: brain activity, random voxels, the true embeddings."""
EMBEDDINGS = "embeddings.safetensors"
INDEX = "index.json"
"""Beside the pictures: what they were drawn from, and which there are."""
ROUTING = "routing.safetensors"
"""Beside them: how levels and experts were mixed, per picture and step; only where there are
routers.
"""


def run_folder(config: Config, modality: str) -> Path:
    """Where the image or text run of a configuration lies: run.image and run.text, or beside each
    other in the run's folder.

    run.image and run.text may be the folder of the encoder, the ``--model_name`` that it was
    trained under, or that name in ``train_logs/`` or ``runs/``: the first of these that holds a
    run.
    """
    named = config.run.image if modality == "image" else config.run.text
    if named is None:
        return config.run.folder / modality
    places = [named, *(parent / named for parent in NAMED_IN if len(named.parts) == 1)]
    folders = [folder for place in places for folder in (place, place / modality)]
    trained = (
        folder
        for folder in folders
        if (folder / EMBEDDING_DECODER).is_dir() or (folder / "config.yaml").is_file()
    )
    return next(trained, named)


def trained_models(modality: str) -> list[str]:
    """Names, for ``--model_name_image`` and ``--model_name_text``, of the trained encoders below
    the current folder.
    """
    found = {
        folder.parent.parent
        for parent in (Path(), *NAMED_IN)
        for folder in parent.glob(f"*/{modality}/{EMBEDDING_DECODER}")
    }
    return sorted(folder.name for folder in found)


def tuning_folder(config: Config) -> Path:
    """Where the fine-tuning of a configuration lies: run.finetune, or in the run's folder."""
    return config.run.finetune or config.run.folder / "finetune"


def subject_folder(run: Path, subject: int) -> Path:
    """Where pictures, scores and page of a subject lie in a run of several: ``subj01``, ``subj02``,
    ...
    """
    return run / f"subj{subject:02d}"


def typed_run(run: Path) -> str:
    """What is typed to name a run folder, or a subject's folder inside it."""
    of_subject = re.fullmatch(r"subj(\d\d+)", run.name)
    if of_subject and any((run.parent / modality).is_dir() for modality in ("image", "text")):
        return f"--folder {run.parent} --subj {int(of_subject[1])}"
    return f"--folder {run}"


def subject_configs(config: Config) -> list[Config]:
    """The configuration of every subject whose pictures are made or scored: one each, with encoders
    and fine-tuning of the whole run.

    With several subjects, or one of several that the run's own encoder was trained on, each has a
    folder of its own (:func:`subject_folder`); a run of one subject has no such folders.
    """
    if len(config.data.subjects) == 1 and not _trained_on_several(config):
        return [config]
    places = {
        "image": run_folder(config, "image"),
        "text": run_folder(config, "text"),
        "finetune": tuning_folder(config),
    }

    def of(subject: int) -> Config:
        run = config.run.model_copy(
            update={**places, "folder": subject_folder(config.run.folder, subject)}
        )
        return config.model_copy(
            update={"run": run, "data": config.data.model_copy(update={"subjects": (subject,)})}
        )

    return [of(subject) for subject in config.data.subjects]


def one_subject(config: Config, command: str) -> Config:
    """The configuration of the only subject, for a command that works on one.

    Raises
    ------
    UserError
        When data.subjects names several.
    """
    subjects = config.data.subjects
    if len(subjects) > 1:
        raise UserError(
            f"{command} works on one subject, and data.subjects names"
            f" {', '.join(map(str, subjects))}: choose one with --subj, for instance --subj"
            f" {subjects[0]}."
        )
    return subject_configs(config)[0]


def _trained_on_several(config: Config) -> bool:
    """Whether the encoders that lie in the run's own folder were trained on several subjects."""
    for modality, named in (("image", config.run.image), ("text", config.run.text)):
        path = config.run.folder / modality / "config.yaml"
        if named is None and path.is_file():
            subjects = (read_yaml(path).get("data") or {}).get("subjects") or []
            return len(subjects) > 1
    return False


def generated_in(run: Path, source: str) -> Path:
    """Where a run's pictures of a source lie."""
    return run / "reconstructions" / source


def generated_folder(config: Config, source: str | None = None) -> Path:
    """Where the pictures of a source lie, by default the configured one; those of a single level
    beside them.
    """
    level = "" if config.generation.level is None else f"_level{config.generation.level}"
    return generated_in(config.run.folder, f"{source or config.generation.source}{level}")


def random_folders(config: Config) -> list[Path]:
    """Where the pictures of every draw of random voxels lie: ``random``, ``random_2``, ..."""
    first = generated_folder(config, "random")
    return [
        first,
        *(
            first.with_name(f"{first.name}_{draw}")
            for draw in range(2, config.generation.random_draws + 1)
        ),
    ]
