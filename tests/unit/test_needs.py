"""The table of what every stage needs is what the stages load; too little memory is a warning with
what helps, and running out of it a sentence.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from unit.fake_backbone import (
    POOLED_WIDTH,
    fake_backbone,
    plain_unet,
    small_vae,
    write_fake_backbone,
)
from unit.fake_backbone import write_fake_refiner as write_refiner
from unit.fake_nsd import write_fake_nsd
from unit.test_doctor import PUBLISHED
from unit.test_memory import held
from unit.tiny_finetuning import tiny_tuning

from braingen.cli import main
from braingen.config import Config, load_config
from braingen.diagnostics import doctor as doctor_stage
from braingen.diagnostics import memory_advice, needs, needs_by_data
from braingen.diagnostics.lowering import advice
from braingen.diagnostics.needs import STAGES, generating, refining, stage_needs
from braingen.diagnostics.needs_by_data import DATA_STAGES, Amounts
from braingen.diagnostics.resources import Need, encoder_parameters, training_bytes
from braingen.diagnostics.summary import Sizes
from braingen.generation.accounting import (
    counted,
    tuning_bytes,
    unet_working_bytes,
    vae_working_bytes,
)
from braingen.generation.attention import use_attention
from braingen.generation.batch import MOST, USUAL, batch_of, batch_that_fits
from braingen.generation.lora import lora_parameters
from braingen.generation.refiner import load_refiner
from braingen.pretrained.sdxl import load_backbone
from braingen.runtime.memory import out_of_memory
from braingen.training import diffusion as tuning_stage

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # of diffusers' scheduler
HALF = torch.float16


def settings_of(model: Any) -> dict[str, Any]:
    return dict(model.config)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> Path:
    return write_fake_backbone(tmp_path_factory.mktemp("needs") / "backbone", with_clip=True)


def config_of(backbone: Path, **more: str) -> Config:
    fixed = {"backbone.path": str(backbone), "run.device": "cpu"}
    return load_config(None, fixed | {k.replace("__", "."): v for k, v in more.items()})


# --- weights: the table against what is loaded ---------------------------------


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.slow
def test_generating_needs_what_is_loaded(backbone, precision):
    config = config_of(backbone, generation__precision=precision, generation__batch_size="64")
    dtype = getattr(torch, precision)
    loaded = load_backbone(str(backbone), dtype=dtype)
    need = generating(config, encoders=1000)
    assert "encoders" not in need.weights  # released; a large batch is the peak
    assert sum(need.weights.values()) == pytest.approx(
        held(loaded.unet) + held(loaded.vae), rel=0.01
    )
    few = generating(config_of(backbone, generation__batch_size="1"), encoders=10**9)
    assert few.weights["encoders"] == 4 * 10**9 and few.working == 0  # the moment they are loaded


@pytest.mark.parametrize("with_refiner", [True, False])
@pytest.mark.slow
def test_refining_needs_what_is_loaded(backbone, tmp_path, with_refiner):
    path = write_refiner(tmp_path / "refiner") if with_refiner else backbone
    more = {"backbone__refiner": str(path)} if with_refiner else {}
    need = refining(config_of(backbone, refinement__batch_size="64", **more))
    refiner = load_refiner(str(path))
    assert sum(need.weights.values()) == pytest.approx(
        held(refiner.unet) + held(refiner.vae), rel=0.01
    )


@pytest.mark.slow
def test_fine_tuning_needs_what_is_loaded(monkeypatch, tmp_path):
    config = tiny_tuning(monkeypatch, tmp_path / "data", tmp_path / "run", lora__rank="4")
    parts = tuning_stage.setup(config)
    need = STAGES["fine-tune"](config, 0)
    lora = sum(parameter.numel() for parameter in lora_parameters(parts.model.unet).values())
    assert need.weights["lora"] == 16 * lora
    frozen = need.weights["unet"] + need.weights["ip_adapter"]
    assert frozen + 4 * lora == pytest.approx(held(parts.model.unet), rel=0.01)


# --- what a pass works with: meta against a real pass ----------------------------


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.slow
def test_a_pass_on_the_meta_device_is_counted_as_a_real_one(rows):
    unet = plain_unet().eval().requires_grad_(False)
    with torch.no_grad(), counted(unet) as live:
        unet(
            torch.zeros(rows, 4, 8, 8),
            torch.zeros(()),
            encoder_hidden_states=torch.zeros(rows, 77, 224),
            added_cond_kwargs={
                "text_embeds": torch.zeros(rows, 128),
                "time_ids": torch.zeros(rows, 6),
            },
        )
    meta = unet_working_bytes(settings_of(unet), rows, 8, torch.float32)
    assert meta == pytest.approx(live.peak, rel=0.05)


@pytest.mark.slow
def test_what_a_pass_works_with_grows_with_rows_and_halves_in_half_precision():
    settings = settings_of(plain_unet())
    one, four = (unet_working_bytes(settings, rows, 8, torch.float32) for rows in (1, 4))
    assert four == pytest.approx(4 * one, rel=0.1)
    assert unet_working_bytes(settings, 4, 8, HALF) == pytest.approx(four / 2, rel=0.15)
    decoder = settings_of(small_vae())
    assert vae_working_bytes(decoder, 4, 32) == pytest.approx(
        4 * vae_working_bytes(decoder, 1, 32), rel=0.05
    )
    assert vae_working_bytes(decoder, 1, 32, decoding=False) > 0


@pytest.mark.slow
def test_a_refiner_of_five_numbers_is_counted():
    refiner = plain_unet(seed=3, text_width=POOLED_WIDTH, told=5, pooled_width=4)
    assert unet_working_bytes(settings_of(refiner), 1, 8, torch.float32) > 0


@pytest.mark.slow
def test_training_works_with_more_and_checkpointing_with_less():
    settings = settings_of(plain_unet())
    forward = unet_working_bytes(settings, 4, 8, torch.float32)
    plain = tuning_bytes(settings, 4, 8, rank=2)
    assert plain.working > 3 * forward
    assert tuning_bytes(settings, 4, 8, rank=2, checkpointing=True).working < plain.working / 2
    assert tuning_bytes(settings, 4, 8, rank=2, attention="plain").working > plain.working
    assert tuning_bytes(settings, 4, 8, rank=0).lora == 0 < plain.lora


def test_counting_leaves_attention_as_it_was():
    before = nn.functional.scaled_dot_product_attention
    with pytest.raises(ZeroDivisionError), counted(nn.Linear(1, 1)):
        raise ZeroDivisionError
    assert nn.functional.scaled_dot_product_attention is before
    unet = fake_backbone().unet
    use_attention(unet, "sdpa")


# --- how many images at once -----------------------------------------------------


@pytest.mark.slow
def test_auto_takes_what_fits_and_a_number_is_a_number():
    unet, vae = fake_backbone().unet, small_vae()
    assert batch_of("auto") == USUAL and batch_of(3) == 3
    assert batch_that_fits("auto", unet, vae, 32) == USUAL  # a CPU
    sizes = [batch_that_fits("auto", unet, vae, 32, free) for free in (0, 10**7, 10**8, 10**11)]
    assert sizes[0] == 1 and sizes == sorted(sizes) and sizes[-1] == MOST
    one = unet_working_bytes(settings_of(unet), 2, 8, torch.float32)
    assert (sizes[1] - 1) * one < 0.7 * 10**7
    assert batch_that_fits(5, unet, vae, 32, 0) == 5
    assert load_config(None, {"generation.batch_size": "auto"}).generation.batch_size == "auto"


# --- what is said ------------------------------------------------------------------


def test_an_estimate_that_is_too_large_is_a_warning_and_the_exit_code_is_zero(
    tmp_path, capsys, monkeypatch
):
    write_fake_nsd(tmp_path / "NSD", subjects=[1])
    found = [Need("memory to train", 9 * 10**9, 10**9, lambda: "lower something", True)]
    monkeypatch.setattr(doctor_stage, "needs_of", lambda *_: found)
    words = ["--data_path", str(tmp_path / "NSD"), "--model_name", str(tmp_path / "run")]
    assert main(["doctor", *words, "--device", "cpu", "--json"]) == 0
    items = json.loads(capsys.readouterr().out)["findings"]
    (item,) = [each for each in items if each["area"] == "needs"]
    assert item["level"] == "warning" and item["sentence"].endswith("lower something.")


def large_training(**more: str) -> Config:
    settings = {"encoder.hidden_dim": "4096", "encoder.head": "projector"}
    return load_config(None, settings | {k.replace("__", "."): v for k, v in more.items()})


def test_where_weights_dominate_the_hint_lowers_weights_and_not_the_batch():
    sizes = Sizes({"1": 2000}, *PUBLISHED.values(), {"L": 768, "bigG": 1280}, ())
    text = advice(large_training(), "train", lambda c: training_bytes(c, "image", sizes)[0])
    assert "encoder.hidden_dim=2048" in text and "encoder.head=linear" in text
    assert "GB less" in text and "training.batch_size" not in text
    many = large_training(training__batch_size="60000", encoder__head="linear")
    text = advice(many, "train", lambda c: training_bytes(c, "image", sizes)[0])
    assert text.startswith("lower training.batch_size=1")


@pytest.mark.slow
def test_what_does_not_help_is_not_named(backbone):
    config = config_of(backbone, generation__batch_size="64")
    text = advice(config, "generate", lambda c: generating(c, 0).total)
    assert "generation.batch_size=1" in text
    one = config_of(backbone, generation__batch_size="1", generation__precision="bfloat16")
    text = advice(one, "generate", lambda c: generating(c, 10**9).total)
    assert text == "use a machine with more"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 8 bytes"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA"), True),
        (RuntimeError("shapes do not fit"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_running_out_of_memory_is_recognised(error, expected):
    assert out_of_memory(error) is expected


@pytest.mark.parametrize(
    ("command", "named"),
    [
        (["train", "image"], "encoder.hidden_dim="),
        (["finetune", "--no-gradient_checkpointing"], "finetune.gradient_checkpointing=auto"),
        (["reconstruct"], "use a machine with more"),
        (["evaluate"], "use a machine with more"),
        (["train", "low_level"], "low_level.hidden_dim=512"),
        (["train", "encoding"], "encoding.library_size=1000"),
        (["report"], "braingen doctor"),
    ],
)
@pytest.mark.slow
def test_a_command_that_runs_out_of_memory_ends_in_one_sentence(
    monkeypatch, capsys, tmp_path, backbone, command, named
):
    def fails(*_):
        raise RuntimeError(
            "DefaultCPUAllocator: can't allocate memory: you tried 9 bytes. Error 12"
        )

    target = {
        "train image": "braingen.training.encoder.train",
        "train low_level": "braingen.training.low_level.train_low_level",
        "train encoding": "braingen.encoding_model.train.train_encoding",
        "report": "braingen.report.write.report",
        "finetune": "braingen.training.diffusion.finetune",
        "reconstruct": "braingen.generation.reconstruct.reconstruct",
        "evaluate": "braingen.evaluation.evaluate.evaluate",
    }[" ".join(word for word in command if not word.startswith("-"))]
    monkeypatch.setattr(target, fails)
    monkeypatch.setattr(needs, "unet_working_bytes", lambda *_: 1)
    words = [*command, "--root", str(tmp_path), f"backbone.path={backbone}", "--device", "cpu"]
    assert main([*words, "--folder", str(tmp_path / "run")]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and "There is not enough memory for" in printed
    assert named in printed and "Traceback" not in printed


def test_every_stage_of_the_table_has_its_command():
    assert set(memory_advice.STAGE_OF.values()) == set(STAGES) | set(DATA_STAGES)


@pytest.mark.long
@pytest.mark.slow
def test_twenty_four_gigabytes_are_enough_for_every_stage_at_full_size(monkeypatch):
    """configs/nsd_subj01.yaml at its batch sizes on a GPU, by counting alone."""
    monkeypatch.setattr(needs, "generation_type", lambda config: HALF)
    monkeypatch.setattr(needs, "frozen_type", lambda config: HALF)
    monkeypatch.setattr(needs, "device_of", lambda config: torch.device("cuda"))
    config = load_config(Path("nsd_subj01"), {"run.device": "cpu"})
    sizes = Sizes({"1": 15724}, *PUBLISHED.values(), {"L": 768, "bigG": 1280}, ())
    both = [encoder_parameters(config, sizes, each) for each in ("image", "text")]
    found = {name: need.total for name, need in stage_needs(config, sum(both)).items()}
    found["train"] = max(training_bytes(config, each, sizes)[0] for each in ("image", "text"))
    monkeypatch.setattr(needs_by_data, "device_of", lambda config: torch.device("cuda"))
    for name, count in DATA_STAGES.items():
        found[name] = count(config, sizes, Amounts(9000, 27000), both[0]).total
    assert all(1e8 < total < 0.9 * 24e9 for total in found.values()), found
