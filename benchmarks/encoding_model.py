"""Encoding models against the planted truth of simulated subjects, and a new person's single
session decoded by them, beside ridge regression and beside pretraining on others.

    python benchmarks/encoding_model.py truth data/four0 data/four1 data/four2
    python benchmarks/encoding_model.py person data/four0 data/four1 data/four2 --curves runs/c0 ...

`truth` fits subject 1 of every folder on all its sessions; `person` decodes the first session, or
part of it (`--share`), of every one of `--subjects` by an encoding model of their own, by one with
the other people of the folder for a prior, and by that with `--pictures` further scenes, which
nobody was shown, in the library. The folders are simulated with other seeds:

    braingen simulate --root data/four0 --num_subjects 4 simulation.num_sessions=3
    simulation.trials_per_session=240 simulation.num_voxels=800 --num_test_images 100
    simulation.seed=0

Intervals are bootstraps over the test images of all folders together; differences are paired by
image; p is of a sign-flip permutation test, not corrected.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.stats import rankdata

from braingen.config import Config, load_config
from braingen.data.betas import Betas
from braingen.data.trials import group_repeats, subjects_on_disk, test_trials, train_trials
from braingen.encoders.embedding_decoder import EmbeddingDecoder
from braingen.encoders.ridge import fit_ridge
from braingen.encoding_model.banded_ridge import candidate_scales
from braingen.encoding_model.features import FeatureSpaces
from braingen.encoding_model.model import EncodingModel
from braingen.encoding_model.people import people_groups
from braingen.encoding_model.pictures import Pictures, folder_pictures, library_pictures
from braingen.encoding_model.responses import average_responses
from braingen.encoding_model.run import mean_responses
from braingen.encoding_model.train import fit_subject
from braingen.evaluation.decoding import decoder_scores
from braingen.evaluation.embeddings import decode_test_images, score_embeddings
from braingen.evaluation.identification import two_way
from braingen.evaluation.uncertainty import mean_interval, permutation_p, two_way_by_image
from braingen.runtime.console import track
from braingen.runtime.data_layout import Layout
from braingen.runtime.files import write_json
from braingen.runtime.paths import EMBEDDING_DECODER
from braingen.simulation.pictures import picture_of

BEST = "with others"
LIBRARY_SEED = 900
"""Of the scenes that are added to the library; no data folder is simulated with it."""
SCORES = ("retrieval_brain_to_image", "retrieval_image_to_brain", "two_way", "clip_cos")


def config_of(root: str, subject: int, sessions: int) -> Config:
    """The simulated configuration at a folder."""
    changed = {"data.root": root, "data.subjects": str(subject)}
    return load_config("simulated", {**changed, "data.num_sessions": str(sessions)})


def area_under_curve(score: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve."""
    rank = rankdata(score)
    count = positive.sum()
    above = rank[positive].sum() - count * (count + 1) / 2
    return float(above / (count * (~positive).sum()))


def truth(root: str) -> dict[str, float]:
    """How well the encoding model of subject 1 recovers what was planted."""
    config, layout = config_of(root, 1, 0), Layout.of(root)
    spaces = FeatureSpaces(config)
    responses = average_responses(train_trials(layout, 1), Betas.of(layout, 1))
    features = spaces.of_ids(responses.image_N)
    model = EncodingModel.fit(features, responses, candidate_scales(len(features), 16, 0))
    planted = np.load(layout.truth(1))
    predicted = model.predict(spaces.of_ids(planted["test_image"]))
    signal = planted["test_signal"]
    centred = [x - x.mean(0) for x in (predicted, signal)]
    r_V = (centred[0] * centred[1]).sum(0) / np.prod(
        [np.linalg.norm(x, axis=0) for x in centred], axis=0
    )
    area = planted["area"].astype(str)
    early = np.isin([name[:2] for name in area], ("V1", "V2", "V3", "hV"))
    share = dict(zip(model.ridge.bands, model.share_BV))
    low_minus_high = sum(share[b] for b in ("energy", "early")) - sum(
        share[b] for b in ("embedding", "late")
    )
    reliable = model.ceiling_V > 0.1
    found = {
        "images": len(responses.image_N),
        "voxels": len(r_V),
        "r_signal_early": float(np.nanmean(r_V[early])),
        "r_signal_late": float(np.nanmean(r_V[~early])),
        "r_signal_reliable_quarter": float(
            np.nanmean(r_V[planted["snr"] > np.quantile(planted["snr"], 0.75)])
        ),
        "explained_share_of_ceiling_median": float(
            np.median(model.explained_V[reliable] / model.ceiling_V[reliable])
        ),
        "auc_bands_tell_early": area_under_curve(low_minus_high, early),
        "auc_bands_tell_early_reliable": area_under_curve(
            low_minus_high[reliable], early[reliable]
        ),
        "snr_correlation": float(np.corrcoef(model.snr_V, planted["snr"])[0, 1]),
        "snr_median_estimated": float(np.median(model.snr_V)),
        "snr_median_planted": float(np.median(planted["snr"])),
    }
    return found | {
        f"share_{name}_{where}": float(share[name][mask].mean())
        for name in share
        for where, mask in (("early", early), ("late", ~early))
    }


class Images(NamedTuple):
    """Test images and how they are scored."""

    ids: np.ndarray
    true_ND: np.ndarray
    mean_D: np.ndarray

    def scores(self, decoded_ND: np.ndarray) -> dict[str, np.ndarray]:
        """Scores of every image, around the training mean as `evaluate` takes them."""
        cosine = decoder_scores(decoded_ND, self.true_ND, self.ids, resamples=1)[1]["clip_cos"]
        rows = decoder_scores(
            decoded_ND - self.mean_D, self.true_ND - self.mean_D, self.ids, resamples=1
        )[1]
        beats = two_way(self.true_ND - self.mean_D, decoded_ND - self.mean_D).beats_NN
        return {
            **{name: rows[name].to_numpy() for name in SCORES[:2]},
            "two_way": two_way_by_image(beats),
            "clip_cos": cosine.to_numpy(),
        }


def further_pictures(folder: Path, root: str, count: int) -> Pictures:
    """So many rendered scenes, kept in a folder, with the features that the data of a root have."""
    folder.mkdir(exist_ok=True)
    for image in track(range(count), description="pictures"):
        path = folder / f"{image:06d}.png"
        if not path.exists():
            pixels = picture_of(LIBRARY_SEED, image).transpose(1, 2, 0)
            Image.fromarray(np.round(pixels.astype(np.float32) * 255).astype(np.uint8)).save(path)
    return folder_pictures(folder, FeatureSpaces(config_of(root, 1, 1)), count, 0)


def person(
    root: str, subject: int, curve: str | None, more: Pictures | None, share: float
) -> dict[str, dict[str, np.ndarray]]:
    """Decode one session of a new person in every way."""
    config, layout = config_of(root, subject, 1), Layout.of(root)
    spaces = FeatureSpaces(config)
    pictures = library_pictures(config, spaces)
    others = []
    for other in subjects_on_disk(layout):
        if other != subject:
            theirs = average_responses(train_trials(layout, other), Betas.of(layout, other))
            features = spaces.of_ids(theirs.image_N)
            scales = candidate_scales(len(features), config.encoding.band_draws, 0)
            others.append(EncodingModel.fit(features, theirs, scales))
    trials, betas = train_trials(layout, subject, 1), Betas.of(layout, subject)
    trials = trials._replace(table=trials.table.iloc[: round(len(trials.table) * share)])
    responses = average_responses(trials, betas)
    repeats = group_repeats(test_trials(layout, subject))
    measured = mean_responses(repeats, betas)
    known_ND = spaces.targets.image(responses.image_N).flatten(1).numpy()
    images = Images(
        repeats.image_N, spaces.targets.image(repeats.image_N).flatten(1).numpy(), known_ND.mean(0)
    )
    shown = trials.table["image"].to_numpy()
    each_ND = spaces.targets.image(shown).flatten(1).numpy()
    ridge = fit_ridge(betas.rows(trials.table["trial"].to_numpy()), each_ND, shown)
    found = {"ridge": images.scores(ridge.predict(measured))}
    groups = people_groups(others, pictures.features)
    libraries = {"": pictures}
    if more is not None:
        libraries[f", {len(more.names)} pictures more"] = pictures.joined(more)
    for library, each in libraries.items():
        for name, prior in (("encoding model", None), (BEST, groups)):
            model = fit_subject(config, subject, responses, spaces, each, prior)
            decoded = model.decode(measured, each.library(model)).embedding_ND
            found[name + library] = images.scores(decoded)
    if curve:
        for way in ("routers", "subject"):
            runs = sorted(Path(curve, "adaptation_curve").glob(f"{way}-1sessions-seed*/image"))
            tables = [by_encoder(config, run, images) for run in runs]
            if tables:
                found[f"pretrained, {way}"] = {
                    name: np.mean([table[name] for table in tables], axis=0) for name in SCORES
                }
    return found


def by_encoder(config: Config, run: Path, images: Images) -> dict[str, np.ndarray]:
    """Scores of a trained encoder: retrieval by its projected output, in its own units."""
    decoder = EmbeddingDecoder.from_pretrained(run / EMBEDDING_DECODER)
    read = decode_test_images(config, "image", decoder)
    found = images.scores(read.embedding_ND.numpy())
    retrieved = score_embeddings(config, "image", decoder, read).values
    return found | {name: retrieved[name] for name in SCORES[:2]}


def compare(ways: dict[str, dict[str, np.ndarray]]) -> dict[str, dict[str, dict[str, float]]]:
    """Means with intervals, and differences of those with other people to the rest, paired by
    image.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    for way, scores in ways.items():
        found[way] = {name: mean_interval(scores[name])._asdict() for name in SCORES}
        print(f"{way:40s}" + "".join(_cell(found[way][name]) for name in SCORES))
    best = [way for way in ways if way.startswith(BEST)]
    for one, other in itertools.product(best, ways):
        if other != one and (other not in best or best.index(other) < best.index(one)):
            label = f"{one} - {other}"
            found[label] = {}
            for name in SCORES:
                gain = ways[one][name] - ways[other][name]
                p = permutation_p(gain)
                found[label][name] = {**mean_interval(gain)._asdict(), "p": p}
            print(f"{label:64s}" + "".join(_cell(found[label][name], True) for name in SCORES))
    return found


def _cell(value: dict[str, float], p: bool = False) -> str:
    beside = f" p {value['p']:.3f}" if p else ""
    return f"  {value['value']:.3f} ({value['low']:.3f} to {value['high']:.3f}){beside}"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("truth", "person"))
    parser.add_argument("roots", nargs="+")
    parser.add_argument("--subjects", type=int, nargs="+", default=[4])
    parser.add_argument("--pictures", type=int, default=0, help="further ones in the library")
    parser.add_argument("--share", type=float, default=1.0, help="of the session's trials")
    parser.add_argument("--curves", nargs="*", default=[])
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/encoding_model.json"))
    chosen = parser.parse_args()
    if chosen.what == "truth":
        rows = [truth(root) for root in chosen.roots]
        for name in rows[0]:
            values = [row[name] for row in rows]
            print(f"{name:36s} " + "  ".join(f"{value:.3f}" for value in values))
        write_json(chosen.json, dict(zip(chosen.roots, rows)))
        return
    curves = [*chosen.curves, *[None] * len(chosen.roots)]
    asked = [
        (root, subject, curve)
        for root, curve in zip(chosen.roots, curves)
        for subject in chosen.subjects
    ]
    more = None
    if chosen.pictures:
        beside = Path(chosen.roots[0]).resolve().parent / "library"
        more = further_pictures(beside, chosen.roots[0], chosen.pictures)
    parts = [person(*each, more, chosen.share) for each in asked]
    common = [way for way in parts[0] if all(way in part for part in parts)]
    together = {
        way: {name: np.concatenate([part[way][name] for part in parts]) for name in SCORES}
        for way in common
    }
    for (root, subject, _), part in zip(asked, parts):
        print(root, "subject", subject)
        for way, scores in part.items():
            means = "  ".join(f"{name} {scores[name].mean():.3f}" for name in SCORES)
            print(f"  {way:40s} {means}")
    write_json(chosen.json, compare(together))


if __name__ == "__main__":
    main()
