"""Paths inside a run folder, shared by stages, report and human evaluation.

Importing this loads no torch.
"""

from __future__ import annotations

from pathlib import Path
import re
import shlex

from braingen.config import Config
from braingen.runtime.errors import UserError
from braingen.runtime.text_files import read_yaml

NAMED_IN = (Path("train_logs"), Path("runs"))
"""Folders searched for an encoder by the name of its run: the published one, and ours."""
EMBEDDING_DECODER = "embedding_decoder"
"""Folder of the best checkpoint in a training run."""
LOW_LEVEL, LATENT_ENCODER = "low_level", "latent_encoder"
"""Folder of the low-level path in a run, and of its best checkpoint there."""
SOURCES = ("brain", "random", "oracle", LOW_LEVEL)
"""Sources of images: brain activity, random voxels, true embeddings, the low-level path alone."""
EMBEDDINGS = "embeddings.safetensors"
INDEX = "index.json"
"""Files beside the images: their embeddings and their index."""
ROUTING = "routing.safetensors"
"""Mixing weights of levels and experts per image and step; only with routers."""


def run_folder(config: Config, modality: str) -> Path:
    """Return the image or text run of a configuration: run.image or run.text, else in its folder.

    run.image and run.text may be the folder of the encoder, its ``--model_name``, or that name in
    ``train_logs/`` or ``runs/``: the first one that holds a run.
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
    """List trained encoders below the current folder, for ``--model_name_image`` and ``_text``."""
    found = {
        folder.parent.parent
        for parent in (Path(), *NAMED_IN)
        for folder in parent.glob(f"*/{modality}/{EMBEDDING_DECODER}")
    }
    return sorted(folder.name for folder in found)


def encoding_folder(config: Config) -> Path:
    """Return the run of the encoding models: run.encoding, else in the run folder."""
    return config.run.encoding or config.run.folder / "encoding"


def tuning_folder(config: Config) -> Path:
    """Return the fine-tuning run: run.finetune, else in the run folder."""
    return config.run.finetune or config.run.folder / "finetune"


def low_level_folder(config: Config) -> Path:
    """Return the run of the low-level path: run.low_level, else in the run folder."""
    return config.run.low_level or config.run.folder / LOW_LEVEL


def subject_folder(run: Path, subject: int) -> Path:
    """Return a subject's folder for images, scores and page in a run of several: ``subj01`` ..."""
    return run / f"subj{subject:02d}"


def typed_run(run: Path) -> str:
    """Return the flags that name a run folder, or a subject's folder inside it."""
    of_subject = re.fullmatch(r"subj(\d\d+)", run.name)
    if of_subject and any((run.parent / modality).is_dir() for modality in ("image", "text")):
        return f"--folder {run.parent} --subj {int(of_subject[1])}"
    return f"--folder {run}"


def typed_words(run: Path) -> str:
    """Return a run folder as it is typed after a command that takes it as a word, with the subject
    where it is a subject's folder inside a run.
    """
    of_subject = re.fullmatch(r"subj(\d\d+)", run.name)
    if of_subject and any((run.parent / modality).is_dir() for modality in ("image", "text")):
        return f"{shlex.quote(str(run.parent))} --subj {int(of_subject[1])}"
    return shlex.quote(str(run))


def subject_configs(config: Config) -> list[Config]:
    """Return one configuration per subject, with encoders and fine-tuning of the whole run.

    With several subjects, or one of several that the run's encoder was trained on, each has its own
    folder (:func:`subject_folder`); a run of one subject has no such folders.
    """
    if len(config.data.subjects) == 1 and not _trained_on_several(config):
        return [config]
    places = {
        "image": run_folder(config, "image"),
        "text": run_folder(config, "text"),
        "finetune": tuning_folder(config),
        "encoding": encoding_folder(config),
        "low_level": low_level_folder(config),
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
    """Return the configuration of the only subject.

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
    """Whether the encoders in the run folder were trained on several subjects."""
    for modality, named in (("image", config.run.image), ("text", config.run.text)):
        path = config.run.folder / modality / "config.yaml"
        if named is None and path.is_file():
            subjects = (read_yaml(path).get("data") or {}).get("subjects") or []
            return len(subjects) > 1
    return False


def generated_in(run: Path, source: str) -> Path:
    """Return the folder of a run's images of a source."""
    return run / "reconstructions" / source


def generated_folder(config: Config, source: str | None = None) -> Path:
    """Return the folder of a source's images, by default the configured source (and level)."""
    level = "" if config.generation.level is None else f"_level{config.generation.level}"
    return generated_in(config.run.folder, f"{source or config.generation.source}{level}")


def random_folders(config: Config) -> list[Path]:
    """Return the folders of all samples of random voxels: ``random``, ``random_2``, ..."""
    first = generated_folder(config, "random")
    return [
        first,
        *(
            first.with_name(f"{first.name}_{draw}")
            for draw in range(2, config.generation.random_draws + 1)
        ),
    ]
