"""Which rows make a pass, which kernels compute it, and how fast it learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from unit.fake_backbone import fake_backbone
from unit.test_lora import called

from braingen.config import load_config
from braingen.generation.attention import use_attention
from braingen.runtime.errors import UserError
from braingen.training.conditioning_augmentation import augmented, decoding_error_of, mixing_weights
from braingen.training.diffusion_data import StepRows, pieces
from braingen.training.diffusion_step import draw
from braingen.training.diffusion_task import rate_factor


def test_an_epoch_shows_every_row_once_over_passes_and_processes():
    world, batch, count = 2, 3, 12
    passes = [
        [StepRows(count, batch, 7, rank, world).of(number) for rank in range(world)]
        for number in range(4)
    ]
    epochs = np.concatenate([rows for ranks in passes for rows in ranks]).reshape(2, count)
    assert [sorted(epoch) for epoch in epochs] == [list(range(count))] * 2
    assert epochs[0].tolist() != epochs[1].tolist()
    assert (
        StepRows(count, batch, 7).of(5).tolist()
        == StepRows(count, batch, 7).of(5).tolist()
        != StepRows(count, batch, 8).of(5).tolist()
    )


def test_pieces_are_all_rows_in_order():
    assert np.concatenate(list(pieces(10, 4))).tolist() == list(range(10))


def test_learning_rates_warm_up_and_end():
    config = load_config(None, {"max_train_steps": "100", "lr_warmup_steps": "10"})
    assert [rate_factor(config, step) for step in (0, 9, 10, 99)] == [0.1, 1.0, 1.0, 1.0]
    falling = load_config(
        None, {"max_train_steps": "100", "lr_warmup_steps": "10", "lr_scheduler": "cosine"}
    )
    factors = [rate_factor(falling, step) for step in range(10, 101)]
    assert (
        factors[0] == 1
        and factors[-1] == pytest.approx(0)
        and factors == sorted(factors, reverse=True)
    )


def test_conditions_are_dropped_as_often_as_asked_and_times_cover_the_schedule():
    config = load_config(None, {"drop_image": "0.2", "drop_text": "0.1", "drop_both": "0.3"})
    drawn = draw(config, 20000, (1, 1, 1), 1000, 5, torch.Generator().manual_seed(0))
    image, text = drawn.no_image_B, drawn.no_text_B
    shares = {"both": image & text, "image": image & ~text, "text": text & ~image}
    for name, wanted in (("both", 0.3), ("image", 0.2), ("text", 0.1)):
        assert shares[name].float().mean().item() == pytest.approx(wanted, abs=0.02)
    few = draw(config, 10, (1, 1, 1), 1000, 5, torch.Generator().manual_seed(0)).t_B
    assert sorted((few // 100).tolist()) == list(range(10))  # one in every tenth of the schedule


@pytest.mark.parametrize("kind", ["plain", "auto"])
def test_kernels_compute_the_same(kind):
    unet = fake_backbone().unet
    before = called(unet)
    use_attention(unet, kind)
    torch.testing.assert_close(called(unet), before, rtol=0, atol=1e-4)
    use_attention(unet, "sdpa")
    torch.testing.assert_close(called(unet), before, rtol=0, atol=1e-5)


def test_absent_kernels_are_asked_for_by_name():
    with pytest.raises(UserError, match="pip install xformers"):
        use_attention(fake_backbone().unet, "xformers")


def test_perfect_reads_leave_nothing_to_be_unsure_of():
    truth_JTD = torch.randn(6, 1, 8, generator=torch.Generator().manual_seed(0))
    perfect = decoding_error_of(truth_JTD[:, None].expand(-1, 3, -1, -1), truth_JTD)
    torch.testing.assert_close(perfect.slope_E, torch.ones(3))
    again = augmented(truth_JTD, perfect, mixing_weights(6, 6, torch.Generator().manual_seed(1)))
    torch.testing.assert_close(again, truth_JTD[:, None].expand(-1, 3, -1, -1), rtol=0, atol=1e-5)


def test_shrunken_reads_are_known_to_be_shrunken():
    generator = torch.Generator().manual_seed(0)
    truth_JTD = torch.randn(500, 1, 16, generator=generator)
    decoded = 0.5 * truth_JTD[:, None] + 0.1 * torch.randn(500, 2, 1, 16, generator=generator)
    found = decoding_error_of(decoded, truth_JTD)
    torch.testing.assert_close(found.slope_E, torch.full((2,), 0.5), rtol=0, atol=0.01)
    assert found.error_JETD.std().item() == pytest.approx(0.1, rel=0.05)
