"""Fine-tuning recomputes activations where the free memory does not hold them."""

from __future__ import annotations

import pytest
from unit.fake_backbone import plain_unet

from braingen.cli import main
from braingen.config import Config, load_config
from braingen.config.overrides import parse_overrides
from braingen.diagnostics.needs import fine_tuning
from braingen.generation.accounting import tuning_bytes
from braingen.training.checkpointing import uses_checkpointing


def config_of(*words: str) -> Config:
    return load_config(*parse_overrides([*words, "--device", "cpu"], "finetune"))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--gradient_checkpointing"], True),
        (["--no-gradient_checkpointing"], False),
        (["finetune.gradient_checkpointing=true"], True),
        (["finetune.gradient_checkpointing=false"], False),
        (["finetune.gradient_checkpointing=auto"], "auto"),
        ([], "auto"),
    ],
)
def test_it_is_a_switch_or_auto(words, expected):
    config = config_of(*words)
    assert config.finetune.gradient_checkpointing is expected or expected == "auto"
    assert config.finetune.gradient_checkpointing == expected
    if expected != "auto":
        assert uses_checkpointing(config, plain_unet(), 8, free=10**9) is expected


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        (
            "finetune.gradient_checkpointing=some",
            "finetune.gradient_checkpointing = some is not allowed: true, false or {auto}.",
        ),
        (
            "generation.batch_size=some",
            "generation.batch_size = some is not allowed: whole number above 0 or {auto}.",
        ),
    ],
)
def test_another_word_is_refused_with_all_that_is_allowed(capsys, word, sentence):
    assert main(["finetune", word]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.slow
def test_auto_is_where_three_quarters_of_the_free_memory_do_not_hold_a_pass():
    unet, config = plain_unet(), config_of("--train_batch_size", "4")
    working, lora = tuning_bytes(dict(unet.config), 4, 8, unet.dtype, 16, False, "plain")
    needed = working + 16 * lora
    assert uses_checkpointing(config, unet, 8, free=int(1.30 * needed))
    assert not uses_checkpointing(config, unet, 8, free=int(1.37 * needed))
    more = config_of("--train_batch_size", "8")
    assert uses_checkpointing(more, unet, 8, free=int(1.37 * needed))  # a larger batch
    average = config_of("--train_batch_size", "4", "--use_ema")
    assert uses_checkpointing(average, unet, 8, free=int(1.335 * needed))


@pytest.mark.slow
def test_of_a_cpu_the_memory_that_is_free_is_asked_for(monkeypatch):
    free = type("Memory", (), {"available": 0})
    monkeypatch.setattr("psutil.virtual_memory", lambda: free)
    assert uses_checkpointing(config_of(), plain_unet(), 8)
    free.available = 10**12
    assert not uses_checkpointing(config_of(), plain_unet(), 8)


@pytest.mark.slow
def test_doctor_counts_auto_as_the_smaller_need():
    auto, used, without = (
        fine_tuning(config_of("--train_batch_size", "4", *words), 0).working
        for words in ([], ["--gradient_checkpointing"], ["--no-gradient_checkpointing"])
    )
    assert auto == used < without
