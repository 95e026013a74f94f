"""The step `tuning` of `braingen interpret`: what voxels respond to, by the encoding model.

N images, V voxels, C categories, B bands.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from braingen.data.trials import train_trials
from braingen.encoding_model.run import TrainedEncoding, has_encoding, load_encoding
from braingen.interpret.inputs import SubjectData, read_labels
from braingen.interpret.maps import membership
from braingen.interpret.question import Explanation
from braingen.interpret.readout import WHOLE
from braingen.interpret.volumes import region_table

FIGURES = 12
"""Number of figures: the categories that change responses most."""


def category_tuning(predicted_NV: np.ndarray, member_NC: np.ndarray) -> np.ndarray:
    """Predicted response to the images of a category less that to all others: C x V, in standard
    deviations of the voxel's responses. Zeros for a category of none, or of all images.
    """
    found_CV = np.zeros((member_NC.shape[1], predicted_NV.shape[1]), dtype=np.float32)
    for row, member_N in enumerate(member_NC.T):
        if member_N.any() and not member_N.all():
            found_CV[row] = predicted_NV[member_N].mean(0) - predicted_NV[~member_N].mean(0)
    return found_CV


def write_tuning(work: Explanation) -> None:
    """Write maps of bands and categories, tables, figures, and the agreement with attributions and
    patterns.
    """
    tables, sentences = [], []
    for subject in work.inputs.subjects:
        config = work.config.model_copy(
            update={"data": work.config.data.model_copy(update={"subjects": (subject.number,)})}
        )
        if not has_encoding(config):
            work.report(
                f"Tuning: skipped, because subject {subject.number} has no encoding model; fit one"
                " with `braingen train encoding`."
            )
            return
        trained = load_encoding(config)
        _write_bands(work, subject, trained)
        strongest = max(
            zip(trained.model.ridge.bands, trained.model.share_BV.mean(1)), key=lambda x: x[1]
        )
        sentences.append(
            f"Tuning: of subject {subject.number}'s responses the encoding model explains"
            f" {np.maximum(trained.model.explained_V, 0).mean():.1%} in left-out images, most of it"
            f" by the band {strongest[0]} ({strongest[1]:.1%})"
        )
        if work.inputs.classes is not None:
            tables.append(_write_categories(work, subject, trained))
    if tables:
        table = pd.concat(tables, ignore_index=True)
        work.table(work.folder / "tuning.csv", table)
        beside = [
            f"with {what} {table[column].mean():.2f}"
            for column, what in (("patterns", "patterns"), ("attributions", "attributions"))
            if table[column].notna().any()
        ]
        if beside:
            sentences[-1] += (
                f"; maps of categories correlate over voxels {' and '.join(beside)} (mean over"
                " categories)"
            )
    for sentence in sentences:
        work.report(f"{sentence}.")


def _write_bands(work: Explanation, subject: SubjectData, trained: TrainedEncoding) -> None:
    """Maps and regions of explained variance, noise ceiling and bands."""
    model = trained.model
    maps = {"explained": model.explained_V, "noise-ceiling": model.ceiling_V.astype(np.float32)}
    maps |= dict(zip(model.ridge.bands, model.share_BV))
    own = work.of(subject)
    for name, value_V in maps.items():
        subject.places.write(own / "nifti" / "bands" / f"{name}.nii.gz", value_V)
        if np.isfinite(value_V).all():
            work.draw(own / "figures" / f"band-{name}.png", subject, value_V, "")
    finite = {name: value_V for name, value_V in maps.items() if np.isfinite(value_V).all()}
    work.table(own / "bands_regions.csv", region_table(finite, work.regions(subject)))


def _write_categories(
    work: Explanation, subject: SubjectData, trained: TrainedEncoding
) -> pd.DataFrame:
    """Maps, figures and a table of every category."""
    classes, own = work.inputs.classes, work.of(subject)
    assert classes is not None
    labels = read_labels(work.config, work.inputs.simulated)
    assert labels is not None
    shown_N = np.unique(
        train_trials(work.layout, subject.number, work.config.data.num_sessions)
        .table["image"]
        .to_numpy()
    )
    member_NC = membership(labels(shown_N), classes.names)
    predicted_NV = trained.model.predict(trained.spaces.of_ids(shown_N))
    map_CV = category_tuning(predicted_NV, member_NC)
    for name, map_V in zip(classes.names, map_CV):
        path = own / "nifti" / "tuning" / f"{name.replace(' ', '_')}.nii.gz"
        subject.places.write(path, map_V)
    regions = region_table(dict(zip(classes.names, map_CV)), work.regions(subject))
    work.table(own / "tuning_regions.csv", regions)
    named = regions[regions["region"] != "in no region"]
    best = named.loc[named.groupby("map")["mean"].idxmax()].set_index("map") if len(named) else None
    size_C = np.abs(map_CV).mean(1)
    for row in np.argsort(-size_C)[:FIGURES]:
        path = own / "figures" / f"tuning-{classes.names[row].replace(' ', '_')}.png"
        work.draw(path, subject, map_CV[row], "")
    return pd.DataFrame(
        {
            "subject": subject.number,
            "class": classes.names,
            "images": member_NC.sum(0),
            "size": size_C,
            "region": "" if best is None else [best.loc[n, "region"] for n in classes.names],
            "mean": np.nan if best is None else [best.loc[n, "mean"] for n in classes.names],
            "patterns": _with_patterns(subject, own, classes.names, map_CV),
            "attributions": _with_attributions(work, subject, classes.member_NC, map_CV),
        }
    )


def _with_patterns(
    subject: SubjectData, own: Path, names: tuple[str, ...], map_CV: np.ndarray
) -> list[float]:
    """Correlation over voxels with the pattern of every category; NaN without patterns."""
    found = []
    for name, map_V in zip(names, map_CV):
        path = own / "nifti" / "patterns" / f"{name.replace(' ', '_')}.nii.gz"
        found.append(
            correlation(subject.places.read(path), map_V) if path.exists() else float("nan")
        )
    return found


def _with_attributions(
    work: Explanation, subject: SubjectData, member_NC: np.ndarray, map_CV: np.ndarray
) -> list[float]:
    """Correlation over voxels of sizes: of tuning, and of the whole decoder's attributions in test
    images of the category; NaN without attributions.
    """
    maps = work.map_file(subject, WHOLE)
    if not maps.finished:
        return [float("nan")] * len(map_CV)
    size_NV = maps.maps()
    return [
        correlation(np.abs(size_NV[member_N]).mean(0), np.abs(map_V))
        if member_N.any()
        else float("nan")
        for member_N, map_V in zip(member_NC.T, map_CV)
    ]


def correlation(first_V: np.ndarray, second_V: np.ndarray) -> float:
    """Pearson correlation over voxels; NaN where one of the two is constant."""
    if first_V.std() < 1e-12 or second_V.std() < 1e-12:
        return float("nan")
    return float(np.corrcoef(first_V, second_V)[0, 1])
