"""The wires of stage 1: every term, flag and selection of the training loop reaches what it is
meant for.

The parts have tests of their own. Here each test fails when a wire between them is cut: a term left
out or of the wrong sign, a flag that is ignored, the wrong images, weights that are not trained.
"""

from __future__ import annotations

from itertools import chain
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, mse_loss
from unit.tiny_training import (
    WIDTH,
    LinearReader,
    TableTargets,
    spy,
    table,
    tiny_config,
    with_a_gap,
)

from braingen.config import Config
from braingen.config.training import LossConfig
from braingen.data.batches import RepeatBatches, TrainBatches, average_repeats
from braingen.data.betas import Betas
from braingen.data.trials import Repeats, hold_out_images, test_trials, train_trials
from braingen.encoders import losses
from braingen.encoders.embedding_decoder import EmbeddingDecoder, TargetScale
from braingen.encoders.feature_router import StaticRouter
from braingen.encoders.moe_voxel import BrainMoEVoxel
from braingen.evaluation import decoding
from braingen.evaluation import embeddings as stage_reading
from braingen.runtime.data_layout import Layout
from braingen.runtime.distributed import Workers
from braingen.runtime.errors import UserError
from braingen.runtime.paths import EMBEDDING_DECODER
from braingen.runtime.run_folder import Run
from braingen.runtime.seeds import hash_seed
from braingen.targets import tables as stage_targets
from braingen.training import encoder as stage
from braingen.training import encoder_setup, trainer
from braingen.training.checkpoints import TrainingPosition
from braingen.training.steps import Divergence, StepLosses
from braingen.types import Trials, VoxelBatch

SCALES = {
    "clip_scale": 2.0,
    "mse_scale": 3.0,
    "prior_scale": 5.0,
    "cos_scale": 7.0,
    "prior_clip_scale": 11.0,
    "deep_supervision_weight": 13.0,
    "balance_scale": 17.0,
    "temp_coeff": 40.0,
    "mixup_pct": 0.4,
}
"""All different, so that two weights exchanged show."""


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("wires") / "data"


@pytest.fixture(autouse=True)
def table_in_place_of_clip(monkeypatch):
    monkeypatch.setattr(encoder_setup, "Targets", TableTargets)
    monkeypatch.setattr(stage_reading, "Targets", TableTargets)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- the objective, term by term ------------------------------------------------------------------


class Case(NamedTuple):
    embedding_decoder: LinearReader
    batch: tuple[VoxelBatch, ...]
    parts: Any
    truth_BTD: Tensor


@pytest.fixture
def case() -> Case:
    """Two subjects, six trials each, whose images are not in the order of the table."""
    draws = generator(1)
    batch = tuple(
        VoxelBatch(torch.randn(6, width, generator=draws), torch.tensor(images), subject)
        for subject, width, images in ((1, 5, [9, 4, 7, 5, 8, 6]), (2, 4, [19, 15, 14, 18, 16, 17]))
    )
    row_of_image = np.full(24, -1)
    row_of_image[4:20] = np.random.default_rng(0).permutation(16)
    targets_ND = torch.randn(16, 1, WIDTH, generator=draws)
    truth_BTD = torch.cat([targets_ND[row_of_image[part.image_B.numpy()]] for part in batch])
    parts = encoder_setup.EncoderParts(
        None, None, [], targets_ND, row_of_image, LossConfig(**SCALES)
    )  # type: ignore[arg-type]
    return Case(LinearReader({1: 5, 2: 4}), batch, parts, truth_BTD)


def outputs(case: Case, voxels: list[Tensor]) -> dict[str, Tensor]:
    each = [case.embedding_decoder(x, part.subject) for x, part in zip(voxels, case.batch)]
    names = ("backbone_BTD", "clip_BTD", "level_backbone_BLTD")
    return {name: torch.cat([getattr(one, name) for one in each]) for name in names} | {
        "balance": torch.stack([one.balance_loss for one in each]).mean()
    }


def by_hand(
    case: Case, out: dict[str, Tensor], aim_BTD: Tensor, contrastive: Any
) -> dict[str, Tensor]:
    prediction = case.embedding_decoder.prior.predict(out["backbone_BTD"])
    return {
        "clip": 2 * contrastive(out["clip_BTD"]),
        "mse": 3 * mse_loss(out["backbone_BTD"], aim_BTD),
        "prior": 5 * (prediction - aim_BTD).abs().mean(),
        "cosine": 7 * (1 - cosine_similarity(prediction.flatten(1), aim_BTD.flatten(1)).mean()),
        "prior_clip": 11 * contrastive(prediction),
        "levels": 13 * (out["level_backbone_BLTD"] - aim_BTD[:, None]).square().mean(),
        "balance": 17 * out["balance"],
    }


def assert_terms(found: StepLosses, expected: dict[str, Tensor]) -> None:
    assert found.terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found.terms[name],
            value,
            rtol=1e-4,
            atol=1e-5,
            msg=lambda text, name=name: f"{name}: {text}",
        )
    torch.testing.assert_close(
        found.total, torch.stack(list(expected.values())).sum(), rtol=1e-4, atol=1e-4
    )


def test_while_trials_are_mixed_every_term_is_what_it_is_by_hand(case):
    """Voxels are mixed within their subject; the targets of prior, cosine, squared error and levels
    are mixed alike.
    """
    found = stage.step(case.embedding_decoder, case.batch, case.parts, 0.39, generator(3))
    draws = generator(3)
    mixes = [losses.draw_mix(6, draws) for _ in case.batch]
    whole = losses.join_mixes(mixes)
    assert 0 < whole.mixed_B.sum() < 12
    aim_BTD = losses.mix(case.truth_BTD, whole)
    assert not torch.allclose(aim_BTD, case.truth_BTD)
    out = outputs(case, [losses.mix(part.voxels_BV, mix) for part, mix in zip(case.batch, mixes)])

    def contrastive(rows: Tensor) -> Tensor:  # targets unmixed, labels mixed
        return losses.mixco_nce(
            losses.unit_rows(rows), losses.unit_rows(case.truth_BTD), 0.006 * 40, whole
        )

    assert_terms(found, by_hand(case, out, aim_BTD, contrastive))
    given_backbone, given_aim, given_generator = case.embedding_decoder.prior.given[0]
    torch.testing.assert_close(given_backbone, out["backbone_BTD"])
    torch.testing.assert_close(given_aim, aim_BTD)
    assert given_generator.get_state().equal(
        draws.get_state()
    )  # the generator of the step, after the mixing


@pytest.mark.parametrize("progress", [0.4, 0.7, 1.0])
def test_after_the_mixing_labels_are_soft_and_their_temperature_is_annealed(case, progress):
    found = stage.step(case.embedding_decoder, case.batch, case.parts, progress, generator(3))
    out = outputs(case, [part.voxels_BV for part in case.batch])
    temperature = {0.4: 0.004, 0.7: (0.004 + 0.0075) / 2, 1.0: 0.0075}[progress] * 40

    def contrastive(rows: Tensor) -> Tensor:
        return losses.soft_clip(
            losses.unit_rows(rows), losses.unit_rows(case.truth_BTD), temperature
        )

    assert_terms(found, by_hand(case, out, case.truth_BTD, contrastive))


def test_a_training_of_a_single_step_has_a_temperature(case):
    """The published annealing divides 0 by 0 for one step."""
    parts = case.parts._replace(loss=case.parts.loss.model_copy(update={"mixup_pct": 0.0}))
    found = stage.step(case.embedding_decoder, case.batch, parts, 0.0, generator(3))
    rows, wanted = (
        losses.unit_rows(x)
        for x in (
            outputs(case, [part.voxels_BV for part in case.batch])["clip_BTD"],
            case.truth_BTD,
        )
    )
    torch.testing.assert_close(
        found.terms["clip"], 2 * losses.soft_clip(rows, wanted, 0.004 * 40), rtol=1e-4, atol=1e-5
    )


def test_gathering_from_a_single_process_changes_no_contrastive_loss():
    draws = generator(2)
    rows, wanted = (losses.unit_rows(torch.randn(6, 1, WIDTH, generator=draws)) for _ in range(2))
    for mixed in (None, losses.draw_mix(6, draws)):
        alone, gathered = (
            losses.mixco_nce(rows, wanted, 0.1, mixed, gather=gather)
            for gather in (None, lambda x: x)
        )
        torch.testing.assert_close(alone, gathered)
    torch.testing.assert_close(
        losses.soft_clip(rows, wanted, 0.1), losses.soft_clip(rows, wanted, 0.1, gather=lambda x: x)
    )


def test_terms_of_weight_zero_are_left_out_and_the_prior_where_there_is_none(case):
    bare = case.parts._replace(
        loss=LossConfig(mse_scale=0, deep_supervision_weight=0, prior_clip_scale=0)
    )
    assert set(stage.step(case.embedding_decoder, case.batch, bare, 1.0, generator()).terms) == {
        "clip",
        "balance",
        "prior",
        "cosine",
    }
    case.embedding_decoder.prior = None
    assert set(stage.step(case.embedding_decoder, case.batch, bare, 1.0, generator()).terms) == {
        "clip",
        "balance",
    }


@pytest.mark.parametrize(
    "term", ["clip", "mse", "prior", "cosine", "prior_clip", "levels", "balance"]
)
def test_every_term_reaches_the_encoder(case, term):
    """The prior is trained together with the encoder, not on detached outputs."""
    found = stage.step(case.embedding_decoder, case.batch, case.parts, 0.1, generator()).terms[term]
    layers = [case.embedding_decoder.subject[str(part.subject)].weight for part in case.batch]
    assert all(gradient.abs().max() > 0 for gradient in torch.autograd.grad(found, layers))


def test_the_balance_loss_of_real_routers_evens_them_out():
    """Going down its gradient makes an uneven router more even: its sign is right and it reaches
    the affinities.
    """
    torch.manual_seed(0)
    encoder = {
        "subjects": {"1": 8},
        "clip_seq_dim": 1,
        "clip_emb_dim": WIDTH,
        "hidden_dim": 16,
        "n_blocks": 1,
        "exp_factor_list": [2],
    }
    embedding_decoder = EmbeddingDecoder("BrainMoEMulti", encoder, None)
    router = next(
        module for module in embedding_decoder.modules() if isinstance(module, StaticRouter)
    )
    with torch.no_grad():
        router.affinity[..., 0].add_(0.5) if router.affinity.shape[-1] < router.affinity.shape[
            -2
        ] else router.affinity[..., 0, :].add_(0.5)

    def balance() -> Tensor:
        return embedding_decoder(torch.zeros(2, 8), 1).balance_loss

    before = balance()
    assert before > 0
    parts = encoder_setup.EncoderParts(
        embedding_decoder,
        None,
        [],
        torch.randn(4, 1, WIDTH, generator=generator()),
        np.arange(4),
        LossConfig(clip_scale=0, balance_scale=1),
    )
    batch = (VoxelBatch(torch.randn(4, 8, generator=generator()), torch.arange(4), 1),)
    (gradient,) = torch.autograd.grad(
        stage.step(embedding_decoder, batch, parts, 1.0, generator()).total, [router.affinity]
    )
    with torch.no_grad():
        router.affinity -= 0.2 * gradient / gradient.norm()
    assert balance() < before


def test_the_objective_is_the_sum_of_its_terms_and_every_term_is_summed_by_name():
    found = StepLosses.of({"clip": torch.tensor(2.0), "prior": torch.tensor(3.0)})
    sums: dict[str, float] = {}
    found.add_to(sums)
    found.add_to(sums)
    assert found.total == 5 and sums == {"clip": 4.0, "prior": 6.0}
    seeds = {hash_seed(*each) for each in ((0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1))}
    assert (
        len(seeds) == 4
        and all(0 <= seed < 2**63 for seed in seeds)
        and hash_seed(0, "a", 0) in seeds
    )
    assert (
        hash_seed(3, "mixing", 7) == 23662725921350983
    )  # on every machine, in every version: runs are repeated by it


def test_the_first_row_of_a_file_is_a_presentation_like_any_other():
    class Rows:
        voxels = 2

        def rows(self, rows: np.ndarray) -> np.ndarray:
            return np.stack([rows + 1.0, rows + 2.0], axis=1).astype(np.float32)

    (batch,) = RepeatBatches(Repeats(np.array([5, 6]), np.array([[0, 3], [1, -1]])), Rows(), 1, 8)
    assert batch.present_BR.tolist() == [[True, True], [True, False]]
    averaged = average_repeats(batch.voxels_BRV, batch.present_BR)
    assert averaged.tolist() == [[2.5, 3.5], [2.0, 3.0]]


# --- what is trained on, and what is looked at ----------------------------------------------------


def held_out_and_kept(config: Config) -> tuple[set[int], set[int]]:
    held: set[int] = set()
    kept: set[int] = set()
    for subject in config.data.subjects:
        trials = train_trials(Layout.of(config.data.root), subject, config.data.num_sessions)
        train, out = hold_out_images(trials, config.data.holdout_share, config.run.seed)
        kept |= set(train.table["image"])
        held |= set(out.table["image"])
    return held, kept


class Seen(NamedTuple):
    """What a training run did."""

    config: Config
    folder: Path
    batches: list[tuple[VoxelBatch, ...]]
    progress: list[float]
    seeds: list[tuple[int, int]]
    """Of every step: of dropout and of mixing."""
    rates: list[float]
    """Learning rate of every update."""
    gradients: list[float]
    """Norm of the gradients of every update."""
    looked_at: list[set[int]]
    """Images of every validation."""
    states: list[dict[str, Tensor]]
    """The embedding decoder at every validation."""
    steps: int


def trained(
    monkeypatch: pytest.MonkeyPatch,
    config: Config,
    modality: str = "image",
    cosines: list[float] | None = None,
) -> Seen:
    """Run the training, recorded; `cosines`: what the validations are made to find."""
    seen = Seen(config, config.run.folder / modality, [], [], [], [], [], [], [], 0)
    fresh = stage.optimizer_of

    def optimizer_of(embedding_decoder: EmbeddingDecoder, config: Config) -> torch.optim.Optimizer:
        optimizer = fresh(embedding_decoder, config)

        def before_update(*_: Any) -> None:
            gradients = [
                p.grad
                for group in optimizer.param_groups
                for p in group["params"]
                if p.grad is not None
            ]
            seen.gradients.append(
                torch.stack([gradient.norm() for gradient in gradients]).norm().item()
            )
            seen.rates.append(optimizer.param_groups[0]["lr"])

        optimizer.register_step_pre_hook(before_update)
        return optimizer

    def before_step(
        embedding_decoder: Any, batch: Any, parts: Any, progress: float, mixing: torch.Generator
    ) -> None:
        assert embedding_decoder.training
        seen.batches.append(batch)
        seen.progress.append(progress)
        seen.seeds.append((torch.initial_seed(), mixing.initial_seed()))

    def before_validation(embedding_decoder: EmbeddingDecoder, parts: Any) -> None:
        seen.looked_at.append(
            {image for trials, _ in parts.held_out for image in trials.table["image"]}
        )
        seen.states.append(
            {name: value.clone() for name, value in embedding_decoder.state_dict().items()}
        )

    monkeypatch.setattr(stage, "optimizer_of", optimizer_of)
    if cosines is not None:
        wanted = iter(cosines)
        monkeypatch.setattr(
            stage,
            "validate",
            lambda embedding_decoder, parts: {
                "validation/cosine": next(wanted),
                "validation/retrieval": 0.0,
            },
        )
    spy(monkeypatch, stage, "step", before_step)
    spy(monkeypatch, stage, "validate", before_validation)
    stage.train(config, modality)
    return seen._replace(steps=len(seen.batches) // config.training.num_epochs)


@pytest.mark.slow
def test_a_run_trains_on_kept_images_and_validates_on_held_out_ones(monkeypatch, root, tmp_path):
    config = tiny_config(root, tmp_path, data__subjects="1,2")
    seen = trained(monkeypatch, config)
    held, kept = held_out_and_kept(config)
    tested = {
        image
        for subject in (1, 2)
        for image in test_trials(Layout.of(root), subject).table["image"]
    }
    assert held and kept and tested and not held & kept and not (held | kept) & tested
    assert {
        image for batch in seen.batches for part in batch for image in part.image_B.tolist()
    } == kept
    assert seen.looked_at == [held] * 3  # after every epoch
    for batch in seen.batches:
        assert [part.subject for part in batch] == [1, 2]
        for part in batch:  # voxels of a trial stand beside the image that was shown in it
            trials = train_trials(Layout.of(root), part.subject).table
            betas = Betas.of(Layout.of(root), part.subject)
            for voxels, image in zip(part.voxels_BV, part.image_B.tolist()):
                shown = torch.from_numpy(
                    betas.rows(trials["trial"][trials["image"] == image].to_numpy())
                )
                assert (shown == voxels).all(1).any()


@pytest.mark.slow
def test_epochs_show_every_trial_once_in_an_order_of_their_own_with_chances_of_their_own(
    monkeypatch, root, tmp_path
):
    config = tiny_config(root, tmp_path)
    seen = trained(monkeypatch, config)
    rows = [[tuple(voxels.tolist()) for voxels in batch[0].voxels_BV] for batch in seen.batches]
    epochs = [
        list(chain(*rows[first : first + seen.steps])) for first in range(0, len(rows), seen.steps)
    ]
    assert len(epochs) == 3 and len(epochs[0]) == len(set(epochs[0])) > 12
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert epochs[0] != epochs[1] != epochs[2]
    firsts = [seen.seeds[epoch * seen.steps] for epoch in range(3)]
    assert len({seed for pair in firsts for seed in pair}) == 6  # dropout and mixing of every epoch
    assert firsts[1] == (hash_seed(0, "dropout", 1), hash_seed(0, "mixing", 1))
    assert seen.progress == pytest.approx(
        [number / (3 * seen.steps) for number in range(3 * seen.steps)]
    )


def test_subjects_are_shown_their_trials_in_orders_of_their_own(root, tmp_path):
    layout = Layout.of(tiny_config(root, tmp_path).data.root)
    subjects = [(train_trials(layout, subject), Betas.of(layout, subject)) for subject in (1, 2)]
    assert len(subjects[0][0].table) == len(subjects[1][0].table)
    one, other = TrainBatches(subjects, 20, 0).chosen(0, 0)
    assert one.tolist() != other.tolist()


@pytest.mark.parametrize(
    ("modality", "scale", "more"),
    [
        ("image", 1.0, {}),
        ("text", 4.0, {"run__seed": "5", "data__holdout_share": "0.45"}),
        ("image", 1.0, {"data__num_sessions": "1", "data__holdout_share": "0.1"}),
    ],
)
def test_setup_gives_every_image_its_own_target_in_units_of_the_training_images(
    monkeypatch, root, tmp_path, modality, scale, more
):
    config = tiny_config(
        root,
        tmp_path,
        data__subjects="1,2",
        loss_image__clip_scale="1",
        loss_text__clip_scale="4",
        **more,
    )
    looked_at: list[tuple[Any, ...]] = []
    spy(
        monkeypatch,
        encoder_setup,
        "refuse_incompatible",
        lambda config, parts, fetch: looked_at.append((parts, fetch)),
    )
    parts = encoder_setup.setup(config, modality)
    assert looked_at == [((modality,), True)]
    held, kept = held_out_and_kept(config)
    trained_on = [
        part for step in range(parts.batches.steps) for part in parts.batches.batch(0, step)
    ]
    assert {image for part in trained_on for image in part.image_B.tolist()} == kept
    count = sum(
        len(train_trials(Layout.of(root), subject, config.data.num_sessions).table)
        for subject in (1, 2)
    )
    assert (
        len(parts.batches._rows[0])
        + len(parts.batches._rows[1])
        + sum(len(trials.table) for trials, _ in parts.held_out)
        == count
    )
    known = table(modality)[sorted(kept)]
    mean, spread = known.mean(0), (known - known.mean(0)).std()
    for image in range(24):
        if image in held | kept:
            expected = (table(modality)[image] - mean) / spread
            torch.testing.assert_close(
                parts.targets_ND[parts.row_of_image[image]], expected, rtol=1e-4, atol=1e-5
            )
        else:
            assert parts.row_of_image[image] == -1
    torch.testing.assert_close(parts.embedding_decoder.mean_TD, mean)
    assert parts.loss.clip_scale == scale
    assert {image for trials, _ in parts.held_out for image in trials.table["image"]} == held


@pytest.mark.slow
def test_setup_builds_what_is_asked_for(root, tmp_path):
    config = tiny_config(
        root,
        tmp_path,
        prior__use="sample",
        prior__sample_steps="3",
        prior__guidance_scale="2.5",
        training__batch_size="5",
    )
    parts = encoder_setup.setup(config, "image")
    embedding_decoder = parts.embedding_decoder
    assert (
        embedding_decoder.config.prior_use == "sample"
        and embedding_decoder.config.sample_steps == 3
        and embedding_decoder.config.guidance_scale == 2.5
    )
    assert embedding_decoder.config.encoder_config[
        "hidden_dim"
    ] == 16 and embedding_decoder.config.encoder_config["subjects"] == {"1": 41}
    assert embedding_decoder.config.prior_config["timesteps"] == 10 and parts.batches.share == 5
    assert (
        encoder_setup.setup(
            tiny_config(root, tmp_path, prior__use_prior="false"), "image"
        ).embedding_decoder.prior
        is None
    )
    again, other = (
        encoder_setup.setup(tiny_config(root, tmp_path, run__seed=seed), "image")
        for seed in ("0", "1")
    )
    weights = {
        name: value
        for name, value in embedding_decoder.encoder.state_dict().items()
        if value.ndim > 1
    }
    assert all(
        torch.equal(again.embedding_decoder.encoder.state_dict()[name], value)
        for name, value in weights.items()
    )
    assert not all(
        torch.equal(other.embedding_decoder.encoder.state_dict()[name], value)
        for name, value in weights.items()
    )
    assert embedding_decoder.config.head_trained
    unprojected = encoder_setup.setup(
        tiny_config(root, tmp_path, loss_image__clip_scale="0"), "image"
    ).embedding_decoder.eval()
    with torch.no_grad():  # what no loss trained is not what pictures are retrieved by
        out = unprojected(torch.randn(2, 41, generator=generator()), 1)
    assert torch.equal(out.clip_BTD, out.backbone_BTD)
    assert [other.batches.chosen(0, 0)[0].tolist()] != [again.batches.chosen(0, 0)[0].tolist()]


@pytest.mark.parametrize(("widths", "dims"), [((12,), [12, 12]), ((5, 7), [5, 7])])
def test_a_dense_encoder_of_captions_has_the_widths_of_the_text_encoders(
    root, tmp_path, widths, dims
):
    output = "joint" if len(widths) == 2 else "L"
    config = tiny_config(
        root, tmp_path, encoder__model="BrainEncoder", backbone__text_output=output
    )
    text = encoder_setup.build_embedding_decoder(
        config, {3: 9}, (1, WIDTH), widths
    ).config.encoder_config
    assert (
        text["text_emb_dims"] == dims
        and text["text_output"] == output
        and text["subjects"] == {"3": 9}
    )
    assert (text["clip_seq_dim"], text["clip_emb_dim"]) == (1, WIDTH)
    image = encoder_setup.build_embedding_decoder(config, {3: 9}, (1, WIDTH)).config.encoder_config
    assert image.get("fusion", "none") == "none" and not image.get("train_pool")


def test_data_that_lack_something_are_refused_before_anything_is_computed(tmp_path):
    config = tiny_config(tmp_path / "data", tmp_path / "run")
    Layout.of(config.data.root).captions().unlink()
    encoder_setup.setup(config, "image")
    with pytest.raises(UserError, match="captions"):
        encoder_setup.setup(config, "text")


def test_only_a_finished_run_can_be_started_from(root, tmp_path):
    encoder_setup.setup(
        tiny_config(root, tmp_path / "first"), "image"
    ).embedding_decoder.save_pretrained(tmp_path / "first" / "image" / EMBEDDING_DECODER)
    (tmp_path / "first" / "image" / "config.yaml").write_text("a: 1")
    config = tiny_config(root, tmp_path / "second", training__init_from=str(tmp_path / "first"))
    with pytest.raises(UserError, match="not finished"):
        encoder_setup.setup(config, "image")


class Stub(torch.nn.Module):
    """Stands in for a CLIP encoder: what it says depends on how it was loaded and on what it is
    given.
    """

    loaded: ClassVar[list[tuple[str, dict[str, Any]]]] = []

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    @classmethod
    def from_pretrained(cls, path: str, **settings: Any) -> Stub:
        cls.loaded.append((path, settings))
        return cls(len(cls.loaded))

    def forward(self, given: Any) -> Any:
        if isinstance(given, Tensor):
            return SimpleNamespace(
                target_BTD=self.number + given.mean((1, 2, 3))[:, None, None].expand(-1, 1, 3)
            )
        return torch.tensor([[[float(sum(map(len, texts)) * self.number)] * 3] for texts in given])


def test_targets_are_of_the_encoders_that_are_set_and_kept_for_them_alone(
    monkeypatch, root, tmp_path
):
    monkeypatch.setattr(Stub, "loaded", [])
    for name in ("CLIPImageEncoder", "CLIPTextEncoderDual"):
        monkeypatch.setattr(stage_targets, name, Stub)
    monkeypatch.setattr(stage_targets, "fingerprint_of_files", lambda path: "of stubs")
    monkeypatch.setattr(stage_targets, "backbone_folder", lambda path: f"folder of {path}")
    monkeypatch.setattr(stage_targets, "check_backbone", lambda config: None)
    ids = np.array([7, 3, 0])

    def targets(**more: str) -> stage_targets.Targets:
        return stage_targets.Targets(
            tiny_config(root, tmp_path, backbone__path="a backbone", **more)
        )

    first = targets()
    pictures = torch.from_numpy(first.stimuli.images(ids)).mean((1, 2, 3))
    torch.testing.assert_close(first.of("image", ids)[:, 0, 0], 1 + pictures)
    words = [float(sum(map(len, first.captions[image]))) for image in ids]
    assert len(first.captions[7]) == 5 and first.of("text", ids)[:, 0, 0].tolist() == [
        2 * count for count in words
    ]
    for modality in ("image", "text"):
        np.testing.assert_array_equal(
            first.table(modality, ids)[ids], first.of(modality, ids).numpy()
        )
    torch.testing.assert_close(
        targets(backbone__image_projected="false").of("image", ids)[:, 0, 0], 3 + pictures
    )
    torch.testing.assert_close(
        targets(backbone__image_output="tokens").of("image", ids)[:, 0, 0], 4 + pictures
    )
    assert targets(backbone__text_output="L").of("text", ids)[:, 0, 0].tolist() == [
        5 * count for count in words
    ]
    assert targets(backbone__text_tokens="all").of("text", ids)[:, 0, 0].tolist() == [
        6 * count for count in words
    ]
    torch.testing.assert_close(
        targets().of("image", ids)[:, 0, 0], 1 + pictures
    )  # kept: nothing is loaded for it
    path, exact = "folder of a backbone", {"dtype": torch.float32}
    choice = first._choice
    image, text = (
        {"output": choice.image_output, "projected": True},
        {"output": choice.text_output, "tokens": choice.text_tokens},
    )
    changes = [
        image,
        text,
        image | {"projected": False},
        image | {"output": "tokens"},
        text | {"output": "L"},
        text | {"tokens": "all"},
    ]
    assert Stub.loaded == [(path, exact | change) for change in changes]


def test_targets_of_other_captions_are_computed_anew(monkeypatch, tmp_path):
    monkeypatch.setattr(stage_targets, "CLIPTextEncoderDual", Stub)
    config, ids = tiny_config(tmp_path / "data", tmp_path / "run"), np.array([7, 3])
    before = stage_targets.Targets(config).of("text", ids)
    path = Layout.of(config.data.root).captions()
    path.write_text(path.read_text().replace("picture 7", "a picture of a house"))
    after = stage_targets.Targets(config).of("text", ids)
    assert after[0].max() > before[0].max() and torch.equal(after[1], before[1])


@pytest.mark.parametrize("trained_part", ["routers", "subject", "all"])
def test_a_run_starts_from_the_weights_of_another_and_trains_what_is_asked_for(
    root, tmp_path, trained_part
):
    first = encoder_setup.setup(tiny_config(root, tmp_path / "first"), "image").embedding_decoder
    first.save_pretrained(tmp_path / "first" / "image" / EMBEDDING_DECODER)
    for name, text in (("config.yaml", "a: 1"), ("finished", "{}")):
        (tmp_path / "first" / "image" / name).write_text(text)
    more = {
        "training__init_from": str(tmp_path / "first"),
        "training__trained": trained_part,
        "run__seed": "5",
    }
    embedding_decoder = encoder_setup.setup(
        tiny_config(root, tmp_path / "second", data__subjects="2", **more), "image"
    ).embedding_decoder
    own, taken = embedding_decoder.state_dict(), first.state_dict()
    shared = own.keys() & taken.keys()
    assert (
        all(torch.equal(own[name], taken[name]) for name in shared)
        and {"mean_TD", "spread"} <= shared
    )
    free = {
        name for name, parameter in embedding_decoder.named_parameters() if parameter.requires_grad
    }
    subject = {name for name in own if "subject_layer" in name}
    routers = {name for name in own if "affinity" in name}
    ridge = {name for name in own if name.startswith(("linear.linears.", "linear.judged."))}
    assert subject | ridge == own.keys() - taken.keys() and routers
    assert free == {"subject": subject, "routers": subject | routers}.get(
        trained_part, {n for n, _ in embedding_decoder.named_parameters()}
    )


def test_two_processes_get_different_trials_of_the_same_step(root, tmp_path):
    config = tiny_config(root, tmp_path)
    first, second = (
        encoder_setup.setup(config, "image", rank, 2).batches.chosen(0, 0)[0] for rank in range(2)
    )
    assert len(first) == len(second) and not set(first) & set(second)


def test_parcels_start_from_some_training_trials_of_their_own_subject(monkeypatch, root, tmp_path):
    started: list[dict[int, Tensor]] = []
    spy(monkeypatch, BrainMoEVoxel, "init_from", lambda self, responses: started.append(responses))
    monkeypatch.setattr(encoder_setup, "PARCEL_TRIALS", 6)
    config = tiny_config(root, tmp_path, data__subjects="1,2", encoder__model="BrainMoEVoxel")
    encoder_setup.setup(config, "image")
    (responses,) = started
    held, _ = held_out_and_kept(config)
    for subject in (1, 2):
        trials = train_trials(Layout.of(root), subject).table
        rows = trials["trial"][~trials["image"].isin(held)].to_numpy()
        some = rows[:: math.ceil(len(rows) / 6)]
        assert 3 < len(some) <= 6 and some[-1] > rows[len(rows) // 2]
        np.testing.assert_array_equal(
            responses[subject].numpy(), Betas.of(Layout.of(root), subject).rows(some)
        )
    encoder_setup.setup(
        tiny_config(root, tmp_path, encoder__model="BrainMoEVoxel", encoder__parcel_init="random"),
        "image",
    )
    assert len(started) == 1


def test_every_process_gets_its_share_and_the_fold_it_is_for(root, tmp_path):
    config = tiny_config(root, tmp_path)
    accelerator = SimpleNamespace(process_index=1, num_processes=2)
    fold = encoder_setup.TrialFold(1, 3)
    parts = stage.parts_of(config, "image", accelerator, Workers(config), fold)  # type: ignore[arg-type]
    assert (parts.batches.rank, parts.batches.world) == (1, 2)
    ((_, judged),) = encoder_setup.splits_of(config, fold)
    assert set(parts.held_out[0][0].table["image"]) == set(judged.table["image"])


# --- updates --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_learning_rate_rises_for_two_epochs_and_falls_to_a_thousandth_of_its_start(
    monkeypatch, root, tmp_path
):
    config = tiny_config(root, tmp_path, training__max_lr="0.002", training__num_epochs="8")
    rates = trained(monkeypatch, config).rates
    top = int(np.argmax(rates))
    assert rates[0] == pytest.approx(0.002 / 25) and rates[top] == pytest.approx(0.002, rel=0.1)
    assert len(rates) // 8 <= top <= 2 * len(rates) // 8 + 1
    assert rates[: top + 1] == sorted(rates[: top + 1]) and rates[top:] == sorted(
        rates[top:], reverse=True
    )
    assert rates[-1] < rates[0] / 10


@pytest.mark.parametrize(("epochs", "top"), [(3, 0.3), (10, 0.2)])
def test_the_schedule_is_the_published_one(root, tmp_path, epochs, top):
    """Up for two epochs, or three tenths of a short training, from a 25th of the peak; down to a
    thousandth of the start.
    """
    config = tiny_config(root, tmp_path, training__num_epochs=str(epochs), training__max_lr="0.5")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
    schedule = stage.schedule_of(optimizer, config, 10)
    rates = []
    for _ in range(10 * epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert int(np.argmax(rates)) == round(top * 10 * epochs) - 1
    assert (rates[0], max(rates), rates[-1]) == pytest.approx((0.5 / 25, 0.5, 0.5 / 25 / 1000))


@pytest.mark.parametrize("together", ["1", "2"])
@pytest.mark.slow
def test_gradients_are_averaged_over_the_steps_of_an_update_and_clipped(
    monkeypatch, root, tmp_path, together
):
    """A term whose gradient is known by hand stands in for the objective."""
    free = tiny_config(
        root,
        tmp_path / "free",
        training__gradient_accumulation_steps=together,
        training__max_grad_norm="1e9",
    )
    values = iter(range(1, 1000))

    def step(embedding_decoder: EmbeddingDecoder, *_: Any) -> StepLosses:
        weight = next(
            parameter for parameter in embedding_decoder.parameters() if parameter.requires_grad
        )
        return StepLosses.of({"clip": next(values) * weight.flatten()[0]})

    monkeypatch.setattr(stage, "step", step)
    with monkeypatch.context() as patch:
        seen = trained(patch, free)
    count = next(values) - 1
    numbers = np.arange(1, count + 1).reshape(3, -1)  # epochs x steps
    size = int(together)
    groups = [
        epoch[first : first + size].mean()
        for epoch in numbers
        for first in range(0, len(epoch), size)
    ]
    assert seen.rates[-1] == pytest.approx(
        free.training.max_lr / 25_000
    )  # the schedule ends with the training
    assert seen.gradients == pytest.approx(groups, rel=1e-4)
    assert len(seen.rates) == len(groups) and (size == 1 or len(groups) < count)
    clipped = tiny_config(
        root,
        tmp_path / "clipped",
        training__gradient_accumulation_steps=together,
        training__max_grad_norm="0.5",
    )
    assert trained(monkeypatch, clipped).gradients == pytest.approx([0.5] * len(groups), rel=1e-3)


def test_weight_decay_is_of_linear_maps_alone_and_everything_trained_is_in_the_optimizer(
    root, tmp_path
):
    config = tiny_config(root, tmp_path, training__weight_decay="0.25", training__max_lr="0.125")
    embedding_decoder = encoder_setup.setup(config, "image").embedding_decoder
    decayed, plain = stage.optimizer_of(embedding_decoder, config).param_groups
    assert (
        decayed["weight_decay"] == 0.25
        and plain["weight_decay"] == 0
        and decayed["lr"] == plain["lr"] == 0.125
    )
    names = {id(parameter): name for name, parameter in embedding_decoder.named_parameters()}
    in_decayed, in_plain = ({names[id(p)] for p in group["params"]} for group in (decayed, plain))
    assert (
        in_decayed | in_plain
        == {name for name, p in embedding_decoder.named_parameters() if p.requires_grad}
        and not in_decayed & in_plain
    )
    assert (
        all(name.endswith("weight") for name in in_decayed)
        and {name for name in names.values() if name.endswith("bias")} <= in_plain
    )
    assert {name for name in names.values() if "affinity" in name} <= in_plain


@pytest.mark.slow
def test_everything_that_is_trained_moves_routers_too_and_subjects_that_are_not_shown_do_not(
    monkeypatch, root, tmp_path
):
    config = tiny_config(root, tmp_path, data__subjects="1,2", training__max_lr="0.01")
    start = encoder_setup.setup(config, "image").embedding_decoder
    before = {
        name: parameter.detach().clone()
        for name, parameter in start.named_parameters()
        if parameter.requires_grad
    }
    seen = trained(monkeypatch, config)
    after = seen.states[-1]
    still = [name for name, value in before.items() if torch.equal(after[name], value)]
    assert still == []
    assert sum("affinity" in name for name in before) >= 2
    adapted = tiny_config(
        root,
        tmp_path / "new",
        data__subjects="1",
        training__init_from=str(tmp_path),
        training__trained="subject",
    )
    left = trained(monkeypatch, adapted)
    kept = load_file(next((tmp_path / "image" / EMBEDDING_DECODER).glob("*.safetensors")))
    moved = {name for name, value in left.states[-1].items() if not torch.equal(value, kept[name])}
    moved = {name for name in moved if not name.startswith("confidence.")}  # of the new person
    assert moved and all("subject_layer" in name for name in moved)


# --- which weights are kept -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cosines", "best"), [([0.1, 0.5, 0.3], 1), ([-0.3, -0.4, -0.2], 2), ([0.6, 0.5, 0.6], 0)]
)
@pytest.mark.slow
def test_the_embedding_decoder_of_the_best_validation_is_kept(
    monkeypatch, root, tmp_path, cosines, best
):
    seen = trained(monkeypatch, tiny_config(root, tmp_path), cosines=cosines)
    kept = EmbeddingDecoder.from_pretrained(seen.folder / EMBEDDING_DECODER).state_dict()
    # states were taken before the calibration that follows the best
    kept = {name: value for name, value in kept.items() if not name.startswith("confidence.")}
    assert [
        all(torch.equal(state[name], kept[name]) for name in kept) for state in seen.states
    ] == [n == best for n in range(3)]


def test_what_is_logged_is_the_mean_of_every_term_over_the_epoch(monkeypatch, root, tmp_path):
    terms = iter(range(1, 100))

    def step(embedding_decoder: EmbeddingDecoder, *_: Any) -> StepLosses:
        weight = next(
            parameter for parameter in embedding_decoder.parameters() if parameter.requires_grad
        )
        return StepLosses.of({"clip": 0 * weight.sum() + next(terms)})

    monkeypatch.setattr(stage, "step", step)
    seen = trained(
        monkeypatch, tiny_config(root, tmp_path, training__num_epochs="2"), cosines=[0.25, 0.125]
    )
    records = [
        json.loads(line) for line in (seen.folder / "metrics.jsonl").read_text().splitlines()
    ]
    count = (next(terms) - 1) // 2
    assert [record["train/clip"] for record in records] == pytest.approx(
        [(count + 1) / 2, count + (count + 1) / 2]
    )
    assert [record["epoch"] for record in records] == [1, 2] and [
        record["step"] for record in records
    ] == [count, 2 * count]
    assert [record["validation/cosine"] for record in records] == [0.25, 0.125]
    assert json.loads((seen.folder / "finished").read_text())["best_validation_cosine"] == 0.25


@pytest.mark.slow
def test_it_is_looked_at_as_often_as_asked_and_at_the_end(monkeypatch, root, tmp_path):
    config = tiny_config(root, tmp_path, training__validate_every="2", training__num_epochs="5")
    seen = trained(monkeypatch, config, cosines=[0.1, 0.2, 0.3])
    assert len(seen.states) == 3


def test_a_validation_averages_presentations_and_scores_the_embedding_after_the_prior(
    root, tmp_path
):
    config = tiny_config(root, tmp_path, data__subjects="1,2")
    parts = encoder_setup.setup(config, "image")
    embedding_decoder = LinearReader({1: 41, 2: 42})
    parts = parts._replace(
        held_out=[(with_a_gap(trials), betas) for trials, betas in parts.held_out]
    )
    found = stage.validate(embedding_decoder, parts._replace(embedding_decoder=embedding_decoder))
    assert (
        embedding_decoder.modes and not any(embedding_decoder.modes) and embedding_decoder.training
    )
    backbone, clip, truth = [], [], []
    for trials, betas in parts.held_out:
        for image in sorted(set(trials.table["image"])):
            rows = trials.table["trial"][trials.table["image"] == image].to_numpy()
            assert len(rows) == 2 + (image > trials.table["image"].min())
            out = embedding_decoder(torch.from_numpy(betas.rows(rows)), trials.subject)
            backbone.append(out.backbone_BTD.mean(0))
            clip.append(out.clip_BTD.mean(0))
            truth.append(parts.targets_ND[parts.row_of_image[image]])
    decoded, true = (
        embedding_decoder.prior.predict(torch.stack(backbone)).flatten(1),
        torch.stack(truth).flatten(1),
    )
    assert found["validation/cosine"] == pytest.approx(
        cosine_similarity(decoded, true).mean().item(), abs=1e-4
    )
    near = cosine_similarity(torch.stack(clip).flatten(1)[:, None], true[None], dim=-1).argmax(1)
    assert found["validation/retrieval"] == pytest.approx(
        (near == torch.arange(len(true))).float().mean().item(), abs=1e-4
    )
    (trials, betas), _ = parts.held_out
    one = Trials(
        trials.table[trials.table["image"] == trials.table["image"].iloc[0]], trials.subject
    )
    alone = stage.validate(
        embedding_decoder, parts._replace(held_out=[(one, betas)])
    )  # published accuracies fail with fewer candidates than k
    assert alone["validation/retrieval"] == 1
    embedding_decoder.prior = None
    bare = cosine_similarity(torch.stack(backbone).flatten(1), true).mean().item()
    assert stage.validate(embedding_decoder, parts)["validation/cosine"] == pytest.approx(
        bare, abs=1e-4
    )
    perfect = parts._replace(targets_ND=torch.stack(clip), row_of_image=row_numbers(parts))
    assert stage.validate(embedding_decoder, perfect)["validation/retrieval"] == 1


def row_numbers(parts: Any) -> np.ndarray:
    """Held-out images counted subject by subject."""
    images = [image for trials, _ in parts.held_out for image in sorted(set(trials.table["image"]))]
    rows = np.full(24, -1)
    rows[images] = np.arange(len(images))
    return rows


# --- a run is known by its settings ---------------------------------------------------------------


@pytest.mark.slow
def test_a_finished_run_is_left_alone_and_one_of_other_settings_refused(
    monkeypatch, root, tmp_path
):
    """Data, architecture, weights of the losses, optimizer, seed, and the run it starts from: none
    may change under a run.
    """
    start = {"training__init_from": str(tmp_path / "first"), "training__num_epochs": "1"}
    stage.train(tiny_config(root, tmp_path / "first", training__num_epochs="1"), "image")
    config = tiny_config(root, tmp_path / "run", **start)
    folder = stage.train(config, "image")
    monkeypatch.setattr(stage, "fit", lambda *_: pytest.fail("trained again"))
    assert stage.train(config, "image") == folder
    changes = {
        "data.num_sessions": "1",
        "data.subjects": "2",
        "encoder.dropout": "0.5",
        "prior.depth": "2",
        "loss_image.mse_scale": "9",
        "training.max_lr": "0.5",
    }
    for name, value in changes.items():
        with pytest.raises(UserError, match=name.replace(".", r"\.")):
            stage.train(
                tiny_config(root, tmp_path / "run", **start, **{name.replace(".", "__"): value}),
                "image",
            )
    with pytest.raises(UserError, match="seed"):
        stage.train(tiny_config(root, tmp_path / "run", **start, run__seed="4"), "image")
    weights = next((tmp_path / "first" / "image" / EMBEDDING_DECODER).glob("*.safetensors"))
    save_file({name: value + 1 for name, value in load_file(weights).items()}, weights)
    with pytest.raises(UserError, match="started_from"):
        stage.train(config, "image")


class OfRank:
    """An accelerator of another process."""

    def __init__(self, accelerator: Any, rank: int) -> None:
        self._accelerator, self.process_index = accelerator, rank

    def __getattr__(self, name: str) -> Any:
        return getattr(self._accelerator, name)


def test_every_process_drops_and_mixes_by_chances_of_its_own(monkeypatch, root, tmp_path):
    config = tiny_config(root, tmp_path)
    seeds: list[int] = []

    class Enough(Exception):
        pass

    def step(
        embedding_decoder: Any, batch: Any, parts: Any, progress: float, mixing: torch.Generator
    ) -> StepLosses:
        seeds.extend((torch.initial_seed(), mixing.initial_seed()))
        raise Enough

    monkeypatch.setattr(stage, "step", step)
    nothing: Any = None
    run: Any = SimpleNamespace(folder=tmp_path)
    for rank in range(3):
        parts = encoder_setup.setup(config, "image")
        accelerator = stage.accelerator_of(config, tmp_path, config.training.batch_size)
        other: Any = OfRank(accelerator, rank)
        task = stage.EncoderTask(config, parts, run, other, nothing)
        with pytest.raises(Enough):
            trainer.train_epoch(
                task, TrainingPosition(epoch=1), nothing, nothing, nothing, lambda: None
            )
    assert len(set(seeds)) == 6 and seeds[:2] == [
        hash_seed(0, "dropout", 1),
        hash_seed(0, "mixing", 1),
    ]


# --- numbers that are none ------------------------------------------------------------------------


class Together:
    """Processes, of which another may have found something."""

    def __init__(self, found: int = 0) -> None:
        self.found = found

    def all_reduce_max(self, value: int) -> int:
        return max(value, self.found)


SOUND, BROKEN = (
    StepLosses.of({"clip": torch.tensor(1.0), "prior": torch.tensor(value)})
    for value in (2.0, math.nan)
)


def test_losses_that_are_no_numbers_stop_the_training_in_every_process(tmp_path):
    with Run.start(tmp_path, {"a": 1}) as run:
        alone = Divergence(run, Together(), False, "Lower it.")  # type: ignore[arg-type]
        assert alone.passed(SOUND, "here")
        alone.validated({"validation/cosine": 0.5}, "there")
        assert not (tmp_path / "diverged.json").exists()
        with pytest.raises(
            UserError, match=r"NaN or infinite losses here: prior nan\. .*Lower it\."
        ):
            alone.passed(BROKEN, "here")
        assert (
            json.loads((tmp_path / "diverged.json").read_text())["reason"]
            == "NaN or infinite losses here: prior nan"
        )
        with pytest.raises(UserError, match=r"there: validation/cosine inf\."):
            alone.validated({"validation/cosine": math.inf, "validation/retrieval": 0.5}, "there")
        with pytest.raises(
            UserError, match=r"here: clip 1, prior 2\."
        ):  # another process's are not numbers
            Divergence(run, Together(1), False, "").passed(SOUND, "here")  # type: ignore[arg-type]


def test_under_a_loss_scale_single_passes_may_overflow(tmp_path):
    with Run.start(tmp_path, {"a": 1}) as run:
        scaled = Divergence(run, Together(), True, "Lower it.")  # type: ignore[arg-type]
        for _ in range(3):
            assert not any(scaled.passed(BROKEN, "here") for _ in range(Divergence.TOLERATED))
            assert scaled.passed(SOUND, "here")
        assert not any(scaled.passed(BROKEN, "here") for _ in range(Divergence.TOLERATED))
        assert not (tmp_path / "diverged.json").exists()
        with pytest.raises(UserError, match=r"here: prior nan.* Lower it\."):
            scaled.passed(BROKEN, "here")


@pytest.mark.parametrize(
    ("place", "told"),
    [("step", "in epoch 1, step 2 of"), ("validate", "at step 3: validation/cosine nan")],
)
def test_a_training_of_no_numbers_ends_as_no_success(monkeypatch, root, tmp_path, place, told):
    calls = iter(range(1, 100))

    def step(embedding_decoder: EmbeddingDecoder, *_: Any) -> StepLosses:
        weight = next(
            parameter for parameter in embedding_decoder.parameters() if parameter.requires_grad
        )
        return StepLosses.of({"clip": weight.sum() * (math.nan if next(calls) == 2 else 0.0)})

    if place == "step":
        monkeypatch.setattr(stage, "step", step)
    else:
        monkeypatch.setattr(stage, "validate", lambda *_: {"validation/cosine": math.nan})
    with pytest.raises(UserError, match=told):
        stage.train(tiny_config(root, tmp_path), "image")
    assert (
        not (tmp_path / "image" / "finished").exists()
        and not (tmp_path / "image" / EMBEDDING_DECODER).exists()
    )


# --- that it learns -------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_few_trials_are_learnt_by_heart(root, tmp_path):
    """Going down the objective brings every output to its target."""
    more = {
        "loss_image__mse_scale": "5",
        "loss_image__deep_supervision_weight": "5",
        "training__max_lr": "0.02",
        "training__batch_size": "4",
    }
    config = tiny_config(root, tmp_path, encoder__hidden_dim="32", **more)
    parts = encoder_setup.setup(config, "image")
    embedding_decoder, batch = parts.embedding_decoder, parts.batches.batch(0, 0)
    truth = parts.targets_ND[parts.row_of_image[batch[0].image_B.numpy()]].flatten(1)

    @torch.no_grad()
    def likeness() -> np.ndarray:
        out = embedding_decoder.eval()(batch[0].voxels_BV, 1)
        levels = out.level_backbone_BLTD.flatten(2).unbind(1)
        decoded = [
            out.backbone_BTD.flatten(1),
            embedding_decoder.prior.predict(out.backbone_BTD).flatten(1),
            out.clip_BTD.flatten(1),
            *levels,
        ]
        embedding_decoder.train()
        return np.array([cosine_similarity(each, truth).mean().item() for each in decoded])

    before = likeness()
    optimizer = stage.optimizer_of(embedding_decoder, config)
    draws = generator()
    for _ in range(40):
        optimizer.zero_grad()
        stage.step(embedding_decoder, batch, parts, 1.0, draws).total.backward()
        optimizer.step()
    assert (likeness() > before + 0.2).all()


# --- the embedding of an embedding decoder --------------------------------------------------------


def test_a_embedding_decoder_answers_in_clips_own_units_after_the_prior_as_it_is_used():
    torch.manual_seed(0)
    encoder = {
        "subjects": {"1": 8},
        "clip_seq_dim": 1,
        "clip_emb_dim": WIDTH,
        "hidden_dim": 16,
        "n_blocks": 1,
        "exp_factor_list": [2],
    }
    prior = {"dim": WIDTH, "num_tokens": 1, "depth": 1, "dim_head": 6, "timesteps": 10}
    sampled = EmbeddingDecoder("BrainMoEMulti", encoder, prior, "sample", 2, 2.5).eval()
    mean_TD, draws = torch.randn(1, WIDTH), generator(1)
    sampled.set_scale(TargetScale(mean_TD, 3.0))
    true = torch.randn(2, 1, WIDTH, generator=draws)
    torch.testing.assert_close(sampled.standardised(true), (true - mean_TD) / 3)
    torch.testing.assert_close(sampled.in_clip_units(sampled.standardised(true)), true)
    rows, noise = (
        torch.randn(4, 1, WIDTH, generator=draws),
        torch.randn(2, *sampled.noise_shape, generator=draws),
    )
    with torch.no_grad():
        shared = noise[[0, 0, 1, 1]]  # two levels of either picture
        expected = sampled.prior.sample(rows, steps=2, guidance_scale=2.5, noise=shared)
        torch.testing.assert_close(sampled.through_prior(rows, noise), expected)
        torch.testing.assert_close(sampled.embedding(rows, noise), 3 * expected + mean_TD)
        asked_once = EmbeddingDecoder("BrainMoEMulti", encoder, prior).eval()
        torch.testing.assert_close(asked_once.embedding(rows), asked_once.prior.predict(rows))
        assert asked_once.noise_shape == () != sampled.noise_shape


# --- reading the test images ----------------------------------------------------------------------


def test_test_images_are_read_by_id_their_presentations_averaged(monkeypatch, root, tmp_path):
    config = tiny_config(root, tmp_path, data__subjects="2,1")
    monkeypatch.setattr(
        stage_reading,
        "test_trials",
        lambda layout, subject: with_a_gap(test_trials(layout, subject)),
    )
    parts = encoder_setup.setup(config, "image")
    embedding_decoder = parts.embedding_decoder.eval()
    found = stage_reading.decode_test_images(config, "image", embedding_decoder)
    trials = with_a_gap(test_trials(Layout.of(root), 2)).table
    betas = Betas.of(Layout.of(root), 2)
    assert found.image_N.tolist() == [0, 1, 2, 3]
    with torch.no_grad():
        for row, image in enumerate(found.image_N):
            out = embedding_decoder(
                torch.from_numpy(betas.rows(trials["trial"][trials["image"] == image].to_numpy())),
                2,
            )
            decoded = embedding_decoder.in_clip_units(
                embedding_decoder.prior.predict(out.backbone_BTD.mean(0, keepdim=True))
            )
            torch.testing.assert_close(
                found.embedding_ND[row], decoded.flatten(), rtol=1e-4, atol=1e-4
            )
            torch.testing.assert_close(
                found.clip_ND[row], out.clip_BTD.mean(0).flatten(), rtol=1e-4, atol=1e-4
            )
    one, two = (
        stage_reading.decode_test_images(config, "image", embedding_decoder, random=True)
        for _ in range(2)
    )
    assert torch.equal(one.embedding_ND, two.embedding_ND) and not torch.allclose(
        one.embedding_ND, found.embedding_ND
    )
    assert not torch.allclose(one.embedding_ND[0], one.embedding_ND[1])
    other = tiny_config(root, tmp_path, data__subjects="2,1", run__seed="5")
    assert not torch.allclose(
        one.embedding_ND,
        stage_reading.decode_test_images(
            other, "image", embedding_decoder, random=True
        ).embedding_ND,
    )


def test_the_noise_of_a_sampled_prior_is_of_image_and_seed(monkeypatch, root, tmp_path):
    config = tiny_config(
        root, tmp_path, prior__use="sample", prior__sample_steps="2", run__seed="5"
    )
    asked: list[tuple[Any, ...]] = []
    spy(monkeypatch, stage_reading, "seeded_noise", lambda *given: asked.append(given))
    embedding_decoder = encoder_setup.setup(config, "image").embedding_decoder
    stage_reading.decode_test_images(config, "image", embedding_decoder)
    assert asked == [([0, 1, 2, 3], embedding_decoder.noise_shape, 5, "prior of image")]


def test_reading_is_scored_with_the_pools_that_are_set(monkeypatch, root, tmp_path):
    monkeypatch.setattr(decoding, "FEWEST_CANDIDATES", 2)
    config = tiny_config(
        root,
        tmp_path,
        evaluation__retrieval_pool="3",
        evaluation__retrieval_draws="7",
        run__seed="5",
    )
    embedding_decoder = encoder_setup.setup(config, "image").embedding_decoder
    ids = np.arange(4)
    perfect = stage_reading.TestEmbeddings(
        table("image")[ids].flatten(1),
        embedding_decoder.standardised(table("image")[ids]).flatten(1),
        ids,
    )
    asked: list[dict[str, Any]] = []
    spy(monkeypatch, stage_reading, "decoder_scores", lambda *_, **named: asked.append(named))
    found = stage_reading.score_embeddings(config, "image", embedding_decoder, perfect)
    assert asked == [{"pool": 3, "draws": 7, "resamples": 1, "seed": 5}] * 2
    assert found.chance["retrieval_brain_to_image"] == pytest.approx(1 / 3)


def test_scores_of_a_embedding_decoder_are_computed_once_and_kept(monkeypatch, root, tmp_path):
    monkeypatch.setattr(decoding, "FEWEST_CANDIDATES", 2)
    config = tiny_config(root, tmp_path)
    embedding_decoder = encoder_setup.setup(config, "image").embedding_decoder.eval()
    embedding_decoder.save_pretrained(tmp_path / "embedding_decoder")
    asked: list[bool] = []
    spy(
        monkeypatch,
        stage_reading,
        "decode_test_images",
        lambda config, modality, embedding_decoder, random: asked.append(random),
    )
    found = [
        stage_reading.scores_at(
            config, "image", tmp_path / f"{random}.json", tmp_path / "embedding_decoder", random
        )
        for random in (False, True)
    ]
    again = stage_reading.scores_at(config, "image", tmp_path / "False.json", tmp_path / "gone")
    assert asked == [False, True]
    expected = stage_reading.score_embeddings(
        config,
        "image",
        embedding_decoder,
        stage_reading.decode_test_images(config, "image", embedding_decoder, random=False),
    )
    for one in (found[0], again):
        assert one.chance == expected.chance and one.values.keys() == expected.values.keys()
        assert all(
            one.values[name] == pytest.approx(values, abs=1e-6)
            for name, values in expected.values.items()
        )
    assert found[1].by_place("clip_cos") != again.by_place("clip_cos") and list(
        again.by_place("clip_cos")
    ) == [0, 1, 2, 3]


def test_what_was_read_is_scored_against_its_own_images(monkeypatch, root, tmp_path):
    """The true embeddings score 1; of two exchanged images neither is found, and the cosine is of
    CLIP's own units.
    """
    monkeypatch.setattr(
        decoding, "FEWEST_CANDIDATES", 2
    )  # the tiny data folder has four test images
    config = tiny_config(root, tmp_path)
    embedding_decoder = encoder_setup.setup(config, "image").embedding_decoder
    ids = np.array([2, 0, 3, 1])
    true = table("image")[ids].flatten(1)
    standard = embedding_decoder.standardised(table("image")[ids]).flatten(1)
    perfect = stage_reading.score_embeddings(
        config, "image", embedding_decoder, stage_reading.TestEmbeddings(true, standard, ids)
    ).values
    assert {name: value.mean() for name, value in perfect.items()} == pytest.approx(
        dict.fromkeys(perfect, 1.0)
    )
    swapped = [1, 0, 2, 3]
    exchanged = stage_reading.TestEmbeddings(true[swapped], standard[swapped], ids)
    found = stage_reading.score_embeddings(config, "image", embedding_decoder, exchanged).values
    assert (
        found["retrieval_brain_to_image"].mean() == found["retrieval_image_to_brain"].mean() == 0.5
    )
    cosine = cosine_similarity(true[swapped].double(), true.double())
    assert sorted(found["clip_cos"]) == pytest.approx(sorted(cosine.tolist()), abs=1e-5)
    assert found["two_way_clip"].mean() < 1
    read = stage_reading.TestEmbeddings
    apart = [
        {
            name: value.mean()
            for name, value in stage_reading.score_embeddings(
                config, "image", embedding_decoder, one
            ).values.items()
        }
        for one in (read(true[swapped], standard, ids), read(true, standard[swapped], ids))
    ]
    assert apart[0]["two_way_clip"] < 1 == apart[1]["two_way_clip"] and apart[0]["clip_cos"] < 1
    assert [each["retrieval_brain_to_image"] for each in apart] == [1, 0.5] and apart[1][
        "clip_cos"
    ] == pytest.approx(1)
    chance = stage_reading.score_embeddings(config, "image", embedding_decoder, exchanged).chance
    assert chance == {
        "two_way_clip": 0.5,
        "retrieval_brain_to_image": 0.25,
        "retrieval_image_to_brain": 0.25,
    }
