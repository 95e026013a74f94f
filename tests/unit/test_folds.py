"""Few trials: the epoch chosen by cross-validation over training images, and scores by leaving
pictures out.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from unit.tiny_training import TableTargets, spy, tiny_config

from braingen.evaluation.folds import CENTRED, RETRIEVAL, TWO_WAY, ImageFold, pooled, split_images
from braingen.runtime.errors import UserError
from braingen.runtime.run_folder import Run
from braingen.runtime.text_files import read_json
from braingen.training import encoder as stage
from braingen.training import encoder_setup


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("folds") / "data"


@pytest.fixture(autouse=True)
def table_in_place_of_clip(monkeypatch):
    monkeypatch.setattr(encoder_setup, "Targets", TableTargets)
    monkeypatch.setattr(stage, "FOLDS", 3)


# --- the epoch by folds ---------------------------------------------------------------------------


def images_of(trials) -> set[int]:
    return set(trials.table["image"].tolist())


@pytest.mark.parametrize("subjects", ["1", "1,2"])
def test_every_training_image_is_in_one_fold_and_held_out_images_are_in_none(
    root, tmp_path, subjects
):
    config = tiny_config(root, tmp_path, data__subjects=subjects)
    whole = encoder_setup.splits_of(config)
    folds = [
        encoder_setup.splits_of(config, encoder_setup.TrialFold(number, 3)) for number in range(3)
    ]
    for position, (kept, held) in enumerate(whole):
        judged = [images_of(fold[position][1]) for fold in folds]
        trained = [images_of(fold[position][0]) for fold in folds]
        assert set.union(*judged) == images_of(kept) and sum(map(len, judged)) == len(
            images_of(kept)
        )
        for one, other in zip(judged, trained):
            assert one | other == images_of(kept) and not one & other
            assert not (one | other) & images_of(held)
    sizes = [len(set.union(*(images_of(held) for _, held in fold))) for fold in folds]
    assert max(sizes) - min(sizes) <= 1


def test_folds_are_drawn_by_the_seed(monkeypatch, root, tmp_path):
    split = encoder_setup.hold_out_images
    monkeypatch.setattr(
        encoder_setup, "hold_out_images", lambda trials, share, seed: split(trials, share, 0)
    )
    configs = [tiny_config(root, tmp_path, run__seed=seed) for seed in ("0", "0", "5")]
    one, again, other = (
        [
            images_of(encoder_setup.splits_of(c, encoder_setup.TrialFold(k, 3))[0][1])
            for k in range(3)
        ]
        for c in configs
    )
    assert one == again != other


@pytest.mark.slow
def test_the_epoch_of_the_best_mean_over_left_out_images_is_kept(monkeypatch, root, tmp_path):
    """Curves of the folds disagree; the fold with more images counts more, and the run's own
    held-out images do not count.
    """
    curves = iter([[0.1, 0.5, 0.2], [0.1, 0.2, 0.4], [0.1, 0.2, 0.4], [0.9, 0.0, 0.1]])
    current: list[float] = []

    def validate(embedding_decoder, parts):
        if not current:
            current.extend(next(curves))
        return {"validation/cosine": current.pop(0), "validation/retrieval": 0.0}

    monkeypatch.setattr(stage, "validate", validate)
    kept: list[tuple[str, int]] = []
    spy(
        monkeypatch,
        stage,
        "save_best",
        lambda run, *_: kept.append((run.folder.name, len(run.metrics))),
    )
    config = tiny_config(root, tmp_path / "run", training__checkpoint="folds")
    folder = stage.train(config, "image")
    sizes = [
        len(images_of(encoder_setup.splits_of(config, encoder_setup.TrialFold(k, 3))[0][1]))
        for k in range(3)
    ]
    left_out = np.array([[0.1, 0.5, 0.2], [0.1, 0.2, 0.4], [0.1, 0.2, 0.4]])
    best = int((left_out.T @ sizes).argmax())
    assert best != int(left_out.sum(axis=0).argmax())  # a fold counts by its images
    assert best == 1  # what follows would say nothing if it were the first or the last
    assert [epoch for name, epoch in kept if name == folder.name] == [best]
    assert read_json(folder / "finished")["epoch_chosen_by_folds"] == best + 1
    assert (folder / "embedding_decoder").is_dir()
    assert not list((folder / "folds").glob("*/embedding_decoder"))
    assert all(Run(fold).finished for fold in (folder / "folds").iterdir())
    assert all(Run(fold).provenance["seeds"] == {"run": 0} for fold in (folder / "folds").iterdir())


@pytest.mark.slow
def test_a_fold_learns_from_the_other_folds_only(monkeypatch, root, tmp_path):
    seen: dict[str, set[int]] = {}
    judged: dict[str, set[int]] = {}

    def look(config, parts, run, *_):
        seen[run.folder.name] = {
            int(i) for batch in parts.batches.epoch(0, 0) for part in batch for i in part.image_B
        }
        judged[run.folder.name] = set.union(*(images_of(trials) for trials, _ in parts.held_out))

    spy(monkeypatch, stage, "fit", look)
    config = tiny_config(
        root, tmp_path / "run", training__checkpoint="folds", training__num_epochs="1"
    )
    stage.train(config, "image")
    assert len(seen) == 4
    for name in seen:
        assert not seen[name] & judged[name], name
    assert (
        set.union(*(judged[name] for name in judged if name.startswith("fold-"))) == seen["image"]
    )


@pytest.mark.parametrize(
    ("choice", "few", "expected"), [("auto", 30, True), ("auto", 1, False), ("held_out", 30, False)]
)
def test_folds_are_taken_where_held_out_images_are_few(
    monkeypatch, caplog, root, tmp_path, choice, few, expected
):
    monkeypatch.setattr(stage, "FEW_IMAGES", few)
    config = tiny_config(root, tmp_path, training__checkpoint=choice)
    assert stage.by_folds(config) == expected
    assert ("training.checkpoint=folds" in caplog.text) == (choice == "held_out")


def test_too_few_images_for_folds_are_refused(root, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "FOLDS", 30)
    with pytest.raises(UserError, match=r"training\.checkpoint=held_out"):
        stage.train(tiny_config(root, tmp_path / "run", training__checkpoint="folds"), "image")


# --- scores by folds ------------------------------------------------------------------------------


def made_folds(
    noise: float, subjects: tuple[int, ...] = (1, 2), count: int = 24, folds: int = 4
) -> list[ImageFold]:
    draws = np.random.default_rng(0)
    names = [f"picture{i:02d}" for i in range(count)]
    true = dict(zip(names, 5 + draws.normal(size=(count, 12))))
    found = []
    for subject in subjects:
        for part in split_images(names, folds, seed=1):
            mean = np.mean([true[name] for name in names if name not in part], axis=0)
            rows = np.stack([true[name] for name in part])
            decoded = {
                "encoder": rows + noise * draws.normal(size=rows.shape),
                "random": mean + draws.normal(size=rows.shape),
            }
            found.append(ImageFold(subject, part, rows, mean, decoded))
    return found


def test_perfect_embeddings_are_perfect_and_random_ones_at_chance():
    rows, differences = pooled(made_folds(0.0), resamples=200)
    of = {(row.method, row.score): row for row in rows}
    for score in (CENTRED, TWO_WAY, RETRIEVAL):
        assert of["encoder", score].value == pytest.approx(1)
    two_way = of["random", TWO_WAY]
    assert two_way.low < 0.5 < two_way.high and two_way.chance == 0.5
    assert of["random", RETRIEVAL].chance == pytest.approx(1 / 6)
    assert abs(of["random", CENTRED].value) < 0.2
    assert all(row.n == 24 and row.subjects == 2 for row in rows)
    gain = next(each for each in differences if each.score == TWO_WAY)
    assert gain.difference == pytest.approx(1 - two_way.value) and gain.low > 0 and gain.p < 0.05


def test_scores_are_means_over_subjects_of_means_over_their_own_pictures():
    """One subject saw fewer pictures; a fold is compared within itself."""
    folds = made_folds(1.0)
    folds = [fold for fold in folds if fold.subject == 1] + [
        fold for fold in folds if fold.subject == 2
    ][:2]
    rows, _ = pooled(folds, resamples=20)
    by_subject: dict[int, list[float]] = {}
    for fold in folds:
        for j, decoded in enumerate(fold.decoded["encoder"]):
            mine = [
                np.corrcoef(decoded - fold.mean_D, true - fold.mean_D)[0, 1]
                for true in fold.true_ND
            ]
            share = np.mean([mine[i] < mine[j] for i in range(len(mine)) if i != j])
            by_subject.setdefault(fold.subject, []).append(share)
    expected = np.mean([np.mean(values) for values in by_subject.values()])
    assert next(
        r for r in rows if (r.method, r.score) == ("encoder", TWO_WAY)
    ).value == pytest.approx(expected)


def test_no_retrieval_among_fewer_than_five():
    rows, _ = pooled(made_folds(0.0, count=8, folds=2), resamples=20)
    assert RETRIEVAL not in {row.score for row in rows}
    rows, _ = pooled(made_folds(0.0, count=10, folds=2), resamples=20)
    assert RETRIEVAL in {row.score for row in rows}


def test_scores_of_several_draws_are_averaged():
    folds = made_folds(1.0)
    twice = [
        fold._replace(
            decoded={"encoder": np.stack([fold.decoded["encoder"], fold.decoded["random"]])}
        )
        for fold in folds
    ]
    rows, _ = pooled(folds, resamples=20)
    both, _ = pooled(twice, resamples=20)
    for row in both:
        expected = np.mean([each.value for each in rows if each.score == row.score])
        assert row.value == pytest.approx(expected)


def test_a_picture_left_out_twice_is_refused():
    folds = made_folds(0.0)
    with pytest.raises(UserError, match="left out twice"):
        pooled([*folds, folds[0]], resamples=20)


def test_pictures_are_shared_out_evenly_and_each_once():
    parts = split_images([f"{i}.png" for i in range(92)], 10)
    assert sorted(len(part) for part in parts) == [9] * 8 + [10] * 2
    assert len({name for part in parts for name in part}) == 92
    with pytest.raises(UserError, match="2 to 3"):
        split_images(list("abcdef"), 4)
