"""The diffusion prior: its schedule against closed forms, its parts against loops, its sampler against an exact answer."""

from __future__ import annotations

import math

import numpy as np
from parity.published import noise_in, start_of
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import braingen  # noqa: F401  (before diffusers: it guards the import of torchvision)
from braingen.brain.prior import DiffusionPrior, PriorDraws
from braingen.brain.prior_network import GainNorm, PriorAttention, PriorNetwork, RelativePosition, rotate
from braingen.brain.prior_published import PUBLISHED_PRIOR, network_state, settings_of
from braingen.brain.prior_schedule import NoiseSchedule, betas_of
from braingen.errors import UserError

pytestmark = pytest.mark.slow  # left out of `make quick`


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed))


def small(**settings) -> DiffusionPrior:
    torch.manual_seed(0)
    return DiffusionPrior(**({"dim": 16, "num_tokens": 2, "depth": 2, "dim_head": 8, "timesteps": 20} | settings))


@pytest.fixture
def prior() -> DiffusionPrior:
    return small().eval()


# the schedule


def test_cosine_schedule_is_its_closed_form_until_betas_are_clipped():
    schedule = NoiseSchedule(100)
    t = np.arange(1, 101) / 100
    exact = np.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    np.testing.assert_allclose(schedule.kept[:-1], exact[:-1], rtol=1e-10)
    assert schedule.betas[-1] == 0.999


@pytest.mark.parametrize("name", ["cosine", "linear", "quadratic", "sigmoid", "jsd"])
def test_schedules_lose_signal_step_by_step(name):
    betas = betas_of(name, 100)
    assert betas.shape == (100,) and (betas > 0).all() and (betas <= 1).all()
    kept = np.cumprod(1 - betas)
    assert (np.diff(kept) < 0).all()


def test_noised_has_the_variance_it_should_and_can_be_undone():
    schedule = NoiseSchedule(20)
    start, noise = normal(20, 3, 5000, seed=1), normal(20, 3, 5000, seed=2)
    times = torch.arange(20)
    noised = schedule.noised(start, times, noise)
    torch.testing.assert_close(noised.flatten(1).var(1), torch.ones(20), atol=0.03, rtol=0)
    torch.testing.assert_close(noise_in(schedule, noised, times, start), noise, atol=1e-4, rtol=1e-4)
    early = slice(0, 15)  # the last times hold hardly any signal to recover
    torch.testing.assert_close(start_of(schedule, noised, times, noise)[early], start[early], atol=1e-4, rtol=1e-4)
    velocity = schedule.velocity(start, times, noise)
    signal = torch.from_numpy(np.sqrt(schedule.kept)).float()[:, None, None]
    torch.testing.assert_close(signal * noised - (1 - signal**2).sqrt() * velocity, start, atol=1e-4, rtol=1e-4)


def test_all_steps_with_eta_one_are_ancestral_sampling():
    """DDIM with every step and eta 1 against the posterior of the forward process, which the published full sampler is made of."""
    schedule = NoiseSchedule(50)
    for ours, ancestral in zip(schedule.plan(50), schedule.plan(50, rule="published"), strict=True):
        assert ours.time == ancestral.time
        np.testing.assert_allclose(ours[1:], ancestral[1:], atol=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 3, 7, 30, 100])
def test_sampling_turns_gaussian_data_into_gaussian_data(steps, eta):
    """For data N(0, 1) the best prediction is sqrt(kept) x; with many steps the variance then stays 1."""
    schedule = NoiseSchedule(100)
    plan = schedule.plan(steps, eta)
    assert len(plan) == steps and plan[0].time == 99 and plan[-1].noise == 0
    variance = 1.0
    for step in plan:
        variance = (step.start * math.sqrt(schedule.kept[step.time]) + step.sample) ** 2 * variance + step.noise**2
        assert variance <= 1 + 1e-9  # never more than the data's
    if steps == 100:
        assert variance > 0.9


def test_published_times_start_below_the_top_and_miss_a_call():
    plan = NoiseSchedule(100).plan(30, rule="published")
    assert len(plan) == 29 and plan[0].time == 96 and plan[-1].time == 2


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"steps": 0}, "steps"),
        ({"steps": 21}, "1 to 20"),
        ({"steps": 5, "eta": 1.5}, "eta"),
        ({"steps": 1, "rule": "published"}, "2 or more"),
    ],
)
def test_impossible_plans_are_refused(settings, word):
    with pytest.raises(UserError, match=word):
        NoiseSchedule(20).plan(**settings)


def test_unknown_schedules_are_refused():
    with pytest.raises(UserError, match="cosine, linear"):
        NoiseSchedule(20, "cosin")
    with pytest.raises(UserError, match="at least 1"):
        NoiseSchedule(0)


# the network


def test_rotation_makes_products_depend_on_distance_only():
    q, k = normal(1, 8, seed=1), normal(1, 8, seed=2)
    at = [rotate(x.expand(12, 8), 6) for x in (q, k)]
    products = at[0] @ at[1].T
    for distance in range(-5, 6):
        along = torch.diagonal(products, distance)
        torch.testing.assert_close(along, along[:1].expand_as(along), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(at[0][:, 6:], q[:, 6:].expand(12, 2))


def test_relative_positions_tell_sides_apart_and_the_null_key():
    buckets = RelativePosition(2).buckets(200)
    null, pairs = buckets[:, 0], buckets[:, 1:]
    assert (null == 16).all() and not (pairs == 16).any()
    assert (pairs.tril() < 16).all() and (pairs.triu(1)[torch.ones(200, 200).triu(1).bool()] > 16).all()
    for i, j in [(5, 5), (9, 3), (3, 9), (150, 60)]:
        assert pairs[i, j] == pairs[i + 7, j + 7]
    published = RelativePosition(2, "published").buckets(10)
    assert (published[torch.ones(10, 11).triu(0).bool()] == 0).all()  # everything from the query's own key position on
    assert published[9].tolist() == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0]


@pytest.mark.parametrize("causal", [False, True])
def test_attention_against_a_loop(causal):
    torch.manual_seed(0)
    attention = PriorAttention(12, heads=3, dim_head=4, causal=causal).double()
    x, bias = torch.randn(2, 5, 12, dtype=torch.float64), torch.randn(3, 5, 6, dtype=torch.float64)
    inside = attention.norm_in(x)
    k, v = attention.key_value(inside).chunk(2, -1)
    k = rotate(k, 4)
    heard = torch.zeros(2, 5, 12, dtype=torch.float64)
    for b in range(2):
        keys = [attention.null_key_value[0], *k[b]]
        values = torch.stack([attention.null_key_value[1], *v[b]])
        for a in range(3):
            q = rotate(attention.queries(inside)[b, :, 4 * a : 4 * a + 4], 4)
            for n in range(5):
                seen = n + 2 if causal else 6
                logits = torch.stack([16 * nn.functional.cosine_similarity(q[n], key, dim=0) for key in keys]) + bias[a, n]
                heard[b, n, 4 * a : 4 * a + 4] = logits[:seen].softmax(0) @ values[:seen]
    torch.testing.assert_close(attention(x, bias), attention.norm_out(attention.out(heard)))


def test_norms():
    x = normal(3, 8) - 5  # all negative
    torch.testing.assert_close(GainNorm(8)(x), nn.LayerNorm(8)(x))
    published = GainNorm(8, "published", by_largest=True)(x)
    torch.testing.assert_close(published, -nn.LayerNorm(8)(x), atol=1e-2, rtol=0)  # the sign that flips
    torch.testing.assert_close(GainNorm(8, "published")(x.double()), nn.LayerNorm(8, eps=1e-3).double()(x.double()))


def test_the_published_size_has_the_published_parameters():
    with torch.device("meta"):
        counts = [
            sum(p.numel() for p in DiffusionPrior(**settings).parameters())
            for settings in ({"dim": 1280}, {"dim": 1664, "num_tokens": 256})
        ]
    # published: 152,714,368 and 259,865,216, which count 16 rotary frequencies; those are constants and not stored here
    assert counts == [152_714_368 - 16, 259_865_216 - 16]


@pytest.mark.parametrize("mode", ["none", "pos_emb", "token", "all_pos_emb"])
@pytest.mark.parametrize(("tokens", "target"), [(1, 1), (3, 3), (5, 2)])
def test_any_number_of_tokens(mode, tokens, target):
    prior = small(num_tokens=tokens, num_tokens_target=target, learned_query_mode=mode)
    brain, clean = normal(3, tokens, 16), normal(3, target, 16)
    loss = prior(brain, clean, generator())
    assert loss.prediction_BTD.shape == clean.shape
    assert prior.sample(brain, 4, generator=generator()).shape == clean.shape
    assert prior.predict(brain).shape == clean.shape


@pytest.mark.parametrize("dim", [2, 33])
def test_odd_widths_are_refused(dim):
    with pytest.raises(UserError, match="even"):
        small(dim=dim)


@pytest.mark.parametrize("dim", [16, 128])
def test_small_widths_have_a_head(dim):
    assert small(dim=dim, dim_head=52).network.layers[0]["attention"].heads == max(1, dim // 52)


def test_every_parameter_is_trained():
    prior = small(causal=False).train()
    optimizer = torch.optim.SGD(prior.parameters(), 0.1)
    moved = {name: False for name, _ in prior.named_parameters()}
    for seed in range(2):
        optimizer.zero_grad()
        prior(normal(16, 2, 16), normal(16, 2, 16, seed=1), generator(seed)).loss.backward()
        for name, parameter in prior.named_parameters():
            moved[name] |= parameter.grad is not None and bool((parameter.grad != 0).any())
        optimizer.step()
    assert all(moved.values()), [name for name, value in moved.items() if not value]


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.03), (torch.float16, 0.004)])
def test_half_precision_agrees(prior, dtype, bound):
    network, noisy, brain, times = prior.network, normal(8, 2, 16), normal(8, 2, 16, seed=1), torch.arange(8)
    exact = network(noisy, times, brain)
    half = network.to(dtype)(noisy.to(dtype), times, brain.to(dtype))
    assert half.dtype == dtype
    assert (half.float() - exact).norm() / exact.norm() < bound
    assert prior.sample(brain.to(dtype), 3, generator=generator()).dtype == dtype


# training


def test_draws_are_seeded_and_recorded_draws_replay(prior):
    prior.train()
    brain, clean = normal(4, 2, 16), normal(4, 2, 16, seed=1)
    one, two = prior.loss(brain, clean, generator(3)), prior.loss(brain, clean, generator(3))
    replayed = prior.loss(brain, clean, draws=prior.draw(4, generator(3)))
    assert torch.equal(one.prediction_BTD, two.prediction_BTD) and torch.equal(one.prediction_BTD, replayed.prediction_BTD)
    torch.testing.assert_close(one.loss, ((one.prediction_BTD - clean) ** 2).mean())
    assert not torch.equal(prior.loss(brain, clean, generator(4)).prediction_BTD, one.prediction_BTD)


def test_conditions_are_dropped_while_training_only_and_for_each_by_itself(prior):
    brain, clean = normal(2, 2, 16), normal(2, 2, 16, seed=1)
    times, noise = torch.tensor([3, 12]), normal(2, 2, 16, seed=2)

    def predicted(condition: list[float], image: list[float], model: DiffusionPrior = prior) -> torch.Tensor:
        return model(brain, clean, draws=PriorDraws(times, noise, torch.tensor(condition), torch.tensor(image))).prediction_BTD

    kept = predicted([0, 0], [0, 0])
    assert torch.equal(predicted([0.9, 0.9], [0.9, 0.9]), kept)  # eval mode
    prior.train()
    for place, (condition, image) in enumerate([([0.81, 0.79], [0, 0]), ([0, 0], [0.81, 0.79])]):
        dropped = predicted(condition, image)
        assert not torch.allclose(dropped[0], kept[0]) and torch.allclose(dropped[1], kept[1]), place
    published = small(drop_in_eval=True).eval()
    assert not torch.allclose(predicted([0.9, 0], [0, 0], published)[0], predicted([0, 0], [0, 0], published)[0])


def test_the_prior_learns():
    """The brain names one of four embeddings: both ways of asking find it."""
    prior = small(num_tokens=1, depth=1).train()
    codes, embeddings = normal(4, 16, seed=5), normal(4, 16, seed=6)
    optimizer = torch.optim.AdamW(prior.parameters(), 1e-2)
    source = generator(1)
    for _ in range(60):
        which = torch.randint(4, (64,), generator=source)
        brain = codes[which] + 0.3 * torch.randn(64, 16, generator=source)
        optimizer.zero_grad()
        prior(brain[:, None], embeddings[which][:, None], source).loss.backward()
        optimizer.step()
    prior.eval()
    which = torch.randint(4, (200,), generator=source)
    brain = (codes[which] + 0.3 * torch.randn(200, 16, generator=source))[:, None]
    for found in (
        prior.predict(brain),
        prior.sample(brain, 5, generator=generator(2)),
        prior.sample(brain, 5, eta=0.0, generator=generator(2)),
    ):
        nearest = torch.cdist(found[:, 0], embeddings).argmin(1)
        assert (nearest == which).float().mean() > 0.85  # chance is 0.25


# sampling


def test_a_sample_does_not_depend_on_its_batch(prior):
    brain, noise = normal(6, 2, 16), normal(6, *prior.noise_shape(7), seed=3)
    together = prior.sample(brain, 7, noise=noise)
    for rows in ([0], [4, 1], [5, 0, 2]):
        torch.testing.assert_close(prior.sample(brain[rows], 7, noise=noise[rows]), together[rows], atol=1e-4, rtol=1e-4)


def test_sampling_is_seeded_and_eta_zero_needs_its_start_only(prior):
    brain = normal(3, 2, 16)
    assert torch.equal(prior.sample(brain, 6, generator=generator(1)), prior.sample(brain, 6, generator=generator(1)))
    assert not torch.equal(prior.sample(brain, 6, generator=generator(1)), prior.sample(brain, 6, generator=generator(2)))
    assert prior.noise_shape(6) == (6, 2, 16) and prior.noise_shape(6, eta=0.0) == (1, 2, 16)
    noise = normal(3, 6, 2, 16)
    other = torch.cat([noise[:, :1], normal(3, 5, 2, 16, seed=8)], dim=1)
    torch.testing.assert_close(prior.sample(brain, 6, noise=noise, eta=0.0), prior.sample(brain, 6, noise=other, eta=0.0), rtol=0, atol=0)
    assert not torch.equal(prior.sample(brain, 6, noise=noise), prior.sample(brain, 6, noise=other))


@pytest.mark.parametrize("null", ["condition", "both"])
def test_guidance_in_one_pass_is_guidance_in_two(prior, null):
    network = prior.network
    noisy, brain, times = normal(3, 2, 16), normal(3, 2, 16, seed=1), torch.tensor([1, 9, 19])
    none = torch.zeros(3, dtype=torch.bool)
    full, without = network(noisy, times, brain), network(noisy, times, brain, none, none if null == "both" else None)
    torch.testing.assert_close(network.guided(noisy, times, brain, 2.5, null), without + 2.5 * (full - without), atol=1e-4, rtol=1e-4)
    assert torch.equal(network.guided(noisy, times, brain, 1.0, null), full)


@pytest.mark.parametrize(("sampling", "calls"), [("consistent", 10), ("published", 9)])
def test_cost_is_as_stated(sampling, calls):
    prior = small(sampling=sampling).eval()
    sizes = []
    prior.network.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    prior.sample(normal(3, 2, 16), 10, generator=generator())
    assert sizes == [6] * calls and len(prior.plan(10)) == calls
    sizes.clear()
    prior.sample(normal(3, 2, 16), 10, 1.0, generator())
    assert sizes == [3] * calls


@pytest.mark.parametrize(("settings", "giga"), [({"dim": 1280}, 0.766), ({"dim": 1664, "num_tokens": 256}, 230.9)])
def test_cost_of_a_call_at_full_size(settings, giga):
    """Floating point operations of one row, in 10^9 (docs/models.md); guidance doubles them."""
    with torch.device("meta"):
        prior = DiffusionPrior(**settings).eval()
        condition = torch.empty(1, settings.get("num_tokens", 1), settings["dim"])
        counts = []
        for call in (
            lambda: prior.predict(condition),
            lambda: prior.network.guided(condition, torch.zeros(1, dtype=torch.int64), condition, 1.5),
        ):
            with FlopCounterMode(display=False) as counter:
                call()
            counts.append(counter.get_total_flops() / 1e9)
    assert counts == [pytest.approx(giga, rel=1e-3), pytest.approx(2 * giga, rel=1e-3)]


def test_one_pass_prediction_is_deterministic_and_differentiable(prior):
    brain = normal(3, 2, 16).requires_grad_()
    one, two = prior.predict(brain), prior.train().predict(brain)
    assert torch.equal(one, two)
    (gradient,) = torch.autograd.grad(one.square().sum(), brain)
    assert (gradient != 0).all()


def test_compiled_network_samples_the_same():
    prior = small(depth=1).eval()
    brain, noise = normal(3, 2, 16), normal(3, *prior.noise_shape(4))
    plain = prior.sample(brain, 4, noise=noise)
    prior.network.compile(fullgraph=True, backend="eager")
    torch.testing.assert_close(prior.sample(brain, 4, noise=noise), plain, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_network_can_be_exported():
    prior = small(depth=1).eval()
    inputs = (normal(3, 2, 16), torch.tensor([1, 9, 19]), normal(3, 2, 16, seed=1))
    program = torch.export.export(prior.network, inputs, dynamic_shapes=({0: torch.export.Dim("batch", min=2)},) * 3)
    more = (normal(5, 2, 16), torch.arange(5), normal(5, 2, 16, seed=1))
    torch.testing.assert_close(program.module()(*more), prior.network(*more), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda prior: prior.sample(torch.zeros(2, 2, 16), 5), "needs a generator"),
        (lambda prior: prior.sample(torch.zeros(2, 3, 16), 5, generator=generator()), "B x 2 x 16"),
        (lambda prior: prior.sample(torch.zeros(2, 2, 16), 5, noise=torch.zeros(2, 4, 2, 16)), r"\(2, 5, 2, 16\)"),
        (lambda prior: prior.loss(torch.zeros(2, 2, 16), torch.zeros(2, 2, 16)), "needs a generator"),
        (lambda prior: prior.loss(torch.zeros(2, 2, 16), torch.zeros(2, 1, 16), generator()), "target"),
        (lambda prior: small(condition_drop_prob=0).sample(torch.zeros(2, 2, 16), 5, generator=generator()), "without dropping"),
        (lambda prior: small(image_drop_prob=0).predict(torch.zeros(2, 2, 16)), "image_drop_prob"),
        (lambda prior: small(image_drop_prob=1.5), "0 to 1"),
        (lambda prior: PriorNetwork(16, learned_query_mode="some"), "pos_emb"),
    ],
)
def test_mistakes_are_told(prior, call, word):
    with pytest.raises(UserError, match=word):
        call(prior)


# saving, and published names


def test_saved_and_loaded_samples_the_same(prior, tmp_path):
    prior = small(sampling="published", norm="published").eval()
    brain, noise = normal(2, 2, 16), normal(2, *prior.noise_shape(5))
    prior.save_pretrained(tmp_path)
    assert (tmp_path / "config.json").is_file() and list(tmp_path.glob("*.safetensors"))
    again = DiffusionPrior.from_pretrained(tmp_path).eval()
    assert torch.equal(again.sample(brain, 5, noise=noise), prior.sample(brain, 5, noise=noise))
    assert not [name for name, _ in prior.named_buffers()]  # nothing but trained weights


def published_names(prior: DiffusionPrior) -> dict[str, torch.Tensor]:
    """Its weights as the published implementation names them, tables and frequencies included."""
    layer = {
        "attention.norm_in.gain": "0.norm.g",
        "attention.null_key_value": "0.null_kv",
        "attention.queries.weight": "0.to_q.weight",
        "attention.key_value.weight": "0.to_kv.weight",
        "attention.out.weight": "0.to_out.0.weight",
        "attention.norm_out.gain": "0.to_out.1.g",
        "feed_forward.norm_in.gain": "1.0.g",
        "feed_forward.value_gate.weight": "1.1.weight",
        "feed_forward.out.weight": "1.5.weight",
    }
    outside = {
        "learned_query": "learned_query",
        "null_condition": "null_brain_embeds",
        "null_image": "null_image_embed",
        "relative_position.table.weight": "causal_transformer.rel_pos_bias.relative_attention_bias.weight",
        "norm_out.gain": "causal_transformer.norm.g",
        "out.weight": "causal_transformer.project_out.weight",
        **{
            f"time.layers.{place}.{kind}": f"to_time_embeds.0.1.net.{theirs}.{kind}"
            for place, theirs in ((0, "0.0"), (2, "1.0"), (4, "2"))
            for kind in ("weight", "bias")
        },
    }
    named = {"prior.noise_scheduler.betas": torch.from_numpy(prior.schedule.betas).float()}
    for key, value in prior.network.state_dict().items():
        if key.startswith("layers."):
            _, number, rest = key.split(".", 2)
            named[f"prior.net.causal_transformer.layers.{number}.{layer[rest]}"] = value
            named[f"prior.net.causal_transformer.layers.{number}.0.rotary_emb.freqs"] = torch.zeros(4)
        else:
            named[f"prior.net.{outside[key]}"] = value
    return named


def test_published_weights_are_read_back_with_their_settings():
    prior = small(num_tokens=3, num_tokens_target=1, **PUBLISHED_PRIOR)
    named = published_names(prior)
    found = network_state(named)
    assert not found.unknown and len(found.derived) == 3
    again = DiffusionPrior(**settings_of(named))
    again.network.load_state_dict(found.state)
    assert {key: again.config[key] for key in prior.config if not key.startswith("_")} == {
        key: value if key != "heads" else 2 for key, value in prior.config.items() if not key.startswith("_")
    }
    assert all(torch.equal(a, b) for a, b in zip(prior.state_dict().values(), again.state_dict().values(), strict=True))


def test_strange_weights_are_named():
    assert network_state({"prior.net.surprise": torch.zeros(1)}).unknown == ["prior.net.surprise"]
    with pytest.raises(UserError, match="no diffusion prior"):
        settings_of({"prior.net.surprise": torch.zeros(1)})


@pytest.mark.parametrize("settings", [{}, {"causal": True}, {"num_tokens_target": 3}, {"learned_query_mode": "token"}], ids=str)
def test_the_last_layer_is_asked_for_what_is_read_only_and_says_the_same(settings):
    """Of the last layer the places that nobody reads are not computed; read out of the whole sequence, the prediction is the same."""
    network = small(depth=2, **settings).eval().network
    target, brain, times = normal(4, network.num_tokens_target, 16), normal(4, 2, 16, seed=1), torch.tensor([0, 3, 9, 19])
    sizes = []
    network.layers[-1]["feed_forward"].register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[1]))
    found = network(target, times, brain)
    assert sizes == [network.num_tokens_target]
    attend = type(network.layers[-1]["attention"]).forward
    whole = []

    def ask_all(self, x_BND, bias_ANM, asked=None):
        whole.append(attend(self, x_BND, bias_ANM))
        return whole[-1] if asked is None else whole[-1][:, -asked:]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(network.layers[-1]["attention"]), "forward", ask_all)
        torch.testing.assert_close(network(target, times, brain), found)
    assert len(whole) == 2


def test_tables_made_while_nothing_is_trained_serve_a_training():
    """Tensors of inference mode cannot be saved for a backward pass; tables that are kept between calls are none."""
    torch.manual_seed(0)
    network = PriorNetwork(24, num_tokens=1, depth=1, dim_head=8)  # of a width that no other test has
    noisy, times, brain = torch.randn(2, 1, 24), torch.tensor([3, 5]), torch.randn(2, 1, 24)
    with torch.inference_mode():
        before = network(noisy, times, brain)
    after = network(noisy, times, brain)
    after.sum().backward()
    torch.testing.assert_close(after.detach(), before.clone())
    assert all(p.grad is not None for name, p in network.named_parameters() if not name.startswith("null_"))
