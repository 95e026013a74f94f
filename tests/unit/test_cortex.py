"""Laws of the simulated visual cortex: what was planted is there, and can be found by ways that
know nothing of how it was planted.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import cKDTree

from braingen.simulation import retina, scenes, semantics
from braingen.simulation.cortex import (
    FLOC_AREAS,
    OTHER_AREAS,
    VISUAL_AREAS,
    build_cortex,
    early_responses,
    late_responses,
    responses,
)
from braingen.simulation.cortical_sheet import VOXEL_SIZE
from braingen.simulation.noise import neighbour_mixing, planted_snr, session_noise
from braingen.simulation.retina import CELLS, CHANNELS, FIELD_OF_VIEW, channel_maps

pytestmark = pytest.mark.slow  # left out of `make quick`

VOXELS = 500


@pytest.fixture(scope="module")
def cortex():
    return build_cortex(seed=3, subject=1, voxels=VOXELS)


@pytest.fixture(scope="module")
def shown():
    """Some scenes, and their pictures as stored."""
    drawn = [scenes.random_scene(np.random.default_rng(9_000_000_000 + i)) for i in range(330)]
    return drawn, np.stack([scenes.stimulus(scenes.render(scene)) for scene in drawn])


# --- the sheet ------------------------------------------------------------------------------------


@pytest.mark.parametrize("voxels", [50, 333, 2000])
def test_there_are_exactly_as_many_voxels_as_asked_for(voxels):
    cortex = build_cortex(0, 1, voxels)
    assert cortex.sheet.mask.sum() == voxels == len(cortex.area_V) == len(cortex.snr_V)
    assert np.diag(cortex.sheet.affine)[:3] == pytest.approx(VOXEL_SIZE)
    assert set(cortex.area_V) <= {*VISUAL_AREAS, *OTHER_AREAS, *sum(FLOC_AREAS.values(), ())}


def test_the_same_seed_grows_the_same_brain_and_subjects_differ(cortex):
    again, other = build_cortex(3, 1, VOXELS), build_cortex(3, 2, VOXELS)
    for name in ("area_V", "prf_x_V", "channel_weights_VC", "code_weights_VK", "snr_V"):
        np.testing.assert_array_equal(getattr(again, name), getattr(cortex, name))
        assert not np.array_equal(getattr(other, name), getattr(cortex, name))
    assert (
        other.sheet.mask.shape != cortex.sheet.mask.shape
        or (other.sheet.mask != cortex.sheet.mask).any()
    )


def test_neighbours_are_alike():
    cortex = build_cortex(3, 1, 1500)
    _, near = cKDTree(cortex.sheet.millimetres_V3).query(cortex.sheet.millimetres_V3, k=2)
    far = np.random.default_rng(0).permutation(len(near))
    both = np.stack([cortex.channel_weights_VC.argmax(1), cortex.code_weights_VK.argmax(1)], 1)
    for values in (cortex.prf_x_V, cortex.prf_y_V, np.log(cortex.snr_V)):
        assert (
            np.abs(values - values[near[:, 1]]).mean() < 0.8 * np.abs(values - values[far]).mean()
        )
    assert (cortex.area_V == cortex.area_V[near[:, 1]]).mean() > 0.7
    assert (both == both[near[:, 1]]).mean() > 2 * (both == both[far]).mean()


def test_every_hemisphere_sees_the_other_side_and_left_is_left(cortex):
    left = cortex.sheet.hemisphere_V == 0
    assert 0.3 < left.mean() < 0.7
    assert (cortex.prf_x_V[left] > 0).mean() > 0.95 and (cortex.prf_x_V[~left] < 0).mean() > 0.95
    assert (cortex.sheet.millimetres_V3[left, 0] < 0).all() and (
        cortex.sheet.millimetres_V3[~left, 0] > 0
    ).all()


def test_receptive_fields_grow_with_eccentricity_and_along_the_hierarchy():
    cortex = build_cortex(0, 1, 3000)
    typical = []
    for areas in (("V1v", "V1d"), ("V2v", "V2d"), ("V3v", "V3d"), ("hV4",)):
        inside = np.isin(cortex.area_V, areas)
        assert np.corrcoef(cortex.prf_eccentricity_V[inside], cortex.prf_size_V[inside])[0, 1] > 0.6
        typical.append(
            np.median(
                cortex.prf_size_V[
                    inside & (cortex.prf_eccentricity_V > 1) & (cortex.prf_eccentricity_V < 3)
                ]
            )
        )
    assert typical == sorted(typical)
    above = cortex.prf_y_V > 0
    assert (
        above[cortex.area_V == "V1v"].mean() > 0.9 > 0.1 > above[cortex.area_V == "V1d"].mean()
    )  # ventral V1 sees the upper field


# --- early areas ----------------------------------------------------------------------------------


def _bars() -> np.ndarray:
    """Bars of random texture sweeping over a grey screen in four directions: pictures and where the
    bar is (N, 224, 224).
    """
    rng = np.random.default_rng(0)
    side = scenes.STIMULUS_SIZE
    y, x = (np.indices((side, side)) + 0.5) / side - 0.5
    apertures = []
    for angle in np.arange(4) * np.pi / 4:
        along = x * np.cos(angle) + y * np.sin(angle)
        apertures += [np.abs(along - centre) < 0.06 for centre in np.linspace(-0.52, 0.52, 19)]
    texture = (
        rng.random((len(apertures), 3, side // 4, side // 4)).repeat(4, axis=2).repeat(4, axis=3)
    )
    apertures = np.stack(apertures)
    return np.where(apertures[:, None], texture, 0.5).astype(np.float32), apertures


@pytest.mark.slow
def test_a_receptive_field_fit_recovers_the_planted_centres(cortex):
    pictures, apertures = _bars()
    response = early_responses(cortex, pictures)
    response = response + 0.1 * response.std(0) * np.random.default_rng(1).standard_normal(
        response.shape
    )
    # the usual model of population receptive fields, on the aperture alone: nothing of how this
    # cortex sees goes in
    small = apertures.reshape(len(apertures), 56, 4, 56, 4).mean((2, 4)).reshape(len(apertures), -1)
    step = ((np.arange(56) + 0.5) / 56 - 0.5) * FIELD_OF_VIEW
    grid = np.linspace(-4.4, 4.4, 45)
    best, centre = np.full(response.shape[1], -1.0), np.zeros((response.shape[1], 2))
    measured = (response - response.mean(0)) / response.std(0)
    for sigma in (0.3, 0.5, 0.8, 1.2, 1.8):
        across = np.exp(-((step - grid[:, None]) ** 2) / (2 * sigma**2))
        fields = np.einsum("ay,bx->abyx", across[:, ::-1], across).reshape(
            len(grid) ** 2, -1
        )  # row a: y of the centre
        predicted = (small @ fields.T) ** 0.5
        predicted = (predicted - predicted.mean(0)) / (predicted.std(0) + 1e-9)
        correlation = predicted.T @ measured / len(measured)
        where, better = correlation.argmax(0), correlation.max(0) > best
        best = np.maximum(best, correlation.max(0))
        centre[better] = np.stack([grid[where % len(grid)], grid[where // len(grid)]], 1)[better]
    early = cortex.early_V
    planted = np.stack([cortex.prf_x_V, cortex.prf_y_V], 1)[early]
    inside = np.abs(planted).max(1) < 3.5
    error = np.linalg.norm(centre - planted, axis=1)[inside]
    assert inside.sum() > 80
    assert np.median(error) < 0.35
    for axis in (0, 1):
        assert np.corrcoef(centre[inside, axis], planted[inside, axis])[0, 1] > 0.95


def test_channels_see_what_they_are_named_after():
    side = scenes.STIMULUS_SIZE
    degrees = np.broadcast_to((np.arange(side) + 0.5) / side * FIELD_OF_VIEW, (side, side))
    for scale in retina.SCALES:
        waves = 0.5 + 0.4 * np.sin(2 * np.pi * scale * degrees)
        pictures = np.stack([np.stack([waves] * 3), np.stack([waves.T] * 3)])
        seen = (
            channel_maps(pictures)
            .mean(2)[:, : retina.CONTRAST_CHANNELS]
            .reshape(2, len(retina.SCALES), -1)
        )
        for picture, orientation in ((0, 0), (1, 3)):  # a horizontal change, a vertical one
            assert np.unravel_index(seen[picture].argmax(), seen[picture].shape) == (
                retina.SCALES.index(scale),
                orientation,
            )
    plain = np.full((1, 3, side, side), 0.5)
    assert np.abs(channel_maps(plain)).max() < 1e-6
    plain[:, 0] = 1.0  # brighter, and red
    maps = channel_maps(plain)[0].reshape(len(CHANNELS), CELLS, CELLS)[:, 10:18, 10:18].mean((1, 2))
    named = dict(zip(CHANNELS, maps))
    assert named["red"] > 1 and named["bright"] > 0.5 and named["yellow"] > 0.5
    assert named["green"] == named["blue"] == named["dark"] == 0


def test_doubling_contrast_raises_the_response_less_than_energy(cortex):
    rng = np.random.default_rng(0)
    texture = (
        rng.uniform(-0.2, 0.2, (1, 1, 56, 56)).repeat(4, axis=2).repeat(4, axis=3).repeat(3, axis=1)
    )
    once, twice = (early_responses(cortex, 0.5 + factor * texture) for factor in (1, 2))
    assert np.median(twice / once) == pytest.approx(
        2, abs=0.3
    )  # energy is 4 times as large, its square root twice


def test_pictures_of_another_size_are_refused():
    with pytest.raises(ValueError, match="224"):
        channel_maps(np.zeros((1, 3, 100, 100)))


# --- late areas -----------------------------------------------------------------------------------


def test_the_semantic_code_speaks_of_every_scene():
    names = {thing.name for thing in scenes.OBJECTS}
    assert all(set(preferred) <= names for preferred in semantics.PREFERENCES.values())
    assert all(
        set(preferred) <= set(scenes.BACKGROUNDS)
        for preferred in semantics.PLACE_PREFERENCES.values()
    )
    assert sum(entries.stop - entries.start for entries in semantics.GROUPS.values()) == len(
        semantics.CODE
    )
    drawn = [scenes.random_scene(np.random.default_rng(i)) for i in range(400)]
    code = semantics.encode(drawn)
    assert (code.main_NK.sum(1) >= 2).all() and set(
        code.scene_NK[:, : len(scenes.BACKGROUNDS)].sum(1)
    ) == {1.0}
    two = np.array([len(scene.objects) == 2 for scene in drawn])
    assert 0 < two.mean() < 0.2
    np.testing.assert_array_equal(code.second_NK.any(1), two)
    numbers = code.scene_NK[:, len(scenes.BACKGROUNDS) :]
    assert (
        np.abs(numbers.mean(0)).max() < 0.25
        and numbers.std(0).min() > 0.7
        and numbers.std(0).max() < 1.3
    )
    label = semantics.labels(drawn)
    assert (label.max(0) < semantics.LABEL_COUNTS).all() and (label >= 0).all()


@pytest.mark.long
def test_category_areas_prefer_their_category(shown):
    cortex = build_cortex(0, 1, 3000)
    drawn, _ = shown
    late = late_responses(cortex, drawn)
    late = (late - late.mean(0)) / late.std(0)
    area = cortex.area_V[~cortex.early_V]
    names = np.array([scenes.OBJECTS[scene.objects[0].object].name for scene in drawn])
    for areas, category in (
        (FLOC_AREAS["floc-faces"], "faces"),
        (FLOC_AREAS["floc-bodies"], "bodies"),
        (("food",), "food"),
    ):
        preferred = [
            name for name, strength in semantics.PREFERENCES[category].items() if strength == 1
        ]
        of_area = late[:, np.isin(area, areas)].mean(1)
        assert (
            of_area[np.isin(names, preferred)].mean()
            > of_area[~np.isin(names, preferred)].mean() + 1
        )


def test_late_voxels_respond_weaker_where_the_object_is_far_from_their_field(cortex):
    scene = scenes.random_scene(np.random.default_rng(0))
    thing = scene.objects[0]
    here, there = (scene._replace(objects=(thing._replace(x=x),)) for x in (0.2, 0.8))
    right_field = cortex.prf_x_V[~cortex.early_V] > 0.3
    driven = (
        cortex.code_weights_VK[~cortex.early_V][:, : len(semantics.OBJECT_CODE)]
        @ semantics.encode([scene]).main_NK[0]
        > 0.5
    )
    category = ~np.isin(
        cortex.area_V[~cortex.early_V], ("semantic", "where")
    )  # these also read the place as such
    at_left, at_right = late_responses(cortex, [here, there])
    chosen = right_field & driven & category
    assert chosen.sum() > 5
    assert (at_right > at_left)[chosen].all()
    assert np.median((at_left / at_right)[chosen]) > 0.5  # but tolerant to position


def _ridge_r2(features: np.ndarray, response: np.ndarray, train: int) -> np.ndarray:
    """Explained variance on left-out pictures, per voxel; the penalty is the best of a few."""
    features = (features - features[:train].mean(0)) / (features[:train].std(0) + 1e-6)
    mean = response[:train].mean(0)
    kernel = features[:train] @ features[:train].T
    best = np.full(response.shape[1], -np.inf)
    for penalty in np.trace(kernel) / train * np.array([0.03, 0.1, 0.3, 1, 3]):
        dual = np.linalg.solve(kernel + penalty * np.eye(train), response[:train] - mean)
        predicted = features[train:] @ (features[:train].T @ dual) + mean
        residual = ((response[train:] - predicted) ** 2).sum(0) / (
            (response[train:] - response[train:].mean(0)) ** 2
        ).sum(0)
        best = np.maximum(best, 1 - residual)
    return best


@pytest.mark.long
@pytest.mark.slow
def test_contrast_explains_early_voxels_and_categories_late_ones(cortex, shown):
    drawn, pictures = shown
    signal = responses(cortex, pictures, drawn)
    signal = (signal - signal.mean(0)) / signal.std(0)
    three_trials = signal + np.random.default_rng(0).standard_normal(
        signal.shape
    ) / cortex.snr_V / np.sqrt(3)
    coarse = (
        channel_maps(pictures)
        .reshape(len(pictures), len(CHANNELS), 7, CELLS // 7, 7, CELLS // 7)
        .mean((3, 5))
    )
    contrast = np.sqrt(coarse).reshape(len(pictures), -1)
    label = semantics.labels(drawn)
    category = np.concatenate(
        [np.eye(count)[label[:, k]] for k, count in enumerate(semantics.LABEL_COUNTS)], axis=1
    )
    by_contrast, by_category = (
        _ridge_r2(features, three_trials, 250) for features in (contrast, category)
    )
    early = cortex.early_V
    assert np.median(by_contrast[early]) > np.median(by_category[early]) + 0.05
    assert np.median(by_category[~early]) > np.median(by_contrast[~early]) + 0.05
    assert np.median(by_contrast[early]) > 0.1 and np.median(by_category[~early]) > 0.1


# --- noise ----------------------------------------------------------------------------------------


def test_snr_is_log_normal_with_the_stated_quantiles():
    rng = np.random.default_rng(0)
    early = rng.random(4000) < 0.4
    field = rng.standard_normal(4000)
    snr = planted_snr(field, early)
    assert np.median(snr[early]) == pytest.approx(0.45, rel=0.01) and np.median(
        snr[~early]
    ) == pytest.approx(0.35, rel=0.01)
    for inside in (early, ~early):
        assert np.quantile(snr[inside], 0.95) == pytest.approx(1.0, rel=0.02)
        assert (np.argsort(snr[inside]) == np.argsort(field[inside])).all()


def test_noise_has_the_planted_strength_neighbours_share_it_and_it_drifts():
    cortex = build_cortex(0, 1, 800)
    mixing = neighbour_mixing(cortex.sheet.millimetres_V3)
    noise_sd = (1 / cortex.snr_V).astype(np.float32)
    sessions = [session_noise(np.random.default_rng(s), 300, noise_sd, mixing) for s in range(6)]
    added = np.concatenate([session.added_TV for session in sessions]) / noise_sd
    attention = np.concatenate([session.attention_T for session in sessions])
    assert np.sqrt((added**2).mean() + attention.var() * (cortex.snr_V**2).mean()) == pytest.approx(
        1, abs=0.03
    )
    _, near = cKDTree(cortex.sheet.millimetres_V3).query(cortex.sheet.millimetres_V3, k=2)
    correlation = np.corrcoef(added.T)
    assert correlation[near[:, 0], near[:, 1]].mean() > 0.2
    far = (
        np.linalg.norm(cortex.sheet.millimetres_V3[:, None] - cortex.sheet.millimetres_V3, axis=2)
        > 25
    )
    assert abs(correlation[far].mean()) < 0.05
    one = sessions[0].added_TV / noise_sd
    slow = (
        one.reshape(6, 50, -1).mean(1).var(0).mean()
    )  # white noise would leave 1/50 of its variance in means of 50 trials
    assert slow > 2 / 50


def test_without_noise_nothing_is_added():
    cortex = build_cortex(0, 1, 60)
    noise = session_noise(
        np.random.default_rng(0),
        10,
        np.zeros(60, dtype=np.float32),
        neighbour_mixing(cortex.sheet.millimetres_V3),
    )
    assert not noise.added_TV.any() and (noise.attention_T == 1).all()
