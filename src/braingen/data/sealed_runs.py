"""Configurations at a sealed test set, and at the data that its encoders were trained on."""

from __future__ import annotations

from pathlib import Path

from braingen.config import Config
from braingen.data.sealed import is_sealed, sealed_root, training_root
from braingen.runtime.data_layout import Layout
from braingen.runtime.errors import UserError
from braingen.runtime.paths import encoding_folder, run_folder, tuning_folder
from braingen.runtime.text_files import read_json


def at_test_set(config: Config) -> Config:
    """The configuration with the data folder of the sealed set that data.test_set names.

    Encoders and fine-tuning stay those of the run; images and scores go to a folder of the run
    that has the name of the set. Without a sealed set the configuration is returned as it is.

    Raises
    ------
    UserError
        When the set was not prepared, or with other voxels than the data folder.
    """
    name = config.data.test_set
    if name == "default":
        return config
    root = sealed_root(config.data.root, name)
    if not is_sealed(Layout.of(root)):
        raise UserError(
            f"There is no sealed test set {root}: write it with `braingen prepare --scans SCANS "
            f"--data_path {config.data.root} --test_set {name}`."
        )
    for subject in config.data.subjects:
        _refuse_other_voxels(config.data.root, root, subject)
    places = {modality: run_folder(config, modality) for modality in ("image", "text")}
    places |= {"finetune": tuning_folder(config), "folder": config.run.folder / name}
    places |= {"encoding": encoding_folder(config)}
    data = config.data.model_copy(update={"root": root, "test_set": "default"})
    return config.model_copy(update={"data": data, "run": config.run.model_copy(update=places)})


def _refuse_other_voxels(root: Path, sealed: Path, subject: int) -> None:
    """Refuse a set whose voxels are others than the data folder's, as far as that is known."""
    paths = [Layout.of(each).volumes(subject) / "order.json" for each in (root, sealed)]
    if not all(path.exists() for path in paths):
        return
    orders = [read_json(path) for path in paths]
    for key in ("mask_sha256", "flattening"):
        if orders[0].get(key) != orders[1].get(key):
            raise UserError(
                f"{paths[1]} and {paths[0]} are of different voxels ({key}): remove {sealed} and "
                "prepare it with the same --mask and --order as the data folder."
            )


def at_training_data(config: Config) -> Config:
    """The configuration with the data folder that encoders were trained on."""
    root = training_root(config.data.root)
    return config.model_copy(update={"data": config.data.model_copy(update={"root": root})})


def refuse_test_set(config: Config, command: str) -> None:
    """Refuse a sealed test set in a command that trains or chooses.

    Raises
    ------
    UserError
        When data.test_set names one.
    """
    if config.data.test_set != "default":
        raise UserError(
            f"data.test_set = {config.data.test_set} is a sealed test set: braingen {command} does "
            "not take it, since nothing is trained or chosen on it; prepare, reconstruct and "
            "evaluate do."
        )
