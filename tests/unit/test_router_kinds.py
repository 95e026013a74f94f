"""Kinds of routers: a new one is a class and a line in a registry, and nothing goes by the names of
the old ones.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from braingen.config import Config, load_config
from braingen.config.describe import condition
from braingen.config.names import fields_of
from braingen.routing.diffuse_router import DiffuseRouter
from braingen.routing.space_router import SPACE_ROUTERS, SpaceRouter, SpaceRouting, SpaceSettings
from braingen.routing.time_router import TIME_ROUTERS, TimeRouter, TimeRouting, TimeSettings
from braingen.runtime.errors import UserError
from braingen.training import diffusion as finetune


class Free(TimeRouter):
    """A time router that nobody knew of: one free number per level, the same at all times."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.score = nn.Parameter(torch.zeros(levels))

    @classmethod
    def build(cls, settings: TimeSettings) -> Free:
        return cls(settings.levels)

    def forward(
        self,
        t_B: Tensor,
        latents_BCHW: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> TimeRouting:
        weights_BL = self.score.softmax(0).expand(len(t_B), -1)
        return TimeRouting(weights_BL, weights_BL)


class First(SpaceRouter):
    """A space router that nobody knew of: the first expert, and the latents' mean on top."""

    reads_latents = True

    def forward(
        self,
        experts_BETD: Tensor,
        latents_BCHW: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> SpaceRouting:
        assert latents_BCHW is not None
        use_BET = torch.zeros(experts_BETD.shape[:3])
        use_BET[:, 0] = 1
        return SpaceRouting(experts_BETD[:, 0] + latents_BCHW.mean(), use_BET)


def config_with(**router: Any) -> Config:
    """A configuration with settings of section router, names of kinds unchecked."""
    config = load_config()
    return config.model_copy(update={"router": config.router.model_copy(update=router)})


def losses(config: Config, levels: int = 3) -> tuple[dict[str, Tensor], DiffuseRouter]:
    """The terms of a fine-tuning step with an image and a text router and a U-Net that guesses
    nothing; the image router.
    """
    routers = [finetune.router_of(config, (2,) * levels, (1, 8), 8, 1000) for _ in range(2)]
    experts = [torch.zeros(4, 2, 1, 8)] * levels

    def unet(noisy_BChw: Tensor, t_B: Tensor, *_: Any) -> tuple[Tensor, tuple[Any, ...]]:
        return torch.zeros_like(noisy_BChw), tuple(
            router(experts, t_B, noisy_BChw).routing for router in routers
        )

    latents = torch.ones(4, 4, 8, 8)
    off = torch.zeros(4, dtype=torch.bool)
    drawn = finetune.StepDraws(
        torch.tensor([10, 300, 600, 990]), torch.randn(4, 4, 8, 8), off, off, torch.zeros(4, 1)
    )
    parts = SimpleNamespace(
        alphas_cumprod=torch.linspace(0.999, 0.01, 1000), prediction_type="epsilon"
    )
    reads = {"image": torch.zeros(4, 2, 1, 8), "text": torch.zeros(4, 2, 1, 8)}
    found = finetune._losses(unet, latents, reads, drawn, parts, config, torch.Generator())  # type: ignore[arg-type]
    return found.terms, routers[0]


def test_the_registries_are_the_names_that_can_be_configured() -> None:
    for field, registry in (("time", TIME_ROUTERS), ("space", SPACE_ROUTERS)):
        assert list(get_args(fields_of("router")[field].annotation)) == list(registry)


@pytest.mark.parametrize("time", TIME_ROUTERS)
def test_guidance_acts_on_every_time_router_that_has_weights(time: str) -> None:
    terms, router = losses(config_with(time=time))
    learned = router.time_router is not None and any(True for _ in router.time_router.parameters())
    assert ("guidance" in terms) == learned
    refused = []
    try:
        load_config(None, {"router.time": time, "router.kl_scale": "0.5"})
    except UserError as error:
        refused.append(str(error))
    assert bool(refused) != learned  # what is accepted acts, what does not act is refused


def test_guidance_acts_on_a_new_kind_of_time_router(monkeypatch) -> None:
    monkeypatch.setitem(TIME_ROUTERS, "free", Free)
    terms, router = losses(config_with(time="free", kl_scale=2.0))
    single, _ = losses(config_with(time="free", kl_scale=1.0))
    assert terms["guidance"] > 0 and torch.isclose(terms["guidance"], 2 * single["guidance"])
    terms["guidance"].backward()
    assert router.time_router.score.grad.abs().sum() > 0
    assert "guidance" not in losses(config_with(time="free", kl_scale=0.0))[0]
    wide, _ = losses(config_with(time="free", kl_scale=1.0, kl_sigma=9.0))
    assert (
        wide["guidance"] < single["guidance"]
    )  # even weights are nearly what a wide Gaussian asks for


def test_a_new_kind_of_space_router_is_built_saved_and_loaded(monkeypatch, tmp_path) -> None:
    built: list[SpaceSettings] = []

    def make(settings: SpaceSettings) -> SpaceRouter:
        built.append(settings)
        return First()

    monkeypatch.setitem(SPACE_ROUTERS, "first", make)
    router = finetune.router_of(config_with(time="mlp", space="first"), (2, 3), (1, 8), 16, 1000)
    assert [(each.experts, each.clip_emb_dim, each.grid) for each in built] == [
        (2, 8, 16),
        (3, 8, 16),
    ] and router.reads_experts
    experts = [torch.randn(1, count, 1, 8) for count in (2, 3)]
    latents = torch.ones(1, 4, 16, 16)
    out = router(experts, torch.tensor([5.0]), latents)
    torch.testing.assert_close(out.embedding_BTD, (experts[0][:, 0] + experts[1][:, 0]) / 2 + 1)
    assert [use.tolist() for use in out.routing.expert_weights] == [[[1, 0]], [[1, 0, 0]]]
    router.save_pretrained(tmp_path)
    again = DiffuseRouter.from_pretrained(tmp_path)
    torch.testing.assert_close(
        again(experts, torch.tensor([5.0]), latents).embedding_BTD, out.embedding_BTD
    )


@pytest.mark.parametrize("space", SPACE_ROUTERS)
def test_the_grid_counts_for_the_routers_that_see_the_latents(space: str) -> None:
    router = SPACE_ROUTERS[space](SpaceSettings(2, 8))
    given = {"router.space": space, "router.space_grid": "8"}
    if router.reads_latents:
        assert load_config(None, given).router.space_grid == 8 and space in condition(
            "router", "space_grid"
        )
    else:
        with pytest.raises(UserError, match=r"router\.space_grid = 8 has no effect"):
            load_config(None, given)
    experts_BETD, latents = torch.randn(2, 2, 3, 8), torch.randn(2, 4, 64, 64)
    use_BET = router(experts_BETD, latents).weights_BET
    if router.use_sums_over_tokens:
        torch.testing.assert_close(use_BET.sum(dim=(1, 2)), torch.ones(2))
    else:
        torch.testing.assert_close(use_BET.sum(dim=1), torch.ones(2, 3))


def test_a_kind_that_is_not_registered_names_those_that_are() -> None:
    with pytest.raises(
        UserError, match="time is 'nothing'; allowed are 'off', 'fixed', 'mlp', 'attention'"
    ):
        DiffuseRouter(time="nothing")
    with pytest.raises(UserError, match="space is 'nothing'; allowed are 'off', 'gate_softmax'"):
        DiffuseRouter(space="nothing")
