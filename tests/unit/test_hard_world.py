"""The hard world: what was asked of it, its noise, its people, and the folder it writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from braingen.config import load_config
from braingen.data.betas import Betas, report_voxels
from braingen.data.checks import all_checks
from braingen.data.stimuli import Stimuli
from braingen.data.trials import group_repeats, scanned_sessions, test_trials, train_trials
from braingen.data.volumes import load_label_vector, read_regions
from braingen.encoding_model.features import FeatureSpaces
from braingen.runtime.data_layout import Layout
from braingen.runtime.errors import UserError
from braingen.simulation.cortex import VISUAL_AREAS
from braingen.simulation.dataset import simulate, write_dataset
from braingen.simulation.folder import Arguments
from braingen.simulation.hard_world import catalogue
from braingen.simulation.hard_world.compose import NOTHING, HardScenes, draw_scenes
from braingen.simulation.hard_world.dataset import load_hard_scenes, write_hard_dataset
from braingen.simulation.hard_world.observers import Observer
from braingen.simulation.hard_world.population import AREAS, EARLY, build_brain
from braingen.simulation.hard_world.scene_features import (
    effective_dimensions,
    reference_scenes,
    scene_features,
)
from braingen.simulation.hard_world.trial_noise import (
    COMMON_GAIN,
    GAIN_SD,
    plan_noise,
    session_responses,
)
from braingen.simulation.noise import neighbour_mixing
from braingen.targets.tables import Targets

SIZE = {
    "num_subjects": 3,
    "num_sessions": 2,
    "trials_per_session": 120,
    "num_voxels": 300,
    "num_test_images": 20,
    "noise": 1.0,
    "seed": 3,
}
pytestmark = pytest.mark.slow  # tables of the world, and a small data set, are made in full


def some(scenes: HardScenes, count: int) -> HardScenes:
    return HardScenes(*(values[:count] for values in scenes))


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "hard"
    return write_hard_dataset(root, Arguments(**SIZE), show_progress=False)


@pytest.fixture(scope="module")
def person():
    brain = build_brain(0, 1, 600)
    return brain, plan_noise(brain, some(reference_scenes(), 1500), 1.0)


# --- scenes and target ----------------------------------------------------------------------------


def test_a_scene_has_two_to_four_of_120_kinds_in_relations():
    scenes = draw_scenes(0, range(400), 0)
    there = scenes.kind_NJ != NOTHING
    assert len(catalogue.KINDS) == 120 == len(set(catalogue.KINDS))
    assert set(there.sum(1)) == {2, 3, 4}
    np.testing.assert_array_equal(scenes.relation_NJ[:, 0], NOTHING)
    np.testing.assert_array_equal(scenes.relation_NJ[:, 1:] != NOTHING, there[:, 1:])
    assert (scenes.size_NJ[:, 0] >= scenes.size_NJ[:, 1:].max(1)).all()
    for kind, texture in zip(scenes.kind_NJ[there], scenes.texture_NJ[there]):
        assert texture in catalogue.TEXTURES_OF_K[kind]


def shows_new(scenes: HardScenes, n: int) -> bool:
    kind, relation = scenes.kind_NJ[n], scenes.relation_NJ[n]
    category = scenes.supercategory_NJ[n]
    return bool(catalogue.NEW_KIND_ON_BACKGROUND_KB[kind[0], scenes.background_N[n]]) or any(
        catalogue.NEW_RELATION_SRS[category[j - 1], relation[j], category[j]]
        for j in range(1, 4)
        if kind[j] != NOTHING
    )


def test_only_every_second_test_image_shows_a_combination_that_was_held_out():
    scenes = draw_scenes(1, range(300), 100)
    found = [shows_new(scenes, n) for n in range(300)]
    assert found[:100] == [n % 2 == 1 for n in range(100)] and not any(found[100:])
    np.testing.assert_array_equal(scenes.new_N, found)


def test_a_scene_depends_on_seed_and_id_only():
    together, alone = draw_scenes(2, [5, 7, 90], 20), draw_scenes(2, [90], 20)
    for whole, one in zip(together, alone):
        np.testing.assert_array_equal(whole[2:], one)
    assert not np.array_equal(draw_scenes(3, [90], 20).clutter_NC, alone.clutter_NC)


def test_the_target_has_at_least_60_effective_dimensions():
    features = scene_features(draw_scenes(9, range(3000), 0))
    assert effective_dimensions(features.embedding_ND) >= 60
    np.testing.assert_allclose(np.linalg.norm(features.embedding_ND, axis=1), 1, rtol=1e-5)


def test_effective_dimensions_of_white_noise_are_its_width_and_of_a_line_one():
    drawn = np.random.default_rng(0).standard_normal((20000, 30))
    assert effective_dimensions(drawn) == pytest.approx(30, rel=0.02)
    assert effective_dimensions(drawn[:, :1] * np.arange(1, 5)) == pytest.approx(1)


# --- people and noise -----------------------------------------------------------------------------


def test_people_differ_in_sizes_of_areas_and_every_third_lacks_one():
    brains = [build_brain(0, subject, 600) for subject in (1, 2, 3)]
    sizes = np.array([[(brain.area_V == area).mean() for area in AREAS] for brain in brains])
    assert (sizes[:2] > 0).all() and (sizes[2] == 0).sum() == 1
    assert brains[2].missing == AREAS[int((sizes[2] == 0).argmax())]
    assert np.abs(np.log(sizes[0] / sizes[1])).max() > 0.3
    again = build_brain(0, 1, 600)
    np.testing.assert_array_equal(again.content_weights_VF, brains[0].content_weights_VF)


def test_tuning_of_an_area_is_shared_up_to_a_shift():
    """The weights of one person's area lie closer to another's than to another area's."""
    first, second = (build_brain(0, subject, 900) for subject in (1, 2))

    def directions(brain, area):
        return np.linalg.svd(brain.content_weights_VF[brain.area_V == area], full_matrices=False)[
            2
        ][:8]

    def overlap(a, b):
        return np.linalg.norm(a @ b.T) ** 2 / 8

    same = overlap(directions(first, "semantic"), directions(second, "semantic"))
    other = overlap(directions(first, "semantic"), directions(second, "PPA"))
    assert 0.98 > same > 2 * other


def test_signal_is_standardised_and_silent_voxels_have_none(person):
    brain, plan = person
    signal_NV = brain.signal(reference_scenes())
    has_V = plan.snr_V > 0
    assert 0.05 < 1 - has_V.mean() < 0.25
    np.testing.assert_allclose(signal_NV[:, has_V].std(0), 1, rtol=1e-3)
    assert not signal_NV[:, ~has_V].any() and not plan.aligned_VK[~has_V].any()


def test_15_to_30_percent_of_the_noise_is_aligned_with_the_signal(person):
    brain, plan = person
    has_V = plan.snr_V > 0
    assert 0.15 <= plan.aligned_share_V[has_V].mean() <= 0.30
    signal_NV = brain.signal(some(reference_scenes(), 1500))
    signal_NV = signal_NV - signal_NV.mean(0)
    rank = plan.aligned_VK.shape[1]
    leading = np.linalg.svd(signal_NV, full_matrices=False)[2][:rank]
    inside = np.linalg.norm(leading @ plan.aligned_VK) ** 2 / np.linalg.norm(plan.aligned_VK) ** 2
    assert rank < len(has_V) / 4 and inside > 0.85


def test_noise_of_repeats_is_the_planted_one(person):
    brain, plan = person
    signal_V = brain.signal(draw_scenes(0, [0, 1], 0))
    place = np.arange(6000) % 2
    found = session_responses(
        np.random.default_rng(0),
        brain,
        plan,
        neighbour_mixing(brain.sheet.millimetres_V3),
        signal_V[place],
    )
    noise_V = np.mean([found.response_TV[place == k].var(0) for k in (0, 1)], axis=0)
    has_V = plan.snr_V > 0
    # gains scale an image's own response: over these two images, not over all
    gained_V = plan.gain_variance * ((signal_V + has_V) ** 2).mean(0)
    wanted_V = 1 / plan.snr_V[has_V] ** 2 - 2 * plan.gain_variance + gained_V[has_V]
    assert np.median(noise_V[has_V] / wanted_V) == pytest.approx(1, rel=0.05)
    log_TA = np.log(found.gain_TA)
    assert log_TA.std(0).mean() == pytest.approx(GAIN_SD, rel=0.05)
    assert found.gain_TA.mean() == pytest.approx(1, abs=0.05)
    between = np.corrcoef(log_TA.T)[np.triu_indices(len(AREAS), 1)].mean()
    assert between == pytest.approx(COMMON_GAIN, abs=0.05)


def test_without_noise_a_trial_is_signal_and_baseline():
    brain = build_brain(0, 1, 300)
    plan = plan_noise(brain, some(reference_scenes(), 500), 0.0)
    signal_TV = brain.signal(draw_scenes(0, range(30), 0))
    mixing = neighbour_mixing(brain.sheet.millimetres_V3)
    found = session_responses(np.random.default_rng(0), brain, plan, mixing, signal_TV)
    np.testing.assert_allclose(found.response_TV, signal_TV + (plan.snr_V > 0), atol=1e-5)


# --- the folder -----------------------------------------------------------------------------------


def test_the_ordinary_readers_read_it(layout):
    config = load_config("simulated_hard", {"data.root": str(layout.root)})
    for subject in (1, 2, 3):
        train, test = train_trials(layout, subject), test_trials(layout, subject)
        assert len(train.table) + len(test.table) == 240
        assert group_repeats(test).rows_NR.shape == (20, 3)
        assert not any(found.any() for found in report_voxels(Betas.of(layout, subject)))
        area = np.load(layout.truth(subject))["area"]
        labels = load_label_vector(layout, subject, "prf-visualrois")
        early = np.isin(area, EARLY)
        np.testing.assert_array_equal(labels > 0, early)
        np.testing.assert_array_equal(labels == 1 + VISUAL_AREAS.index("hV4"), area == "hV4")
        np.testing.assert_array_equal(read_regions(layout, subject)["early_vis"], early)
    assert not [each for each in all_checks(layout, (1, 2), 0, "optional") if each.level == "error"]
    assert scanned_sessions(layout, 1) == 2
    ids = np.array([3, 25])
    targets = Targets(config)
    np.testing.assert_array_equal(
        targets.image(ids)[:, 0].numpy(), Stimuli(layout).features("embedding", ids)
    )
    bands = FeatureSpaces(config, targets).of_ids(ids)
    assert list(bands) == list(config.encoding.bands)
    scenes = load_hard_scenes(layout)
    wanted = scene_features(HardScenes(*(values[ids] for values in scenes)))
    np.testing.assert_allclose(bands["late"], wanted.bands["late"], rtol=1e-5, atol=1e-6)


def test_pictures_are_refused_in_a_sentence(layout):
    stimuli = Stimuli(layout)
    assert stimuli.simulated and stimuli.data_name == "simulated data"
    with pytest.raises(UserError, match=r"no pictures \(simulation.world=hard\)"):
        stimuli.images(np.array([0]))
    with pytest.raises(UserError, match="no pictures"):
        _ = stimuli.size


def test_training_trials_are_z_scored_per_session(layout):
    table, betas = train_trials(layout, 2).table, Betas.of(layout, 2)
    for session in range(2):
        rows = betas.rows(table["trial"][table["session"] == session].to_numpy())
        np.testing.assert_allclose(rows.mean(0), 0, atol=1e-4)
        np.testing.assert_allclose(rows.std(0), 1, atol=1e-3)


def content(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and ".braingen" not in path.parts and ".simulating" not in path.parts
    }


def test_a_lost_file_is_made_again_with_the_same_bytes(layout, tmp_path):
    fresh = write_hard_dataset(tmp_path / "again", Arguments(**SIZE), show_progress=False)
    before = content(fresh.root)
    assert before == content(layout.root)
    fresh.truth(2).unlink()
    fresh.features().unlink()
    write_hard_dataset(fresh.root, Arguments(**SIZE), show_progress=False)
    assert content(fresh.root) == before


def test_a_folder_of_the_other_world_is_refused(layout):
    with pytest.raises(UserError, match="was simulated with format hard 1"):
        write_dataset(layout.root, Arguments(**SIZE), show_progress=False)


def test_the_command_writes_the_world_that_is_asked_for(tmp_path):
    changed = {
        "data.root": str(tmp_path / "hard"),
        **{f"simulation.{name}": str(value) for name, value in SIZE.items()},
        "simulation.num_subjects": "1",
    }
    root = simulate(load_config("simulated_hard", changed))
    assert Layout.of(root).features().exists() and not Layout.of(root).images().exists()


# --- observers ------------------------------------------------------------------------------------


def test_observers_who_know_the_truth_decode_above_chance_and_gains_help(layout):
    observer = Observer(layout, 1)
    right = observer.identify().argmax(1) == np.arange(20)
    assert right.mean() > 0.5

    def error(decoded_ND):
        return ((decoded_ND - observer.true_ND) ** 2).sum(1).mean()

    spread = ((observer.true_ND - observer.statistics[1].mean(0)) ** 2).sum(1).mean()
    assert error(observer.oracle_gate()) < error(observer.best_linear()) < spread
    snr = observer.population_snr()
    assert (np.diff(snr) <= 0).all() and snr[0] > 0
