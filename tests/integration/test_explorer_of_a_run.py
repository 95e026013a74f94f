"""The explorer of a trained run: its settings are those that the run recorded, and its images are
the run's own.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
import pytest

from braingen.cli import main
from braingen.config import load_config
from braingen.explorer.generating import generate_image
from braingen.explorer.requests import ImageRequest
from braingen.explorer.trained import run_config, trained_run
from braingen.runtime.errors import UserError
from braingen.runtime.paths import generated_in

pytestmark = pytest.mark.slow  # left out of `make quick`

STEPS = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of tiny encoders with two reconstructed images."""
    place = tmp_path_factory.mktemp("explored")
    words = ["--config", "simulated", "--folder", str(place / "run"), "--root", str(place / "data")]
    words += ["simulation.num_sessions=1", "simulation.trials_per_session=90"]
    words += ["simulation.num_voxels=200", "--num_test_images=6", "encoder.hidden_dim=32"]
    words += ["encoder.n_blocks=1", "prior.depth=1", "training.num_epochs=1", "run.seed=3"]
    words += ["--tracker", "none", "run.device=cpu"]
    assert main(["simulate", *words]) == 0
    for modality in ("image", "text"):
        assert main(["train", modality, *words]) == 0
    more = [f"generation.steps={STEPS}", "generation.num_images=2", "generation.samples=1"]
    assert main(["reconstruct", *words, *more]) == 0
    return place / "run"


@pytest.mark.long
def test_images_are_those_of_the_run(folder):
    run = trained_run(folder, load_config(None, {"run.device": "cpu"}), 0)
    assert (
        run.generation.steps == run.generation.preview_steps == STEPS and run.generation.seed == 3
    )
    assert run.simulated and run.notes == () and len(run.images) == 6
    for each in run.images[:2]:
        with Image.open(generated_in(folder, "brain") / f"{each.image:06d}.png") as own:
            own_HW3 = np.asarray(own.convert("RGB")).astype(int)
        found = generate_image(run, ImageRequest(image=each.image))
        assert np.abs(own_HW3 - found.picture_HW3).max() <= 1  # another batch: the last bits
        assert each.caption


def test_what_is_typed_wins_over_what_was_recorded(folder, tmp_path):
    typed = load_config(None, {"generation.steps": "4", "run.seed": "9", "run.device": "cpu"})
    config = run_config(folder, typed)
    assert config.generation.steps == 4 and config.run.seed == 9 and config.run.folder == folder
    assert config.data.root == folder.parent / "data"
    assert config.generation.guidance_scale == 2.5  # of the demo, as recorded
    moved = load_config(None, {"data.root": str(tmp_path / "elsewhere"), "run.device": "cpu"})
    with pytest.raises(UserError, match="elsewhere"):
        trained_run(folder, moved, 0)
