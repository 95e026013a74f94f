"""Kinds of routers: a new one is a class and a line in a registry, and nothing goes by the names of
the old ones.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar, get_args

import pytest
import torch
from torch import Tensor, nn

from braingen.config import Config, load_config
from braingen.config.describe import condition
from braingen.config.kinds import SPACE_ROUTERS, TIME_ROUTERS, RouterKind
from braingen.config.names import fields_of
from braingen.routing.base import (
    SpaceRouter,
    SpaceRouting,
    SpaceSettings,
    TimeRouter,
    TimeRouting,
    TimeSettings,
    space_router,
    time_router,
)
from braingen.routing.diffuse_router import DiffuseRouter
from braingen.runtime.errors import UserError
from braingen.runtime.kinds import refuse_unregistered
from braingen.training import diffusion as finetune
from braingen.training import diffusion_step


class Free(TimeRouter):
    """A time router that nobody knew of: one free number per level, the same at all times."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.score = nn.Parameter(torch.zeros(levels))

    @classmethod
    def build(cls, settings: TimeSettings, **options: Any) -> Free:
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
    built: ClassVar[list[SpaceSettings]] = []

    @classmethod
    def build(cls, settings: SpaceSettings, **options: Any) -> First:
        cls.built.append(settings)
        return cls()

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
    drawn = diffusion_step.StepDraws(
        torch.tensor([10, 300, 600, 990]), torch.randn(4, 4, 8, 8), off, off, torch.zeros(4, 1)
    )
    parts = SimpleNamespace(
        alphas_cumprod=torch.linspace(0.999, 0.01, 1000), prediction_type="epsilon"
    )
    decoded = {"image": torch.zeros(4, 2, 1, 8), "text": torch.zeros(4, 2, 1, 8)}
    found = diffusion_step._losses(unet, latents, decoded, drawn, parts, config, torch.Generator())  # type: ignore[arg-type]
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
    monkeypatch.setitem(TIME_ROUTERS, "free", RouterKind(f"{__name__}:Free"))
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
    monkeypatch.setattr(First, "built", [])
    monkeypatch.setitem(SPACE_ROUTERS, "first", RouterKind(f"{__name__}:First"))
    router = finetune.router_of(config_with(time="mlp", space="first"), (2, 3), (1, 8), 16, 1000)
    assert [(each.experts, each.clip_emb_dim, each.grid) for each in First.built] == [
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
    router = space_router(space, SpaceSettings(2, 8))
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
    for setting, table in (("time", TIME_ROUTERS), ("space", SPACE_ROUTERS)):
        allowed = ", ".join(f"'{name}'" for name in table)
        with pytest.raises(UserError, match=f"{setting} is 'nothing'; allowed are {allowed}$"):
            DiffuseRouter(**{setting: "nothing"})


TABLES = [
    (TIME_ROUTERS, TimeRouter, "braingen.routing.time", "TIME_ROUTERS"),
    (SPACE_ROUTERS, SpaceRouter, "braingen.routing.space", "SPACE_ROUTERS"),
]


@pytest.mark.parametrize(("table", "contract", "package", "place"), TABLES)
def test_every_router_in_the_package_has_a_line(table, contract, package, place) -> None:
    refuse_unregistered(table, package, contract, place)
    for name, kind in table.items():
        if not kind.where:
            continue
        without = {key: each for key, each in table.items() if each.where != kind.where}
        with pytest.raises(UserError, match=f"{kind.where} is a .* no line of {place} names") as e:
            refuse_unregistered(without, package, contract, place)
        assert f'add a line with where="{kind.where}"' in str(e.value), name


@pytest.mark.parametrize("name", TIME_ROUTERS)
def test_a_time_routers_line_says_what_its_class_is(name: str) -> None:
    kind = TIME_ROUTERS[name]
    settings = TimeSettings(3, hidden_dim=8, embedding_dim=8, context=kind.latents != "never")
    router = time_router(name, settings)
    assert kind.learned == (router is not None and router.learned)
    if kind.latents == "optional":
        with pytest.raises(UserError, match="reads the latents"):
            router(torch.tensor([5.0]))


@pytest.mark.parametrize("name", SPACE_ROUTERS)
def test_a_space_routers_line_says_what_its_class_is(name: str) -> None:
    kind, router = SPACE_ROUTERS[name], space_router(name, SpaceSettings(2, 8))
    assert kind.learned == any(True for _ in router.parameters())
    assert (kind.latents == "always") == router.reads_latents


class Unfinished(TimeRouter):
    """A time router whose author forgot to say how it is built."""

    def forward(self, t_B, latents_BCHW=None, generator=None) -> TimeRouting:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("where", "sentence"),
    [
        (f"{__name__}:Unfinished", "time router 'new', lacks build: see braingen.routing.base"),
        (f"{__name__}:Missing", "has no Missing: mend the line, or the name of the class"),
        ("braingen.routing.time.missing:Any", r"no file braingen/routing/time/missing\.py"),
        (f"{__name__}:First", r"has to be a subclass of braingen\.routing\.base\.TimeRouter"),
    ],
)
def test_a_line_that_does_not_fit_its_class_is_refused(monkeypatch, where, sentence) -> None:
    monkeypatch.setitem(TIME_ROUTERS, "new", RouterKind(where))
    with pytest.raises(UserError, match=sentence):
        DiffuseRouter(time="new")
