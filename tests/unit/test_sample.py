"""Our denoising loop against diffusers' StableDiffusionXLPipeline, and the laws of its noise and
its batches.

B pictures, N text length, C cross-attention width, D image-embedding width
"""

from __future__ import annotations

from functools import wraps
from typing import get_args

from diffusers import StableDiffusionXLPipeline
from diffusers.schedulers import EulerDiscreteScheduler
import pytest
import torch
from torch import Tensor
from unit.fake_backbone import fake_backbone

from braingen.config.values import Scheduler
from braingen.generation.sampling import (
    decode_latents,
    denoise,
    denoise_from,
    latent_shape,
    predict,
    seeded_generators,
    seeded_noise,
    size_ids,
)
from braingen.pretrained.sdxl import (
    SCHEDULERS,
    Backbone,
    image_embedding_width,
    image_size,
    load_backbone,
    pooled_width,
    scheduler_named,
)
from braingen.runtime.errors import UserError
from braingen.types import Conditioning

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # of diffusers' scheduler
N = 6
STEPS = 3


@pytest.fixture(scope="module")
def fake() -> Backbone:
    return fake_backbone()


@pytest.fixture(scope="module", params=["shipped", "fake"])
def backbone(request, fake) -> Backbone:
    """The tiny components that are shipped (predicting velocity), and random ones with SDXL's own
    scheduler (predicting noise).
    """
    return load_backbone("tiny") if request.param == "shipped" else fake


def random_condition(backbone: Backbone, batch: int, seed: int = 0) -> Conditioning:
    generator = torch.Generator().manual_seed(seed)
    unet = backbone.unet
    tokens_BNC = torch.randn(batch, N, unet.config.cross_attention_dim, generator=generator)
    image_BTD = torch.randn(batch, 1, image_embedding_width(unet), generator=generator)
    return Conditioning(
        tokens_BNC, image_BTD, torch.randn(batch, pooled_width(unet), generator=generator)
    )


def empty_condition(backbone: Backbone, batch: int) -> Conditioning:
    return Conditioning(*(torch.zeros_like(x) for x in random_condition(backbone, batch)[:3]))


def row(condition: Conditioning, number: int) -> Conditioning:
    return Conditioning(*(x[number : number + 1] for x in condition[:3]))


def sides(backbone: Backbone) -> tuple[int, tuple[int, int, int]]:
    size = image_size(backbone.unet, backbone.vae)
    return size, latent_shape(backbone.unet, backbone.vae, size)


class Counting(torch.nn.Module):
    """A U-Net that notes how many rows it is called on."""

    def __init__(self, unet) -> None:
        super().__init__()
        self.unet, self.rows = unet, []

    def forward(self, latents, t, **condition):
        assert (
            len(condition["encoder_hidden_states"])
            == len(condition["added_cond_kwargs"]["time_ids"])
            == len(latents)
        )
        self.rows.append(len(latents))
        return self.unet(latents, t, **condition)


# --- noise ----------------------------------------------------------------------------------------


def test_noise_depends_on_the_image_and_never_on_its_batch():
    ids = [7, 3, 7, 72999]
    noise = seeded_noise(ids, (4, 8, 8), 0, "picture")
    assert noise.shape == (4, 4, 8, 8)
    torch.testing.assert_close(noise[0], noise[2], rtol=0, atol=0)
    for number, image in enumerate(ids):
        torch.testing.assert_close(
            noise[number : number + 1],
            seeded_noise([image], (4, 8, 8), 0, "picture"),
            rtol=0,
            atol=0,
        )


def test_noise_of_other_images_seeds_and_purposes_is_unrelated():
    shape = (4, 32, 32)
    rows = [
        seeded_noise([image], shape, seed, purpose)
        for image, seed, purpose in [(1, 0, "a"), (2, 0, "a"), (1, 1, "a"), (1, 0, "b")]
    ]
    correlations = torch.corrcoef(torch.cat(rows).flatten(1)) - torch.eye(4)
    assert correlations.abs().max() < 0.1  # 4096 numbers each: a standard deviation of 0.016


def test_noise_is_standard_normal_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    noise = seeded_noise(range(50), (4, 16, 16), 3, "picture")
    assert torch.equal(before, torch.get_rng_state())
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02 and noise.dtype == torch.float32


def test_noise_is_the_same_on_every_machine():
    """Pinned, since pictures of earlier runs must be reproducible."""
    first = seeded_noise([46002], (4, 4, 4), 42, "picture").flatten()[:3]
    torch.testing.assert_close(
        first, torch.tensor([-0.827644, 1.188684, 1.995542]), rtol=0, atol=1e-5
    )


# --- against diffusers ----------------------------------------------------------------------------


def pipeline_of(
    backbone: Backbone, scheduler_class=EulerDiscreteScheduler
) -> StableDiffusionXLPipeline:
    parts = dict.fromkeys(
        (
            "text_encoder",
            "text_encoder_2",
            "tokenizer",
            "tokenizer_2",
            "image_encoder",
            "feature_extractor",
        )
    )
    scheduler = scheduler_class.from_config(backbone.scheduler.config)
    pipeline = StableDiffusionXLPipeline(
        vae=backbone.vae, unet=backbone.unet, scheduler=scheduler, add_watermarker=False, **parts
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
@pytest.mark.slow
def test_the_loop_is_diffusers_loop(backbone, guidance_scale):
    """With constant conditioning and no routers: latents after every step, and the picture. One row
    at a time on their side, since the pipeline repeats embeddings of several prompts in a scrambled
    order.
    """
    size, shape = sides(backbone)
    condition, empty = random_condition(backbone, 2), empty_condition(backbone, 2)
    noise = seeded_noise([11, 12], shape, 0, "picture")
    ours: list[Tensor] = []
    latents = denoise(
        backbone.unet,
        backbone.scheduler,
        noise,
        lambda t, noisy: condition,
        empty,
        size=size,
        steps=STEPS,
        guidance_scale=guidance_scale,
        on_step=lambda step, latents, _: ours.append(latents),
    )
    pictures = decode_latents(backbone.vae, latents)
    pipeline = pipeline_of(backbone)
    for number in range(2):
        theirs: list[Tensor] = []
        mine, nothing = row(condition, number), row(empty, number)
        images = (
            [mine.image_embeds_BTD]
            if guidance_scale == 1
            else [torch.cat([nothing.image_embeds_BTD, mine.image_embeds_BTD])]
        )

        def keep(pipeline, step, t, values, kept=theirs):
            kept.append(values["latents"])
            return values

        out = pipeline(
            prompt_embeds=mine.tokens_BTC,
            pooled_prompt_embeds=mine.pooled_BD,
            negative_prompt_embeds=nothing.tokens_BTC,
            negative_pooled_prompt_embeds=nothing.pooled_BD,
            ip_adapter_image_embeds=images,
            latents=noise[number : number + 1].clone(),
            height=size,
            width=size,
            num_inference_steps=STEPS,
            guidance_scale=guidance_scale,
            callback_on_step_end=keep,
            output_type="pt",
        ).images
        assert len(theirs) == len(ours) == STEPS
        for step in range(STEPS):
            torch.testing.assert_close(ours[step][number], theirs[step][0], rtol=0, atol=5e-4)
        torch.testing.assert_close(pictures[number], out[0].float(), rtol=0, atol=5e-4)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_loop_is_diffusers_loop_with_every_scheduler(fake, name):
    """Latents after every step; schedulers that add noise at every step draw it from the picture's
    own generator on both sides.
    """
    size, shape = sides(fake)
    condition, empty, noise = (
        random_condition(fake, 1),
        empty_condition(fake, 1),
        seeded_noise([11], shape, 0, "picture"),
    )
    ours: list[Tensor] = []
    scheduler = scheduler_named(name, fake.scheduler)
    own_step = type(scheduler).step

    @wraps(own_step)  # the loop reads the signature, to see whether a generator is taken
    def step(self, *args, **kwargs):
        out = own_step(self, *args, **kwargs)
        ours.append(out[0])
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(scheduler), "step", step)
        denoise(
            fake.unet,
            scheduler,
            noise,
            lambda t, noisy: condition,
            empty,
            size=size,
            steps=4,
            guidance_scale=3.0,
            generators=seeded_generators([11], 0, "steps"),
        )
    theirs: list[Tensor] = []

    def keep(pipeline, step, t, values):
        theirs.append(values["latents"])
        return values

    pipeline_of(fake._replace(scheduler=scheduler), type(scheduler))(
        prompt_embeds=condition.tokens_BTC,
        pooled_prompt_embeds=condition.pooled_BD,
        negative_prompt_embeds=empty.tokens_BTC,
        negative_pooled_prompt_embeds=empty.pooled_BD,
        ip_adapter_image_embeds=[torch.cat([empty.image_embeds_BTD, condition.image_embeds_BTD])],
        latents=noise.clone(),
        height=size,
        width=size,
        num_inference_steps=4,
        guidance_scale=3.0,
        generator=seeded_generators([11], 0, "steps"),
        callback_on_step_end=keep,
        output_type="latent",
    )
    assert len(ours) == len(theirs) == (7 if name == "heun" else 4)
    for mine, other in zip(ours, theirs):
        torch.testing.assert_close(mine, other, rtol=0, atol=5e-4)


# --- laws -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
@pytest.mark.slow
def test_a_batch_equals_one_by_one(fake, guidance_scale):
    size, shape = sides(fake)
    condition, empty, noise = (
        random_condition(fake, 5),
        empty_condition(fake, 5),
        seeded_noise(range(5), shape, 0, "picture"),
    )
    settings = {"size": size, "steps": STEPS, "guidance_scale": guidance_scale}
    together = denoise(
        fake.unet, fake.scheduler, noise, lambda t, noisy: condition, empty, **settings
    )
    for number in range(5):
        mine = row(condition, number)
        alone = denoise(
            fake.unet,
            fake.scheduler,
            noise[number : number + 1],
            lambda t, noisy, mine=mine: mine,
            row(empty, number),
            **settings,
        )
        torch.testing.assert_close(together[number : number + 1], alone, rtol=0, atol=5e-4)


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.slow
def test_a_batch_equals_one_by_one_with_every_scheduler(fake, name):
    """The noise of ancestral schedulers too belongs to the picture, not to the batch."""
    size, shape = sides(fake)
    condition, empty = random_condition(fake, 3), empty_condition(fake, 3)
    scheduler = scheduler_named(name, fake.scheduler)

    def drawn(rows: list[int]) -> Tensor:
        given, nothing = (Conditioning(*(x[rows] for x in y[:3])) for y in (condition, empty))
        noise, generators = (
            seeded_noise(rows, shape, 0, "picture"),
            seeded_generators(rows, 0, "steps"),
        )
        settings = {"size": size, "steps": 4, "guidance_scale": 3.0, "generators": generators}
        return denoise(fake.unet, scheduler, noise, lambda t, noisy: given, nothing, **settings)

    together = drawn([0, 1, 2])
    for row in range(3):
        torch.testing.assert_close(together[row : row + 1], drawn([row]), rtol=0, atol=5e-4)


@pytest.mark.slow
def test_schedulers_keep_the_models_noise_and_prediction(fake):
    for backbone in (fake, load_backbone("tiny")):
        for name in SCHEDULERS:
            scheduler = scheduler_named(name, backbone.scheduler)
            assert scheduler.config.prediction_type == backbone.scheduler.config.prediction_type
            torch.testing.assert_close(scheduler.alphas_cumprod, backbone.scheduler.alphas_cumprod)
        assert scheduler_named("default", backbone.scheduler) is backbone.scheduler
    assert set(get_args(Scheduler)) == {"default", *SCHEDULERS}
    with pytest.raises(UserError, match="'lms' is not known; allowed are default, euler"):
        scheduler_named("lms", fake.scheduler)


@pytest.mark.parametrize(("guidance_scale", "rows"), [(1.0, 2), (2.0, 4)])
def test_one_call_a_step_with_twice_the_rows_only_under_guidance(fake, guidance_scale, rows):
    size, shape = sides(fake)
    unet = Counting(fake.unet)
    condition = random_condition(fake, 2)
    noise = seeded_noise([1, 2], shape, 0, "picture")
    denoise(
        unet,
        fake.scheduler,
        noise,
        lambda t, noisy: condition,
        empty_condition(fake, 2),
        size=size,
        steps=STEPS,
        guidance_scale=guidance_scale,
    )
    assert unet.rows == [rows] * STEPS


def test_guidance_acts_in_the_first_steps_and_the_others_are_those_of_no_guidance(fake):
    size, shape = sides(fake)
    unet, condition, nothing = (
        Counting(fake.unet),
        random_condition(fake, 2),
        empty_condition(fake, 2),
    )
    latents: list[Tensor] = []
    start = seeded_noise([1, 2], shape, 0, "picture")
    settings = {"size": size, "steps": 4, "on_step": lambda step, x, _: latents.append(x.clone())}
    denoise(
        unet,
        fake.scheduler,
        start,
        lambda t, noisy: condition,
        nothing,
        guidance_scale=3.0,
        guidance_end=0.5,
        **settings,
    )
    assert unet.rows == [4, 4, 2, 2]
    denoise(
        unet,
        fake.scheduler,
        start,
        lambda t, noisy: condition,
        nothing,
        guidance_scale=3.0,
        **settings,
    )
    assert unet.rows[4:] == [4] * 4
    some, whole = latents[:4], latents[4:]
    torch.testing.assert_close(some[1], whole[1])
    assert (some[2] - whole[2]).abs().max() > 1e-3
    ids = size_ids(size, 2, start)
    fake.scheduler.set_timesteps(4)
    later: list[Tensor] = []
    more = {"guidance_scale": 1.0, "on_step": lambda step, x, _: later.append(x.clone())}
    denoise_from(
        fake.unet,
        fake.scheduler,
        some[1],
        fake.scheduler.timesteps[2:],
        lambda t, noisy: condition,
        nothing,
        ids,
        ids,
        **more,
    )
    torch.testing.assert_close(later[-1], some[3])


def test_guidance_towards_the_same_condition_changes_nothing(fake):
    size, shape = sides(fake)
    condition, noise = random_condition(fake, 2), seeded_noise([1, 2], shape, 0, "picture")
    plain, guided = (
        denoise(
            fake.unet,
            fake.scheduler,
            noise,
            lambda t, noisy: condition,
            condition,
            size=size,
            steps=STEPS,
            guidance_scale=scale,
        )
        for scale in (1.0, 7.0)
    )
    torch.testing.assert_close(plain, guided, rtol=0, atol=5e-4)


def test_the_condition_is_asked_anew_at_every_step_and_heard(fake):
    size, shape = sides(fake)
    noise = seeded_noise([1, 2], shape, 0, "picture")
    asked: list[tuple[float, Tensor]] = []
    conditions = [random_condition(fake, 2, seed) for seed in range(STEPS)]
    called: list[tuple[Tensor, Tensor, Conditioning]] = []

    class Unet(torch.nn.Module):
        def forward(self, latents, t, **given):
            called.append((latents, t, given))
            return fake.unet(latents, t, **given)

    def at(t: Tensor, noisy: Tensor) -> Conditioning:
        asked.append((float(t), noisy))
        return conditions[len(asked) - 1]

    heard: list[tuple[int, Conditioning]] = []
    denoise(
        Unet(),
        fake.scheduler,
        noise,
        at,
        empty_condition(fake, 2),
        size=size,
        steps=STEPS,
        guidance_scale=2.0,
        on_step=lambda step, _, condition: heard.append((step, condition)),
    )
    assert (
        [t for t, _ in asked]
        == fake.scheduler.timesteps.tolist()
        == sorted((t for t, _ in asked), reverse=True)
    )
    assert [step for step, _ in heard] == list(range(STEPS))
    for step in range(STEPS):
        latents, t, given = called[step]
        assert float(t) == asked[step][0] and heard[step][1] is conditions[step]
        torch.testing.assert_close(
            latents[2:], asked[step][1], rtol=0, atol=0
        )  # what the condition saw is what the U-Net sees
        torch.testing.assert_close(
            given["encoder_hidden_states"][2:], conditions[step].tokens_BTC, rtol=0, atol=0
        )
        torch.testing.assert_close(
            given["added_cond_kwargs"]["image_embeds"][0][2:],
            conditions[step].image_embeds_BTD,
            rtol=0,
            atol=0,
        )
        assert not given["encoder_hidden_states"][:2].any()


def test_sampling_leaves_no_gradient_and_fine_tuning_gets_one(fake):
    """Both call the same function."""
    condition = random_condition(fake, 1)
    condition = condition._replace(image_embeds_BTD=condition.image_embeds_BTD.requires_grad_())
    size, shape = sides(fake)
    noise = seeded_noise([1], shape, 0, "picture")
    out = predict(fake.unet, noise, torch.tensor(300), condition, size_ids(size, 1, noise))
    out.square().mean().backward()
    assert condition.image_embeds_BTD.grad.abs().max() > 0
    drawn = denoise(
        fake.unet,
        fake.scheduler,
        noise,
        lambda t, noisy: condition,
        condition,
        size=size,
        steps=1,
        guidance_scale=1.0,
    )
    assert not drawn.requires_grad


def test_the_size_is_told_as_sdxl_wants_it():
    ids = size_ids(512, 3, torch.zeros(1, dtype=torch.float64))
    assert ids.shape == (3, 6) and ids.dtype == torch.float64
    assert ids[2].tolist() == [512, 512, 0, 0, 512, 512]


def test_pictures_lie_between_black_and_white(fake):
    size, shape = sides(fake)
    pictures = decode_latents(fake.vae, 20 * seeded_noise([1, 2], shape, 0, "picture"))
    assert pictures.shape == (2, 3, size, size) and pictures.dtype == torch.float32
    assert pictures.min() >= 0 and pictures.max() <= 1
