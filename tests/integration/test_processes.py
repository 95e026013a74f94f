"""Training in two processes on this CPU: the gradients of one process with the global batch, and
what it learns.
"""

from __future__ import annotations

import json
from pathlib import Path
import shutil

from integration.processes import shared
from integration.shared_batch import step_in_one, step_in_two
import pytest
from safetensors.torch import load_file
from unit.fake_backbone import write_fake_backbone

from braingen.cli import main
from braingen.runtime.state import load_tree, save_tree
from braingen.training import encoder as train

SMALL = [
    "encoder.hidden_dim=32",
    "encoder.n_blocks=1",
    "encoder.dropout=0",
    "prior.depth=1",
    "training.num_epochs=2",
    "run.device=cpu",
]
SMALL += ["run.tracker=none", "--multi_subject", "1,2"]
ONE_PASS = [
    "loss_image.mixup_pct=0",
    "prior.use_prior=false",
    "prior.depth=default",
    "loss_image.mse_scale=1",
]
"""Nothing is drawn by chance, so that the number of processes is all that differs."""


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("processes")
    size = [
        "simulation.num_subjects=2",
        "simulation.num_sessions=2",
        "simulation.trials_per_session=60",
        "simulation.num_voxels=100",
    ]
    assert (
        main(["simulate", "--root", str(folder / "data"), *size, "simulation.num_test_images=6"])
        == 0
    )
    backbone = write_fake_backbone(folder / "fake", with_clip=True)
    return ["--root", str(folder / "data"), "--path", str(backbone), *SMALL]


@pytest.mark.long
@pytest.mark.parametrize("progress", [0.1, 0.9], ids=["MixCo", "SoftCLIP"])
def test_two_processes_have_the_gradients_of_one_with_the_global_batch(
    words, tmp_path, monkeypatch, progress
):
    """Two subjects, all terms of the loss, dropout off."""
    words = [
        *words,
        "loss_image.mse_scale=1",
        "loss_image.deep_supervision_weight=1",
        "training.batch_size=12",
    ]
    expected = step_in_one(words, progress, monkeypatch)
    shared(step_in_two, 2, words, str(tmp_path), progress)
    for rank in range(2):
        found = load_file(tmp_path / f"{rank}.safetensors")
        assert found.keys() == expected.keys()
        assert all(gradient.norm() > 0 for gradient in expected.values())
        off = {
            name: ((found[name] - gradient).norm() / gradient.norm()).item()
            for name, gradient in expected.items()
        }
        assert {name: error for name, error in off.items() if error > 1e-3} == {}


def metrics(folder: Path) -> list[dict[str, float]]:
    return [
        json.loads(line) for line in (folder / "image" / "metrics.jsonl").read_text().splitlines()
    ]


@pytest.mark.long
def test_two_processes_learn_what_one_learns_and_one_of_them_writes(words, tmp_path):
    words = [*words, *ONE_PASS]
    assert (
        main(
            ["train", "image", "--folder", str(tmp_path / "one"), *words, "training.batch_size=24"]
        )
        == 0
    )
    shared(
        main,
        2,
        ["train", "image", "--folder", str(tmp_path / "two"), *words, "training.batch_size=12"],
    )
    one, two = (metrics(tmp_path / name) for name in ("one", "two"))
    assert [record["step"] for record in one] == [record["step"] for record in two]
    for before, after in zip(
        one, two
    ):  # the contrastive loss and the held-out images are the same in every process
        for name in ("train/clip", "validation/cosine"):
            assert after[name] == pytest.approx(before[name], rel=2e-3, abs=2e-4)
    assert (tmp_path / "two" / "image" / "finished").is_file() and not (
        tmp_path / "two" / "image" / "state.safetensors"
    ).exists()
    # started again, it finds that it is finished; and a mistake is told once and ends both
    shared(
        main,
        2,
        ["train", "image", "--folder", str(tmp_path / "two"), *words, "training.batch_size=12"],
    )
    shared(
        main,
        2,
        ["train", "image", "--folder", str(tmp_path / "two"), *words, "training.batch_size=10"],
        codes=[2, 2],
    )


@pytest.mark.long
def test_steps_put_together_are_a_larger_batch(words, tmp_path):
    """Without a contrastive loss, which sees one step at a time."""
    words = [*words, *ONE_PASS, "loss_image.clip_scale=0", "training.num_epochs=1"]
    alone = ["training.batch_size=24"]
    together = ["training.batch_size=12", "training.gradient_accumulation_steps=2"]
    for name, more in (("large", alone), ("together", together)):
        assert main(["train", "image", "--folder", str(tmp_path / name), *words, *more]) == 0
    large, summed = (metrics(tmp_path / name)[0] for name in ("large", "together"))
    assert summed["step"] == 2 * large["step"]
    assert summed["validation/cosine"] == pytest.approx(large["validation/cosine"], abs=2e-3)


@pytest.mark.long
def test_another_number_of_processes_does_not_go_on_with_the_state_of_some(
    words, tmp_path, monkeypatch, capsys
):
    calls = []

    def stopped(*arguments):
        calls.append(0)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    real = train.step
    monkeypatch.setattr(train, "step", stopped)
    typed = ["train", "image", "--folder", str(tmp_path), *words, "run.save_minutes=1e-9"]
    monkeypatch.setattr("braingen.training.checkpoints.LEAST_PAUSE", 0)
    assert main(typed) == 130
    path = tmp_path / "image" / "state.safetensors"
    state = load_tree(path)
    kept = shutil.copy(path, tmp_path / "kept")
    save_tree(path, {**state, "random": state["random"] * 2})
    monkeypatch.setattr(train, "step", real)
    capsys.readouterr()
    assert main(typed) == 2
    assert "was trained by 2 processes so far and would go on with 1" in capsys.readouterr().err
    shutil.copy(kept, path)
    assert main(typed) == 0
