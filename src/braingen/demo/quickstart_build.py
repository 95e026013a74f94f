"""Make the decoder, the test brains and the scores that `braingen quickstart` ships with: ``python
-m braingen.demo.quickstart_build``.

A subject of the demo's kind is simulated under a seed of its own, both encoders are trained by
stage 1 as it is, smaller than the demo's, the test images are generated and scored; encoders in
half precision, a dozen test brains and the scores are written. Every stage continues where it was
interrupted.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.torch import save_file
import torch

from braingen.config import Config, load_config
from braingen.data.betas import Betas
from braingen.data.captions import load_captions
from braingen.data.image_grid import seen_pictures
from braingen.data.stimuli import Stimuli
from braingen.data.trials import group_repeats, test_trials
from braingen.demo.quickstart import BRAINS, CARD, SEEN, SHIPPED, SUBJECT
from braingen.encoders.embedding_decoder import EmbeddingDecoder
from braingen.evaluation.evaluate import evaluate
from braingen.generation.reconstruct import reconstruct
from braingen.runtime.data_layout import Layout
from braingen.runtime.files import replaced_folder, write_json
from braingen.runtime.paths import EMBEDDING_DECODER, run_folder
from braingen.runtime.text_files import read_json
from braingen.simulation.dataset import simulate
from braingen.training.encoder import train

SEED = 100
"""Of the simulated subject and of the training; the demo's subject has seed 0."""
BRAIN_COUNT = 12
SIDE = 128
"""Of the shipped seen pictures, in pixels: what the tiny backbones generate."""
CHANGES = {
    "encoder.hidden_dim": "256",
    "prior.depth": "2",
    "training.num_epochs": "40",
    "training.max_lr": "1e-3",
    "generation.finetuned": "no",
    "run.seed": str(SEED),
}
"""What differs from the demo's configuration: smaller encoders, trained for longer, no
fine-tuning.
"""
KEPT = ("value", "low", "high", "random", "oracle", "ridge", "chance", "n", "pool")


def build(config: Config, assets: Path) -> None:
    """Run the stages and write what is shipped.

    Parameters
    ----------
    config : Config
        The demo's with CHANGES.
    assets : Path
        Written anew whole; a README.md in it is kept.
    """
    simulate(config)
    for modality in ("image", "text"):
        train(config, modality)
    for source in ("brain", "random", "oracle"):
        changed = config.generation.model_copy(update={"source": source})
        reconstruct(config.model_copy(update={"generation": changed}))
    scores = read_json(evaluate(config))
    card = (assets / "README.md").read_bytes() if (assets / "README.md").exists() else None
    with replaced_folder(assets) as folder:
        write_encoders(config, folder)
        write_brains(config, folder, scores)
        if card is not None:
            (folder / "README.md").write_bytes(card)


def write_encoders(config: Config, folder: Path) -> None:
    """Write the best checkpoints of both encoders in half precision."""
    for modality in ("image", "text"):
        EmbeddingDecoder.from_pretrained(
            run_folder(config, modality) / EMBEDDING_DECODER
        ).half().save_pretrained(folder / modality)
        settings = read_json(folder / modality / "config.json")
        settings.pop("_name_or_path", None)  # where it was trained is nobody's business
        write_json(folder / modality / "config.json", settings)


def write_brains(config: Config, folder: Path, scores: dict) -> None:
    """Write the first test brains, single presentations in half precision, with what was seen, and
    the scores of all test images.
    """
    layout = Layout.of(config.data.root)
    repeats, betas = group_repeats(test_trials(layout, SUBJECT)), Betas.of(layout, SUBJECT)
    rows_BR, ids = repeats.rows_NR[:BRAIN_COUNT], repeats.image_N[:BRAIN_COUNT].tolist()
    voxels = np.stack([betas.rows(rows) for rows in rows_BR])
    save_file(
        {"ids": torch.tensor(ids), "voxels": torch.from_numpy(voxels).half()}, folder / BRAINS
    )
    (folder / SEEN).mkdir()
    for image, picture in seen_pictures(Stimuli(layout), ids):
        small = picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        small.save(folder / SEEN / f"{image:06d}.png", optimize=True)
    captions = load_captions(layout)
    kept = {
        name: {key: score.get(key) for key in KEPT}
        for name, score in scores.items()
        if isinstance(score, dict)
    }
    write_json(
        folder / CARD,
        {
            "seed": SEED,
            "captions": {str(image): captions[image][0] for image in ids},
            "scores": kept,
        },
    )


def main() -> None:
    """Read the command line and build."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--config", default="simulated", help="the demo's configuration: a name or a file"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("build/quickstart"),
        help="data, checkpoints and pictures",
    )
    parser.add_argument(
        "--assets", type=Path, default=SHIPPED, help="where the finished decoder goes"
    )
    given = parser.parse_args()
    places = {"data.root": str(given.folder / "data"), "run.folder": str(given.folder / "run")}
    build(load_config(given.config, {**CHANGES, **places}), given.assets)


if __name__ == "__main__":
    main()
