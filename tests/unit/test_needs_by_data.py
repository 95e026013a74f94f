"""The needs of stages that grow with the data are the memory that they take, measured at small
size: peaks of the process, and weights that are held.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from unit.fake_backbone import write_fake_backbone
from unit.fake_nsd import write_fake_nsd
from unit.forking import server
from unit.test_held_weights import held
from unit.test_needs import config_of

from braingen.config import load_config
from braingen.data.stimuli import Stimuli
from braingen.diagnostics import needs_by_data
from braingen.diagnostics.needs_by_data import (
    Amounts,
    amounts_of,
    encoding_training,
    evaluating,
    low_level_training,
    ridge_bytes,
    scoring_networks,
)
from braingen.diagnostics.summary import Sizes
from braingen.encoders.latent_encoder import LatentEncoder
from braingen.encoders.ridge import fit_ridge
from braingen.encoding_model.pictures import Pictures
from braingen.encoding_model.responses import average_array
from braingen.encoding_model.train import fit_with_decoding
from braingen.evaluation import evaluate, observers
from braingen.evaluation.features import load_all, recipes
from braingen.evaluation.scored_source import scorer_of
from braingen.runtime.memory import LARGE_WEIGHTS, give_back, return_large_blocks

PEAK = Path("/proc/self/clear_refs")
measured = pytest.mark.skipif(
    sys.platform != "linux" or not PEAK.exists(), reason="reads the peak of the process from Linux"
)


def peak_of(work: Callable[..., Any], small: Sequence[Any], large: Sequence[Any]) -> int:
    """The most bytes that a process takes beyond what it had, while it does the large work.

    The process is its own: what other tests left in this one would be counted, or be used again.
    The small work comes first, for the buffers of the libraries.
    """
    context = server()
    received, sent = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(sent, work, small, large))
    process.start()
    sent.close()
    found = received.recv()
    process.join()
    return found


def _measure(
    sent: Connection, work: Callable[..., Any], small: Sequence[Any], large: Sequence[Any]
) -> None:
    def now(name: str) -> int:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

    torch.set_num_threads(1)
    work(*small)
    return_large_blocks(LARGE_WEIGHTS)  # what is freed is no longer counted
    give_back(collect=True)
    PEAK.write_text("5", encoding="utf-8")
    before = now("VmRSS")
    work(*large)
    sent.send(now("VmHWM") - before)


def sizes_for(voxels: int, width: int) -> Sizes:
    return Sizes({"1": voxels}, (1, width), (1, width), {"L": 8, "bigG": 8}, ())


# --- encoding models ------------------------------------------------------------------------------


def fit(config: Any, images: int, voxels: int, width: int, library: int) -> None:
    """Fit an encoding model to random numbers, and choose how it decodes."""
    draws = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return draws.standard_normal(shape, dtype=np.float32)

    def bands(count: int) -> dict[str, np.ndarray]:
        return {
            band: normal(count, config.encoding.feature_width) for band in config.encoding.bands
        }

    responses = average_array(normal(images, voxels), np.arange(images))
    features, embedding = bands(images), normal(images, width)
    names = tuple(range(10**6, 10**6 + library))
    pictures = Pictures(names, bands(library), normal(library, width), "a test")
    fit_with_decoding(config, responses, features, embedding, pictures, "1")


@pytest.mark.long
@measured
@pytest.mark.slow
@pytest.mark.parametrize(
    ("images", "voxels", "width", "left_out", "most", "folder", "library"),
    [(1500, 3000, 300, 400, 1000, "", 1000), (400, 3000, 300, 300, 1100, "a folder", 1500)],
)
def test_an_encoding_model_takes_what_is_counted(
    images, voxels, width, left_out, most, folder, library
):
    """Once fitting is the peak, once the library."""

    def settings(wide: int, left: int, most: int, folder: str = "") -> Any:
        given = {
            "run.device": "cpu",
            "encoding.bands": "early,late",
            "encoding.band_draws": "0",
            "encoding.feature_width": str(wide),
            "encoding.left_out_images": str(left),
            "encoding.library_size": str(most),
            "encoding.library": folder,
        }
        return load_config(None, given)

    config = settings(width, left_out, most, folder)
    small = (settings(150, 200, 300), 700, 2100, 60, 300)
    found = peak_of(fit, small, (config, images, voxels, 100, library))
    need = encoding_training(config, sizes_for(voxels, 100), Amounts(images, images), 0)
    assert 0.75 < found / need.total < 1.15, (found, need)


def test_other_people_and_a_folder_of_pictures_are_counted():
    one = load_config(None, {"run.device": "cpu"})
    sizes, amounts = sizes_for(1000, 64), Amounts(900, 2700)
    alone = encoding_training(one, sizes, amounts, 0)
    both = encoding_training(one, sizes._replace(subjects={"1": 1000, "2": 900}), amounts, 0)
    assert alone.weights["other people"] == 0 < both.weights["other people"]
    more = load_config(None, {"run.device": "cpu", "encoding.library": "a folder"})
    assert encoding_training(more, sizes, amounts, 0).total > alone.total


# --- the low-level path ---------------------------------------------------------------------------


def low_level_steps(settings: dict[str, Any], side: int, count: int) -> None:
    """Two steps of training, after mean and spread of as many latents."""
    model = LatentEncoder({1: 4000}, 4, side, **settings)
    model.set_scale(np.broadcast_to(np.float16(1), (count, 4, side, side)), np.arange(count))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for _ in range(2):
        model(torch.randn(24, 4000), 1).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@measured
@pytest.mark.slow
@pytest.mark.parametrize("images", [20, 16000])
def test_the_low_level_path_takes_what_is_counted(tmp_path, images):
    """A step, and no more with many images: mean and spread are of blocks of their latents."""
    backbone = write_fake_backbone(tmp_path / "backbone")
    more = {"resolution": "128", "hidden_dim": "1200", "n_blocks": "2"}
    config = config_of(
        backbone,
        training__batch_size="24",
        **{f"low_level__{name}": value for name, value in more.items()},
    )
    side = needs_by_data.latent_side(config, 128)
    settings = config.low_level.model_dump(exclude={"resolution", "num_epochs"})
    found = peak_of(low_level_steps, (settings, side, 20), (settings, side, images))
    need = low_level_training(config, sizes_for(4000, 64), Amounts(images, images), 0)
    assert 0.85 < found / need.total < 1.15, (found, need)


# --- evaluation -----------------------------------------------------------------------------------


def ridge_of_noise(trials: int, images: int, voxels: int, width: int) -> None:
    """Fit ridge regression to random numbers."""
    draws = np.random.default_rng(0)
    responses = draws.standard_normal((trials, voxels), dtype=np.float32)
    known, row = draws.standard_normal((images, width), dtype=np.float32), np.arange(trials)
    fit_ridge(responses, known[row % images], row % images)


@measured
@pytest.mark.slow
@pytest.mark.parametrize(
    ("trials", "images", "voxels", "width"), [(3000, 1000, 1200, 100), (4000, 1500, 2500, 200)]
)
def test_ridge_regression_takes_what_is_counted(trials, images, voxels, width):
    """In double and in single precision."""
    found = peak_of(ridge_of_noise, (1500, 500, 700, 50), (trials, images, voxels, width))
    assert 0.8 < found / ridge_bytes(trials, images, voxels, width) < 1.15


@pytest.mark.slow
def test_networks_that_score_are_counted_as_they_are_loaded(tmp_path):
    """Of two whose weights are here; the others are left out."""
    config = load_config(
        None, {"run.device": "cpu", "evaluation.feature_weights": str(tmp_path / "weights")}
    )
    assert scoring_networks(config, simulated=True) == (0, 0)
    (tmp_path / "weights").mkdir()
    names = ("effnet_b1", "swav")
    for name in names:
        recipe = recipes()[name]
        state = recipe.build().state_dict()
        if name == "swav":
            state = {key: value for key, value in state.items() if not key.startswith("fc.")}
        torch.save(state, tmp_path / "weights" / recipe.file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(needs_by_data, "published_names", lambda *_: list(names))
        count, working = scoring_networks(config, simulated=False)
    with held() as found:
        loaded, _ = load_all(names, tmp_path / "weights")
        # counters of batches are whole numbers of eight bytes
        assert found.now() == pytest.approx(4 * count, rel=0.001)
    image = torch.rand(32, 3, 256, 256)
    loaded[0].features(image[:1]), loaded[1].features(image[:1])
    assert 32 * 3 * 224**2 * 4 < working < 32 * 200e6
    assert [each.name for each in loaded] == list(names)


@pytest.mark.slow
def test_every_published_network_is_counted(monkeypatch):
    """LPIPS, which has numbers of its own beside its weights, among them."""
    config = load_config(None, {"run.device": "cpu"})
    monkeypatch.setattr(needs_by_data, "find_weights", lambda *_: None)
    found = {}
    for name in recipes():
        monkeypatch.setattr(needs_by_data, "published_names", lambda *_, name=name: [name])
        found[name] = scoring_networks(config, simulated=False)
    assert 300e6 < found["clip"][0] < 310e6  # the image tower of ViT-L/14
    assert found["dreamsim"][0] > 200e6 and found["alexnet2"][0] < found["alexnet5"][0]
    assert all(working > 10e6 for name, (_, working) in found.items() if name != "dreamsim")


@pytest.mark.slow
def test_evaluation_holds_what_is_counted_and_gives_it_back(monkeypatch, tmp_path):
    backbone = write_fake_backbone(tmp_path / "backbone", with_clip=True)
    write_fake_nsd(tmp_path / "data", subjects=[1])
    config = config_of(
        backbone, data__root=str(tmp_path / "data"), run__folder=str(tmp_path / "run")
    )
    plain = Stimuli.__init__

    def simulated(self: Stimuli, *given: Any) -> None:
        plain(self, *given)
        self.simulated = True

    monkeypatch.setattr(Stimuli, "__init__", simulated)
    monkeypatch.setattr(observers, "readouts", lambda *_: [])
    amounts = amounts_of(config)
    assert amounts == Amounts(10, 30)
    need = evaluating(config, sizes_for(41, 128), amounts, 10)
    assert set(need.weights) == {"networks", "image_encoder", "text_encoder_2"}
    with held() as found:
        scorer = scorer_of(config, (0, 1, 2, 3))
        assert scorer.networks
        assert found.now() == pytest.approx(sum(need.weights.values()), rel=0.02)
        del scorer
        scorer_of.cache_clear()
        give_back(collect=True)
        assert found.now() == 0
    large = evaluating(config, sizes_for(41, 128), amounts, 10**9)
    assert large.weights == {"encoder": 4 * 10**9}  # alone, when the networks are gone


def test_an_evaluation_gives_its_networks_back_before_it_decodes(monkeypatch, tmp_path):
    config = load_config(None, {"run.device": "cpu", "run.folder": str(tmp_path)})
    events: list[str] = []
    for name, value in {
        "_require": lambda config: {"brain": [tmp_path]},
        "load_file": lambda path: {"ids": torch.arange(3)},
        "warn_of_few": lambda count: None,
        "refined_is_there": lambda config: False,
        "has_encoding": lambda config: False,
        "scorer_of": SimpleNamespace(cache_clear=lambda: events.append("dropped")),
        "give_back": lambda collect: events.append("given back"),
        "Targets": lambda config: pytest.fail("went on"),
    }.items():
        monkeypatch.setattr(evaluate, name, value)

    class Stop(Exception):
        pass

    def run(tasks: Any) -> Any:
        events.append("scored")
        raise Stop

    with pytest.raises(Stop):
        evaluate.evaluate_subject(config, SimpleNamespace(run=run))  # type: ignore[arg-type]
    assert events == ["scored", "dropped", "given back"]
