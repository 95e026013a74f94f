"""Laws of the space routers and of DiffuseRouter: off is the mean, a fresh router changes nothing,
every parameter learns.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from braingen.routing.diffuse_router import DiffuseRouter, from_published
from braingen.routing.space.cross_attention import CrossAttentionSpaceRouter
from braingen.routing.space.gate import GateSpaceRouter
from braingen.routing.space.mean import MeanSpaceRouter
from braingen.routing.space.mixing import MixingSpaceRouter
from braingen.routing.space.self_attention import SelfAttentionSpaceRouter
from braingen.routing.space.weight import WeightSpaceRouter
from braingen.runtime.errors import UserError

B, E, T, D, GRID = 3, 4, 2, 6, 5
SPACES = ["off", "gate_softmax", "gate_sigmoid", "gate_gumbel", "weight", "self", "cross", "mix"]


def fresh() -> dict[str, torch.nn.Module]:
    return {
        "mean": MeanSpaceRouter(),
        "softmax": GateSpaceRouter(E, D),
        "sigmoid": GateSpaceRouter(E, D, gate="sigmoid"),
        "weight": WeightSpaceRouter(E, D, T),
        "query": WeightSpaceRouter(E, D, T, start="query"),
        "self": SelfAttentionSpaceRouter(D),
        "cross": CrossAttentionSpaceRouter(D, grid=GRID),
        "mix": MixingSpaceRouter(D, grid=GRID),
    }


def shaken(router: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(3)
    for parameter in router.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return router


@pytest.fixture
def experts() -> torch.Tensor:
    return torch.randn(B, E, T, D, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def latents() -> torch.Tensor:
    return torch.randn(B, 4, GRID, GRID, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", fresh())
def test_a_fresh_router_gives_the_mean_over_experts(kind, experts, latents):
    torch.testing.assert_close(
        fresh()[kind](experts, latents).embedding_BTD, experts.mean(1), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("kind", ["softmax", "sigmoid", "query", "self", "cross", "mix"])
def test_attention_and_gates_share_out_one(kind, experts, latents):
    weights = shaken(fresh()[kind])(experts, latents).weights_BET
    total = weights.sum((1, 2)) if kind == "cross" else weights.sum(1)
    torch.testing.assert_close(total, torch.ones_like(total))


@pytest.mark.parametrize("kind", ["query", "self", "cross", "mix"])
def test_order_of_experts_does_not_matter_to_attention(kind, experts, latents):
    router, order = shaken(fresh()[kind]), torch.tensor([2, 0, 3, 1])
    here, there = router(experts, latents), router(experts[:, order], latents)
    torch.testing.assert_close(here.embedding_BTD, there.embedding_BTD)
    torch.testing.assert_close(here.weights_BET[:, order], there.weights_BET)


def test_cross_attention_against_torchs_own(experts, latents):
    router = shaken(CrossAttentionSpaceRouter(D, grid=GRID))
    query = router.q_proj(latents.flatten(2)).mean(1, keepdim=True)
    tokens = experts.flatten(1, 2)
    expected = experts.mean(1) + scaled_dot_product_attention(
        query, router.k_proj(tokens), router.v_proj(tokens)
    )
    torch.testing.assert_close(
        router(experts, latents).embedding_BTD, expected, rtol=1e-4, atol=1e-5
    )
    assert router(experts, torch.randn(B, 4, 11, 8)).embedding_BTD.shape == (B, T, D)


def test_cross_attention_needs_something_to_ask_with(experts):
    with pytest.raises(UserError, match="latents"):
        CrossAttentionSpaceRouter(D, grid=GRID)(experts)
    assert CrossAttentionSpaceRouter(D, grid=GRID, learned_query=True)(
        experts
    ).embedding_BTD.shape == (B, T, D)


def test_mixing_gives_the_mixture_it_reports_and_no_more(experts, latents):
    router = shaken(MixingSpaceRouter(D, grid=GRID))
    out = router(experts, latents)
    torch.testing.assert_close((experts * out.weights_BET[..., None]).sum(1), out.embedding_BTD)
    assert (out.weights_BET - 1 / E).abs().max() > 0.01
    torch.testing.assert_close(out.weights_BET[:, :, 0], out.weights_BET[:, :, 1])
    alike = experts[:, :1].expand_as(experts)
    torch.testing.assert_close(
        router(alike, latents).embedding_BTD, alike[:, 0]
    )  # where all say the same, that is heard
    with pytest.raises(UserError, match="latents"):
        router(experts)


def test_gumbel_gate_takes_one_expert_per_token(experts):
    router = shaken(GateSpaceRouter(E, D, gate="gumbel"))
    for mode in (router.train(), router.eval()):
        weights = mode(experts, generator=torch.Generator().manual_seed(0)).weights_BET
        assert torch.allclose(
            weights.sort(1).values, torch.tensor([0.0, 0, 0, 1])[None, :, None], atol=1e-6
        )


def routed(**settings) -> DiffuseRouter:
    torch.manual_seed(0)
    sizes = {
        "num_experts": (2, 3, 4),
        "clip_emb_dim": D,
        "clip_seq_dim": T,
        "time_hidden_dim": 8,
        "time_embedding_dim": 16,
    }
    return DiffuseRouter(**sizes | {"time_context_size": GRID, "space_grid": GRID} | settings)


@pytest.fixture
def levels() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(B, number, T, D, generator=generator) for number in (2, 3, 4)]


T_B = torch.tensor([900, 400, 10])


def test_off_is_exactly_the_mean_over_levels_and_experts(levels):
    out = routed(time="off", space="off")(levels, T_B)
    assert torch.equal(out.embedding_BTD, torch.stack([x.mean(1) for x in levels], 1).mean(1))


@pytest.mark.parametrize("time", ["mlp", "attention"])
@pytest.mark.parametrize("space", [space for space in SPACES if space != "gate_gumbel"])
def test_fresh_routers_change_nothing(time, space, levels, latents):
    unrouted = torch.stack([x.mean(1) for x in levels], 1).mean(1)
    out = routed(time=time, space=space, time_context=True)(levels, T_B, latents)
    torch.testing.assert_close(out.embedding_BTD, unrouted, rtol=1e-5, atol=1e-5)
    assert [tuple(use.shape) for use in out.routing.expert_weights] == [(B, 2), (B, 3), (B, 4)]
    torch.testing.assert_close(out.routing.level_weights_BL, torch.full((B, 3), 1 / 3))


@pytest.mark.parametrize("choice", ["soft", "hard"])
@pytest.mark.parametrize("time", ["mlp", "attention"])
@pytest.mark.parametrize("space", SPACES)
def test_every_parameter_learns_within_two_steps(time, space, choice, levels, latents):
    router = routed(time=time, space=space, time_choice=choice, time_context=True).train()
    optimizer = torch.optim.SGD(router.parameters(), 0.5)
    before = {name: p.detach().clone() for name, p in router.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    # enough samples that a hard choice takes every level in both steps
    levels, t_B, latents = (
        [x.repeat(16, 1, 1, 1) for x in levels],
        T_B.repeat(16),
        latents.repeat(16, 1, 1, 1),
    )
    target = torch.randn(16 * B, T, D, generator=generator)
    seen: set[str] = set()
    for _ in range(2):
        optimizer.zero_grad()
        (
            router(levels, t_B, latents, generator=generator).embedding_BTD - target
        ).square().mean().backward()
        seen |= {
            name
            for name, p in router.named_parameters()
            if p.grad is not None and p.grad.abs().sum() > 0
        }
        optimizer.step()
    assert seen == set(before)
    assert all(not torch.equal(p, before[name]) for name, p in router.named_parameters())


def test_batch_equals_one_by_one(levels, latents):
    router = shaken(routed(time="attention", space="cross", time_context=True)).eval()
    whole = router(levels, T_B, latents).embedding_BTD
    single = [
        router([x[i : i + 1] for x in levels], T_B[i : i + 1], latents[i : i + 1]).embedding_BTD
        for i in range(B)
    ]
    torch.testing.assert_close(whole, torch.cat(single), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("time", ["mlp", "attention"])
@pytest.mark.parametrize("space", ["gate_softmax", "self", "cross", "mix"])
def test_half_precision_agrees(dtype, time, space, levels, latents):
    router = routed(time=time, space=space, time_context=True, time_prior="multiply")
    for parameter in router.parameters():
        parameter.data = 0.2 * torch.randn(
            parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())
        )
    full = router(levels, T_B, latents).embedding_BTD
    half = router.to(dtype)([x.to(dtype) for x in levels], T_B, latents.to(dtype)).embedding_BTD
    assert half.dtype == dtype
    torch.testing.assert_close(half.float(), full, rtol=0.05, atol=0.05)


def test_one_level_alone_is_that_level(levels, latents):
    router = routed(time="attention", space="cross")
    out = router(levels, T_B, latents, level=1)
    torch.testing.assert_close(out.embedding_BTD, levels[1].mean(1), rtol=1e-5, atol=1e-5)
    assert out.routing.level_weights_BL.tolist() == [[0, 1, 0]] * B


@pytest.mark.parametrize(
    ("time", "space", "options"),
    [
        ("attention", "cross", {"time_choice": "hard"}),
        (
            "attention",
            "off",
            {"time_context": True, "level_output": "sum", "time_prior": "multiply"},
        ),
        ("mlp", "gate_softmax", {"time_layers": 1, "time_temperature": 0.7}),
        ("mlp", "gate_sigmoid", {"time_prior": "published", "time_prior_sigma": 0.5}),
        ("fixed", "gate_gumbel", {"num_train_timesteps": 500}),
        ("fixed", "weight", {}),
        ("off", "self", {"space_temperature": 0.5}),
        ("off", "off", {}),
    ],
)
def test_saved_and_loaded_routers_route_alike(time, space, options, tmp_path, levels, latents):
    router = shaken(routed(time=time, space=space, **options)).eval()
    router.save_pretrained(tmp_path)
    again = DiffuseRouter.from_pretrained(tmp_path)
    weights = {"diffusion_pytorch_model.safetensors"} if router.state_dict() else set()
    assert {path.name for path in tmp_path.iterdir()} == {"config.json"} | weights
    assert torch.equal(
        again(levels, T_B, latents).embedding_BTD, router(levels, T_B, latents).embedding_BTD
    )


def test_published_sizes():
    with torch.device("meta"):
        plain = DiffuseRouter(space="off")
        cross = DiffuseRouter(space="cross")
    assert sum(p.numel() for p in plain.parameters()) == 249_600
    assert sum(p.numel() for p in cross.parameters()) == 249_600 + 4 * (4096 * 1280 + 2 * 1280**2)


def test_published_keys_load_and_what_is_idle_is_named():
    ours = routed(time="mlp", space="self").state_dict()
    theirs = ours | {f"space_routers.{level}.key_linear.bias": torch.randn(D) for level in range(3)}
    kept, idle = from_published(theirs)
    assert set(kept) == set(ours) and len(idle) == 3


def test_wrong_layouts_and_words_are_refused(levels, latents):
    with pytest.raises(UserError, match=r"\[2, 3, 4\] experts and got \[2, 3\]"):
        routed()(levels[:2], T_B, latents)
    with pytest.raises(UserError, match="'sideways'"):
        routed(time="sideways")
    with pytest.raises(UserError, match="'sideways'"):
        routed(space="sideways")
