"""Laws of RoutedConditioning: off is unrouted, gradients reach routers, the prior runs when it is
said to, text has its form.
"""

from __future__ import annotations

import pytest
import torch

from braingen.encoders.moe import BrainMoEHier, BrainMoEMulti
from braingen.routing.conditioning import (
    ConditioningForm,
    ConditioningSource,
    RoutedConditioning,
    through_prior,
)
from braingen.routing.diffuse_router import DiffuseRouter
from braingen.runtime.errors import UserError
from braingen.targets.clip_text import PromptEmbeddings
from braingen.types import ExpertStack

B, D, D_TEXT, D_FIRST, LENGTH, POOLED = 3, 6, 5, 4, 7, 8
COUNTS = (2, 4, 2)


def stack_of(width: int, seed: int = 0, counts: tuple[int, ...] = COUNTS) -> ExpertStack:
    """Random estimates of all experts."""
    generator = torch.Generator().manual_seed(seed)
    experts = torch.randn(B, sum(counts), 1, width, generator=generator)
    return ExpertStack.of_experts(experts, counts)


def router(width: int, **settings) -> DiffuseRouter:
    torch.manual_seed(0)
    sizes = {
        "num_experts": COUNTS,
        "clip_emb_dim": width,
        "time_hidden_dim": 8,
        "time_embedding_dim": 16,
        "space_grid": 4,
    }
    return DiffuseRouter(**sizes | settings)


def shaken(module: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(3)
    for parameter in module.parameters():
        parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator)
    return module


FORM = ConditioningForm(
    start_C=torch.cat([torch.zeros(D_FIRST), torch.arange(1.0, D_TEXT + 1)]),
    text_length=LENGTH,
    text_columns=(D_FIRST, D_FIRST + D_TEXT),
    pooled_dim=POOLED,
    image_shape=(1, D),
)
IMAGE, TEXT = stack_of(D), stack_of(D_TEXT, seed=1)
LATENTS = torch.randn(B, 4, 6, 6, generator=torch.Generator().manual_seed(2))


def affine(x: torch.Tensor) -> torch.Tensor:
    return 2 * x - 0.3


def bent(x: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x)


def test_without_routers_it_is_the_encoders_output():
    condition = RoutedConditioning(
        FORM, image=ConditioningSource(IMAGE), text=ConditioningSource(TEXT)
    )(500, LATENTS)
    assert torch.equal(condition.image_embeds_BTD, IMAGE.output_BTD)
    assert torch.equal(condition.tokens_BTC, FORM.text(TEXT.output_BTD))
    assert condition.image_routing is None and condition.text_routing is None
    assert not condition.pooled_BD.any() and condition.pooled_BD.shape == (B, POOLED)


def test_a_stack_is_all_experts_their_levels_and_the_whole():
    by_hand = [x_BETD.mean(1) for x_BETD in IMAGE.by_level]
    assert [x_BETD.shape[1] for x_BETD in IMAGE.by_level] == list(COUNTS)
    torch.testing.assert_close(IMAGE.levels_BLTD, torch.stack(by_hand, 1))
    torch.testing.assert_close(IMAGE.output_BTD, torch.stack(by_hand).mean(0))
    assert torch.equal(torch.cat(IMAGE.by_level, 1), IMAGE.experts_BETD)
    numbers = torch.arange(3.0)[None].expand(2, -1)
    assert IMAGE.spread(numbers).tolist() == [[0, 0, 1, 1, 1, 1, 2, 2]] * 2
    same = ExpertStack.repeated(TEXT.output_BTD, COUNTS)
    assert same.experts_BETD.shape[1] == sum(COUNTS)
    torch.testing.assert_close(same.output_BTD, TEXT.output_BTD)
    rows = IMAGE.map(lambda x: x[1:])
    assert len(rows.output_BTD) == len(rows.experts_BETD) == B - 1 and rows.counts == COUNTS


@pytest.mark.parametrize("experts", [True, False])
def test_an_encoders_output_is_stacked_with_its_experts_or_its_levels(experts):
    sizes = {"clip_emb_dim": 5, "hidden_dim": 16, "n_blocks": 1, "num_exp_0": 2}
    encoder = BrainMoEMulti({1: 9}, exp_factor_list=(2,), **sizes).eval()
    with torch.no_grad():
        out = encoder(torch.randn(4, 9), 1, return_experts=experts)
    assert torch.equal(out.stack.output_BTD, out.backbone_BTD)
    if experts:
        assert out.stack.counts == (2, 4)
        assert all(map(torch.equal, out.stack.by_level, out.expert_backbone))
    else:
        assert out.stack.counts == (1, 1)
        assert torch.equal(out.stack.levels_BLTD, out.level_backbone_BLTD)


def test_routers_that_are_off_give_exactly_the_unrouted_result():
    off = {"time": "off", "space": "off"}
    routed = RoutedConditioning(
        FORM,
        image=ConditioningSource(IMAGE, router(D, **off)),
        text=ConditioningSource(TEXT, router(D_TEXT, **off)),
    )(500, LATENTS)
    unrouted = RoutedConditioning(
        FORM, image=ConditioningSource(IMAGE), text=ConditioningSource(TEXT)
    )(500, LATENTS)
    assert torch.equal(routed.image_embeds_BTD, unrouted.image_embeds_BTD)
    assert torch.equal(routed.tokens_BTC, unrouted.tokens_BTC)


@pytest.mark.parametrize("of", ["output", "levels", "experts"])
def test_fresh_routers_give_the_unrouted_result_after_a_prior_too(of):
    ready = through_prior(IMAGE, bent, of=of)
    routed = RoutedConditioning(FORM, image=ConditioningSource(ready, router(D)))(500, LATENTS)
    torch.testing.assert_close(routed.image_embeds_BTD, ready.output_BTD, rtol=1e-5, atol=1e-5)
    for level, experts in enumerate(ready.by_level):
        torch.testing.assert_close(experts.mean(1), ready.levels_BLTD[:, level])


def test_prior_takes_what_it_is_given():
    rows: list[int] = []

    def counting(x: torch.Tensor) -> torch.Tensor:
        rows.append(len(x))
        return bent(x)

    assert torch.equal(
        through_prior(IMAGE, counting, of="output").output_BTD, bent(IMAGE.output_BTD)
    )
    torch.testing.assert_close(
        through_prior(IMAGE, counting, of="levels").levels_BLTD, bent(IMAGE.levels_BLTD)
    )
    for mine, before in zip(through_prior(IMAGE, counting, of="experts").by_level, IMAGE.by_level):
        torch.testing.assert_close(mine, bent(before))
    assert rows == [B, 3 * B, 8 * B]
    routed = RoutedConditioning(
        FORM, image=ConditioningSource(through_prior(IMAGE, counting), router(D))
    )
    for t in (900, 500, 100):
        routed(t, LATENTS)
    assert len(rows) == 4  # none inside the loop


def test_for_an_affine_prior_all_orders_agree():
    # only time is routed: weights that depend on the embeddings would see others before than after
    # the prior
    timed = shaken(router(D, space="off"))
    after = RoutedConditioning(FORM, image=ConditioningSource(IMAGE, timed, prior=affine))(
        300, LATENTS
    ).image_embeds_BTD
    for of in ("levels", "experts"):
        before = RoutedConditioning(
            FORM, image=ConditioningSource(through_prior(IMAGE, affine, of=of), timed)
        )(300, LATENTS).image_embeds_BTD
        torch.testing.assert_close(before, after)


def test_experts_of_sums_become_estimates_of_their_level():
    scaled = IMAGE.estimates()
    assert scaled.counts == COUNTS and torch.equal(scaled.output_BTD, IMAGE.output_BTD)
    for shares, estimates in zip(IMAGE.by_level, scaled.by_level):
        torch.testing.assert_close(estimates.mean(1), shares.sum(1))


@pytest.mark.parametrize("combine", ["sum", "mean", "learned"])
def test_the_mean_of_an_encoders_estimates_is_its_level(combine):
    sizes = {"clip_emb_dim": 5, "hidden_dim": 16, "n_blocks": 1}
    encoder: BrainMoEHier | BrainMoEMulti
    if combine == "learned":
        encoder = shaken(BrainMoEHier({1: 9}, num_exps=(2, 4), **sizes))  # type: ignore[assignment]
    else:
        more = {"num_exp_0": 2, "exp_factor_list": (2,), "level_combine": combine}
        encoder = BrainMoEMulti({1: 9}, **sizes, **more)
    with torch.no_grad():
        out = encoder.eval()(torch.randn(4, 9), 1, return_experts=True)
        found = encoder.as_estimates(out.stack)
    torch.testing.assert_close(found.levels_BLTD, out.level_backbone_BLTD, rtol=1e-4, atol=1e-5)


def test_gradients_reach_every_router_parameter_unless_a_prior_stops_them():
    image_router, text_router = (
        shaken(router(D, time_context=True, time_context_size=3)),
        shaken(router(D_TEXT, time="mlp", space="self")),
    )

    def loss(prior) -> torch.Tensor:
        routed = RoutedConditioning(
            FORM,
            image=ConditioningSource(IMAGE, image_router, prior),
            text=ConditioningSource(TEXT, text_router),
        )
        condition = routed(torch.tensor([900, 400, 10]), LATENTS)
        return condition.image_embeds_BTD.square().sum() + condition.tokens_BTC.square().sum()

    loss(bent).backward()
    parameters = [*image_router.parameters(), *text_router.parameters()]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in parameters)
    for p in parameters:
        p.grad = None
    loss(torch.no_grad()(bent)).backward()  # what the published fine-tuning does
    assert all(p.grad is None for p in image_router.parameters())


def test_one_time_for_all_is_the_time_of_each():
    routed = RoutedConditioning(
        FORM,
        image=ConditioningSource(IMAGE, shaken(router(D))),
        text=ConditioningSource(TEXT, shaken(router(D_TEXT))),
    )
    one = routed(torch.tensor(420), LATENTS)
    for same in (420, 420.0, torch.tensor([420]), torch.full((B,), 420)):
        other = routed(same, LATENTS)
        assert torch.equal(one.image_embeds_BTD, other.image_embeds_BTD) and torch.equal(
            one.tokens_BTC, other.tokens_BTC
        )
    assert not torch.equal(one.image_embeds_BTD, routed(20, LATENTS).image_embeds_BTD)
    assert one.image_routing.level_weights_BL.shape == (B, len(COUNTS))


def test_a_batch_is_its_rows_and_any_latent_size_does():
    image_router = shaken(router(D))
    whole = RoutedConditioning(FORM, image=ConditioningSource(IMAGE, image_router))(
        420, LATENTS
    ).image_embeds_BTD
    for row in range(B):
        alone = IMAGE.map(lambda x, row=row: x[row : row + 1])
        single = RoutedConditioning(FORM, image=ConditioningSource(alone, image_router))(
            420, LATENTS[row : row + 1]
        ).image_embeds_BTD
        torch.testing.assert_close(single[0], whole[row], rtol=1e-4, atol=1e-5)
    assert RoutedConditioning(FORM, image=ConditioningSource(IMAGE, image_router))(
        420, torch.randn(B, 4, 9, 13)
    ).image_embeds_BTD.shape == (B, 1, D)


def test_image_or_text_alone_leaves_the_other_empty():
    only_image = RoutedConditioning(FORM, image=ConditioningSource(IMAGE, router(D)))(420, LATENTS)
    assert (
        only_image.image_embeds_BTD.any()
        and not only_image.tokens_BTC.any()
        and only_image.text_routing is None
    )
    only_text = RoutedConditioning(FORM, text=ConditioningSource(TEXT, router(D_TEXT)))(
        420, LATENTS
    )
    assert (
        only_text.tokens_BTC.any()
        and not only_text.image_embeds_BTD.any()
        and only_text.image_routing is None
    )
    assert (
        only_image.tokens_BTC.shape == only_text.tokens_BTC.shape == (B, LENGTH, D_FIRST + D_TEXT)
    )
    with pytest.raises(UserError, match="at least one"):
        RoutedConditioning(FORM)
    with pytest.raises(UserError, match="rows"):
        RoutedConditioning(
            FORM,
            image=ConditioningSource(IMAGE),
            text=ConditioningSource(TEXT.map(lambda x: x[:2])),
        )


def test_text_is_the_start_token_and_one_vector_repeated():
    tokens = FORM.text(TEXT.output_BTD)
    assert tokens.shape == (B, LENGTH, D_FIRST + D_TEXT)
    assert not tokens[:, :, :D_FIRST].any()
    assert (tokens[:, 0, D_FIRST:] == torch.arange(1.0, D_TEXT + 1)).all()
    assert torch.equal(tokens[:, 1:, D_FIRST:], TEXT.output_BTD.expand(B, LENGTH - 1, D_TEXT))
    all_tokens = torch.randn(B, LENGTH, D_TEXT)
    assert torch.equal(FORM.text(all_tokens)[..., D_FIRST:], all_tokens)
    first, start = torch.randn(B, 1, D_FIRST), torch.full((D_FIRST,), 9.0)
    both = FORM.text(TEXT.output_BTD, first, start)
    assert torch.equal(both[..., D_FIRST:], tokens[..., D_FIRST:])
    assert (both[:, 0, :D_FIRST] == 9).all() and torch.equal(
        both[:, 1:, :D_FIRST], first.expand(B, LENGTH - 1, D_FIRST)
    )
    for bad in (torch.randn(B, 2, D_TEXT), torch.randn(B, 1, D_TEXT + 1)):
        with pytest.raises(UserError, match="allowed"):
            FORM.text(bad)
    with pytest.raises(UserError, match="do not fill"):
        FORM.text(TEXT.output_BTD, torch.randn(B, 1, D_FIRST + 1))


@pytest.mark.parametrize("output", ["L", "bigG", "joint"])
def test_form_puts_the_columns_where_sdxl_has_them(output):
    class Encoder:
        length = LENGTH

        def __init__(self) -> None:
            self.output = output
            self.width = {"L": D_FIRST, "bigG": D_TEXT, "joint": D_FIRST + D_TEXT}[output]

        def start_token(self) -> torch.Tensor:
            return torch.ones(self.width)

    encoder = Encoder()
    form = ConditioningForm.of(
        encoder, cross_attention_dim=D_FIRST + D_TEXT, pooled_dim=POOLED, image_shape=(1, D)
    )
    begin = D_FIRST if output == "bigG" else 0
    assert form.text_columns == (begin, begin + encoder.width)
    expected = torch.zeros(D_FIRST + D_TEXT)
    expected[begin : begin + encoder.width] = 1
    assert torch.equal(form.start_C, expected)
    assert form.text(torch.randn(B, 1, encoder.width)).shape == (B, LENGTH, D_FIRST + D_TEXT)
    with pytest.raises(UserError, match="does not fit"):
        ConditioningForm.of(encoder, cross_attention_dim=3, pooled_dim=POOLED, image_shape=(1, D))


def test_guidance_leads_away_from_nothing_or_from_a_prompt():
    routed = RoutedConditioning(FORM, image=ConditioningSource(IMAGE))
    assert not any(x.any() for x in routed.unconditional[:3])
    written = PromptEmbeddings(torch.randn(1, LENGTH, D_FIRST + D_TEXT), torch.randn(1, POOLED))
    away = RoutedConditioning(
        FORM, image=ConditioningSource(IMAGE), negative=FORM.prompt(written)
    ).unconditional
    assert torch.equal(away.tokens_BTC, written.tokens_BTD.expand(B, -1, -1))
    assert torch.equal(away.pooled_BD, written.pooled_BD.expand(B, -1))
    assert not away.image_embeds_BTD.any() and len(away.image_embeds_BTD) == B
    second_only = FORM.prompt(PromptEmbeddings(torch.ones(1, LENGTH, D_TEXT), None))
    assert (
        not second_only.tokens_BTC[..., :D_FIRST].any()
        and second_only.tokens_BTC[..., D_FIRST:].all()
    )


def test_dropped_rows_are_empty_and_others_untouched():
    condition = RoutedConditioning(
        FORM, image=ConditioningSource(IMAGE), text=ConditioningSource(TEXT)
    )(1, LATENTS)
    dropped = FORM.dropped(
        condition,
        image_B=torch.tensor([True, False, True]),
        text_B=torch.tensor([False, False, True]),
    )
    assert dropped.image_embeds_BTD.flatten(1).any(1).tolist() == [False, True, False]
    assert dropped.tokens_BTC.flatten(1).any(1).tolist() == [True, True, False]
    assert torch.equal(dropped.image_embeds_BTD[1], condition.image_embeds_BTD[1])
    assert torch.equal(dropped.tokens_BTC[:2], condition.tokens_BTC[:2])


def test_single_levels_with_and_without_routers():
    for source in (ConditioningSource(IMAGE), ConditioningSource(IMAGE, router(D))):
        for level in range(len(COUNTS)):
            heard = RoutedConditioning(FORM, image=source, level=level)(
                10, LATENTS
            ).image_embeds_BTD
            torch.testing.assert_close(heard, IMAGE.levels_BLTD[:, level], rtol=1e-5, atol=1e-5)


def test_encoders_without_experts_can_be_routed_in_time():
    bare = ExpertStack(IMAGE.output_BTD, IMAGE.levels_BLTD, (1,) * len(COUNTS))
    timed = shaken(router(D, space="off"))
    with_experts = RoutedConditioning(FORM, image=ConditioningSource(IMAGE, timed))(
        77, LATENTS
    ).image_embeds_BTD
    torch.testing.assert_close(
        RoutedConditioning(FORM, image=ConditioningSource(bare, timed))(
            77, LATENTS
        ).image_embeds_BTD,
        with_experts,
    )
    with pytest.raises(UserError, match="experts and got"):
        RoutedConditioning(FORM, image=ConditioningSource(bare, router(D)))(77, LATENTS)
    with pytest.raises(UserError, match="there are none"):
        through_prior(bare, bent, of="experts")
