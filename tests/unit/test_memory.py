"""Stages load what they use when they use it, and give it back: no second VAE, no encoder that
waits while the U-Net works.
"""

from __future__ import annotations

import gc
import multiprocessing
from pathlib import Path
import platform
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from unit.fake_backbone import fake_backbone
from unit.forking import server
from unit.test_decoder import decoder_of, voxels
from unit.tiny_finetuning import TableTargets, text_encoder, tiny_embedding_decoder, tiny_tuning
from unit.tiny_training import tiny_config

from braingen.config import load_config
from braingen.generation import decode, reconstruct
from braingen.generation.compatibility import form_of_files
from braingen.routing.conditioning import ConditioningForm
from braingen.runtime import memory
from braingen.runtime.errors import UserError
from braingen.runtime.memory import give_back, return_large_blocks
from braingen.targets.clip_image import CLIPImageEncoder
from braingen.targets.clip_text import CLIPTextEncoderDual
from braingen.targets.tables import Targets
from braingen.targets.text_form import TextForm
from braingen.training import diffusion as stage
from braingen.training import diffusion_step

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # of diffusers' scheduler


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("memory") / "data"


def held(model: torch.nn.Module) -> int:
    """Bytes of a model's weights."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum(x.numel() * x.element_size() for x in tensors if x.device.type != "meta")


@pytest.mark.parametrize("order", ["output", "step"])
@pytest.mark.slow
def test_a_decoder_draws_on_without_its_encoders(order):
    decoder = decoder_of()
    decoder.register_to_config(prior_order=order)
    read = decoder.decode_embeddings(torch.from_numpy(voxels(2))[:, None], 1, [4, 5])
    settings: dict[str, Any] = {"steps": 2, "guidance_scale": 2.0}
    expected = decoder.generate(read.image, read.text, [4, 5], **settings)
    counts = decoder.brain_image.expert_counts
    prior = held(decoder.brain_image.prior)
    decoder.release_encoders()
    scale = 4 * (decoder.brain_image.mean_TD.numel() + 1)
    assert held(decoder.brain_image) == scale + (prior if order == "step" else 0)
    assert decoder.brain_image.expert_counts == counts == (2, 4)
    assert decoder.device.type == "cpu"
    torch.testing.assert_close(
        decoder.generate(read.image, read.text, [4, 5], **settings), expected, rtol=0, atol=0
    )


@pytest.mark.slow
def test_fine_tuning_gives_everything_back_before_the_unet_is_there(monkeypatch, root, tmp_path):
    """Latents, targets and reads are computed first; no VAE and no encoder is kept beside the
    U-Net.
    """
    config = tiny_tuning(monkeypatch, root, tmp_path / "run")
    made: list[TableTargets] = []
    decoders = {name: tiny_embedding_decoder(name) for name in ("image", "text")}

    def targets(config):
        made.append(TableTargets(config))
        return made[-1]

    def load_backbone(*_, with_vae=True, **__):
        assert made[0].asked and made[0].freed == 1  # latents were computed, models given back
        assert all(held(each) == 4 * (each.mean_TD.numel() + 1) for each in decoders.values())
        assert not with_vae
        return fake_backbone()._replace(vae=None)

    monkeypatch.setattr(stage, "Targets", targets)
    monkeypatch.setattr(stage, "load_embedding_decoders", lambda config: decoders)
    monkeypatch.setattr(stage, "load_backbone", load_backbone)
    parts = stage.setup(config)
    rows = parts.data.train.rows[:2]
    result = diffusion_step.step(parts.model, rows, parts, config, torch.Generator().manual_seed(0))
    assert torch.isfinite(result.total)


def test_encoders_of_other_widths_are_refused_before_anything_is_computed(
    monkeypatch, root, tmp_path
):
    config = tiny_tuning(monkeypatch, root, tmp_path / "run")
    narrow = tiny_embedding_decoder("image")
    narrow.mean_TD = torch.zeros(1, 64)
    found = {"image": narrow, "text": tiny_embedding_decoder("text")}
    monkeypatch.setattr(stage, "load_embedding_decoders", lambda config: found)
    monkeypatch.setattr(stage, "diffusion_data", lambda *_: pytest.fail("computed first"))
    with pytest.raises(UserError, match="image encoder predicts 1 x 64"):
        stage.setup(config)


@pytest.mark.slow
def test_the_form_by_the_files_is_that_of_the_loaded_models(monkeypatch, root, tmp_path):
    config = tiny_tuning(monkeypatch, root, tmp_path / "run")
    mine, theirs = form_of_files(config, text_encoder()), stage.setup(config).model.form
    assert mine is not None and mine[1:] == theirs[1:]
    torch.testing.assert_close(mine.start_C, theirs.start_C)
    assert form_of_files(load_config(None, {"backbone.path": "no/where"}), text_encoder()) is None


@pytest.mark.slow
def test_the_text_encoder_is_loaded_once_for_its_start_token_and_not_kept(
    monkeypatch, root, tmp_path
):
    config = tiny_config(root, tmp_path, backbone__path="tiny")
    monkeypatch.setattr("braingen.targets.tables.check_backbone", lambda config: None)
    loads = []
    plain = CLIPTextEncoderDual.from_pretrained
    monkeypatch.setattr(
        CLIPTextEncoderDual,
        "from_pretrained",
        lambda *given, **more: loads.append(1) or plain(*given, **more),
    )
    targets = Targets(config)
    first = targets.text_form
    assert targets._text_encoder is None and loads == [1]
    again = Targets(config).text_form  # of another process
    assert loads == [1]
    for form in (first, again):
        assert form[:2] == (text_encoder().output, text_encoder().length)
        torch.testing.assert_close(form.start_D, text_encoder().start_token(), rtol=0, atol=0)
    wide = {"cross_attention_dim": 224, "pooled_dim": 128, "image_shape": (1, 128)}
    mine, theirs = (ConditioningForm.of(each, **wide) for each in (first, text_encoder()))
    assert mine[1:] == theirs[1:] and torch.equal(mine.start_C, theirs.start_C)
    other = tiny_config(root, tmp_path, backbone__path="tiny", backbone__text_output="joint")
    assert Targets(other).text_form.output == "joint" and loads == [1, 1]  # has one of its own


def test_a_damaged_form_is_made_again(tmp_path):
    form = TextForm.of(text_encoder())
    form.save(tmp_path / "form.safetensors")
    assert TextForm.load(tmp_path / "form.safetensors") is not None
    (tmp_path / "form.safetensors").write_bytes(b"cut short")
    assert TextForm.load(tmp_path / "form.safetensors") is None
    assert TextForm.load(tmp_path / "nowhere") is None


@pytest.mark.slow
def test_targets_give_back_their_models(monkeypatch, root, tmp_path):
    monkeypatch.setattr("braingen.targets.tables.check_backbone", lambda config: None)
    targets = Targets(tiny_config(root, tmp_path, backbone__path="tiny"))
    loaded = [targets.image_encoder, targets.text_encoder, targets.vae]
    assert targets.vae is loaded[2]
    targets.free()
    assert targets._image_encoder is targets._text_encoder is targets._vae is None
    assert targets.vae is not loaded[2]


@pytest.mark.parametrize("source", ["oracle", "brain"])
def test_true_embeddings_are_computed_before_any_model_of_the_decoder_is_loaded(
    monkeypatch, root, tmp_path, source
):
    events: list[str] = []

    class Noted(TableTargets):
        def of(self, modality, image_ids):
            events.append(modality)
            return super().of(modality, image_ids)

        def free(self):
            events.append("free")

    monkeypatch.setattr(reconstruct, "Targets", Noted)
    monkeypatch.setattr(reconstruct, "check_generation", lambda config: None)
    monkeypatch.setattr(reconstruct, "modalities", lambda config: ("image", "text"))

    for name in ("load_embedding_decoder", "load_latent_encoder", "load_backbone"):
        monkeypatch.setattr(reconstruct, name, lambda *_: pytest.fail("loaded by setup"))
    config = tiny_config(root, tmp_path, generation__source=source)
    reconstruct.setup(config)
    assert events == (["image", "text", "free"] if source == "oracle" else [])
    events.clear()
    reconstruct.setup(config, decodes=False)
    assert not events


@pytest.mark.parametrize(
    ("settings", "output", "projected"),
    [
        ({}, "pooled", True),
        ({"backbone__image_output": "tokens"}, "tokens", True),
        ({"backbone__image_projected": "false"}, "pooled", False),
    ],
)
def test_samples_of_a_file_of_voxels_are_ranked_in_the_decoded_space(
    root, tmp_path, settings, output, projected
):
    """`braingen decode` embeds what it drew as the encoder's target was embedded."""
    config = tiny_config(root, tmp_path, backbone__path="tiny", **settings)
    load = decode._image_encoder(config)
    encoder = load()
    assert isinstance(encoder, CLIPImageEncoder) and load() is encoder
    assert (encoder.output, encoder.projected) == (output, projected)


def test_what_is_dropped_goes_back_to_the_system(monkeypatch):
    """The allocators are asked to give back free blocks; a C library without that is no fault."""
    trimmed: list[int] = []
    library = SimpleNamespace(malloc_trim=trimmed.append)
    monkeypatch.setattr("braingen.runtime.memory.sys.platform", "linux")
    monkeypatch.setattr("braingen.runtime.memory.ctypes.CDLL", lambda name: library)
    give_back()
    assert trimmed == [0]

    def no_such_library(name):
        raise OSError(name)

    for broken in (no_such_library, lambda name: SimpleNamespace()):
        monkeypatch.setattr("braingen.runtime.memory.ctypes.CDLL", broken)
        give_back()


@pytest.mark.parametrize("where", ["targets", "decoder"])
def test_dropped_models_are_given_back(monkeypatch, root, tmp_path, where):
    given: list[str] = []
    if where == "targets":
        monkeypatch.setattr(
            "braingen.targets.tables.give_back", lambda collect: given.append(where)
        )
        Targets(tiny_config(root, tmp_path / "run")).free()
    else:
        monkeypatch.setattr(
            "braingen.generation.brain_encoders.give_back", lambda: given.append(where)
        )
        decoder_of().release_encoders()
    assert given == [where]


# --- beside a large model, freed blocks go back to the system ---------------------------------


@pytest.fixture
def told(monkeypatch) -> list[tuple[int, int]]:
    """What the C library is told."""
    found: list[tuple[int, int]] = []
    library = SimpleNamespace(
        mallopt=lambda *given: found.append(given), malloc_trim=lambda pad: None
    )
    monkeypatch.setattr("braingen.runtime.memory.sys.platform", "linux")
    monkeypatch.setattr("braingen.runtime.memory.ctypes.CDLL", lambda name: library)
    for name in memory.CHOSEN_BY_USER:
        monkeypatch.delenv(name, raising=False)
    return found


@pytest.mark.parametrize(
    ("size", "variable", "expected"),
    [
        (memory.LARGE_WEIGHTS, None, True),
        (memory.LARGE_WEIGHTS - 1, None, False),  # a small model: blocks are found faster as it is
        (memory.LARGE_WEIGHTS, ("GLIBC_TUNABLES", "glibc.malloc.arena_max=1"), True),
        (memory.LARGE_WEIGHTS, ("GLIBC_TUNABLES", "glibc.malloc.mmap_threshold=4096"), False),
        (memory.LARGE_WEIGHTS, ("MALLOC_MMAP_THRESHOLD_", "131072"), False),
    ],
)
def test_the_c_library_is_told_for_large_models_unless_the_user_did(
    told, monkeypatch, size, variable, expected
):
    if variable is not None:
        monkeypatch.setenv(*variable)
    return_large_blocks(size)
    assert told == ([(memory.M_MMAP_THRESHOLD, memory.OWN_BLOCK)] if expected else [])


def test_another_c_library_or_system_is_left_as_it_is(told, monkeypatch):
    def no_such_library(name):
        raise OSError(name)

    for broken in (no_such_library, lambda name: SimpleNamespace()):
        monkeypatch.setattr("braingen.runtime.memory.ctypes.CDLL", broken)
        return_large_blocks(memory.LARGE_WEIGHTS)
    monkeypatch.setattr("braingen.runtime.memory.sys.platform", "darwin")
    monkeypatch.setattr(
        "braingen.runtime.memory.ctypes.CDLL", lambda name: pytest.fail("not on this system")
    )
    return_large_blocks(memory.LARGE_WEIGHTS)
    assert not told


KEPT = """
import sys
from braingen.runtime import memory
import torch

def own():
    line = next(x for x in open("/proc/self/status") if x.startswith("RssAnon"))
    return int(line.split()[1]) * 1024

if sys.argv[1] == "told":
    memory.return_large_blocks(memory.LARGE_WEIGHTS)
for size in range(1, 31):  # the library takes the size of freed blocks for the next ones
    torch.ones(size << 18)
before, size = own(), 4 << 20
blocks = [torch.ones(size // 4) for _ in range(32)]
full = own() - before
del blocks[::2]  # every second one: the others hold the heap together
print(full, own() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
@pytest.mark.slow
def test_freed_blocks_between_living_ones_go_back_to_the_system():
    def left(word: str) -> float:
        done = subprocess.run(
            [sys.executable, "-c", KEPT, word], stdout=subprocess.PIPE, text=True, check=True
        )
        full, now = map(int, done.stdout.split())
        return now / full

    assert left("told") == pytest.approx(0.5, abs=0.05)
    assert left("not told") > 0.9  # what is mended: all of it is kept


@pytest.mark.slow
def test_fine_tuning_on_a_cpu_tells_the_size_of_the_unet(monkeypatch, root, tmp_path):
    sizes: list[int] = []
    monkeypatch.setattr(stage, "return_large_blocks", sizes.append)
    unet = stage.setup(tiny_tuning(monkeypatch, root, tmp_path / "run", lora__rank="0")).model.unet
    assert sizes == [held(unet)]


def _leaves_imports_alone() -> None:
    raise SystemExit(0 if gc.get_freeze_count() > 10_000 else 1)


@pytest.mark.skipif(
    "forkserver" not in multiprocessing.get_all_start_methods(), reason="nothing is forked here"
)
def test_forked_processes_do_not_collect_what_their_server_imported():
    process = server().Process(target=_leaves_imports_alone)
    process.start()
    process.join()
    assert process.exitcode == 0
