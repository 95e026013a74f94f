"""Score the reconstructions beside random voxels, a ceiling and ridge regression; every figure with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image
from rich.console import Console
from rich.table import Column, Table
from safetensors.torch import load_file
import torch
from torch import Tensor

from braingen.clip.cache import fingerprint_of_files
from braingen.config import Config
from braingen.data.betas import Betas
from braingen.data.nsd import Layout
from braingen.data.trials import group_repeats, test_trials, train_trials
from braingen.errors import UserError
from braingen.files import write_json, write_text
from braingen.records import Score
from braingen.runs import Run
from braingen.scores import features as published_networks
from braingen.scores.decoding import decoder_scores
from braingen.scores.feature_store import FeatureStore
from braingen.scores.features import Features
from braingen.scores.ridge import fit_ridge
from braingen.scores.sheet import ReadOut, Sheet, score_images, with_baselines
from braingen.scores.study.of_run import read_study, scores_in
from braingen.scores.table import as_json, markdown, rows_of
from braingen.scores.uncertainty import compare, mean_interval
from braingen.simulation.observers import ClipFeatures, judge_networks, load_judge, readouts, spoken
from braingen.simulation.scenes import COLOUR_NAMES
from braingen.stages.reconstruct import EMBEDDINGS, INDEX, folder_of
from braingen.stages.refine import refined_folder, refined_is_there
from braingen.stages.targets import Targets

SCORES, PER_IMAGE, COMPARISONS, TABLE = "scores.json", "scores_per_image.csv", "comparisons.json", "scores.md"
REFINED, REFINEMENT = "refined", "refinement.json"
"""Name of the refined pictures beside the sources, and where their scores go."""


class Decoding(NamedTuple):
    """Scores of embeddings, before any picture."""

    scores: dict[str, Score]
    table: pd.DataFrame
    """Values of every image; the index is the image id."""


class Pngs(Sequence):
    """PNGs of a folder as uint8 arrays 3 x H x W, read when asked for."""

    def __init__(self, folder: Path, image_ids: np.ndarray) -> None:
        self._paths = [folder / f"{image:06d}.png" for image in image_ids]

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, row):  # type: ignore[no-untyped-def]
        return np.asarray(Image.open(self._paths[row]).convert("RGB")).transpose(2, 0, 1)


def _decoding(config: Config, image_ND: Tensor, clip_ND: Tensor, true_ND: Tensor, true_clip_ND: Tensor, ids: np.ndarray) -> Decoding:
    """CLIP-cos of the decoded embedding; retrieval with the encoder's projected output, in units around the training mean."""
    settings = {
        "pool": config.scores.retrieval_pool,
        "draws": config.scores.retrieval_draws,
        "resamples": config.scores.bootstrap,
        "seed": config.run.seed,
    }
    cosine, cosine_table = decoder_scores(image_ND.numpy(), true_ND.numpy(), ids, **settings)
    retrieval, retrieval_table = decoder_scores(clip_ND.numpy(), true_clip_ND.numpy(), ids, **settings)
    scores = {name: (cosine if name == "clip_cos" else retrieval)[name] for name in cosine}
    table = pd.concat([cosine_table[["clip_cos"]], retrieval_table.drop(columns="clip_cos")], axis=1)
    return Decoding(scores, table)


def ridge_embeddings(config: Config, targets: Targets, ids: np.ndarray) -> tuple[Tensor, Tensor]:
    """Image embeddings of the test images by cross-validated ridge regression on the same training trials.

    Ridge learns from all training trials, the encoders' held-out ones included: it chooses its penalty by leaving images out.

    Returns
    -------
    raw_ND, mean_D : predictions in CLIP's own units, and the training mean
    """
    layout, subject = Layout.of(config.data.root), config.data.subjects[0]
    betas = Betas.of(layout, subject)
    table = train_trials(layout, subject, config.data.num_sessions).table
    images = table["image"].to_numpy()
    known, row = np.unique(images, return_inverse=True)
    true_ND = targets.image(known).flatten(1).numpy()
    ridge = fit_ridge(betas.rows(table["trial"].to_numpy()), true_ND[row], images)
    repeats = group_repeats(test_trials(layout, subject))
    rows_of_image = dict(zip(repeats.image_N.tolist(), repeats.rows_NR))
    used = [rows_of_image[int(image)] for image in ids]
    used = [rows[rows >= 0] for rows in used]
    if config.sampler.repeats == "first":
        used = [rows[:1] for rows in used]
    voxels = np.stack([betas.rows(rows).mean(0) for rows in used])
    return torch.from_numpy(ridge.predict(voxels)), torch.from_numpy(true_ND.mean(0))


def colour_score(words: pd.DataFrame, resamples: int, seed: int) -> Score:
    """How often the judge names the colour rightly, of the objects that come in several colours."""
    asked = words[words["colour_true"] != ""]
    right = (asked["colour_true"] == asked["colour_said"]).to_numpy(dtype=float)
    interval = mean_interval(right, resamples, seed)
    return Score(*interval, random=None, ceiling=None, ridge=None, chance=1 / len(COLOUR_NAMES), n=len(right), pool=None)


def observers(config: Config, targets: Targets, ids: np.ndarray) -> tuple[list[Features], list[ReadOut], dict[str, str]]:
    """Networks and read-outs: the tiny CLIP and the judge for simulated pictures, the field's networks for photographs."""
    if not targets.stimuli.simulated:
        networks, missing = published_networks.load_all()
        return list(networks), [], missing
    judge = load_judge()
    clip = ClipFeatures(targets.image_encoder, fingerprint_of_files(targets.image_path))
    return [clip, *judge_networks(judge)], readouts(judge, Layout.of(config.data.root), ids), {}


def _require(config: Config) -> dict[str, Path]:
    folders = {source: folder_of(config, source) for source in ("brain", "random", "ceiling")}
    if not (folders["brain"] / INDEX).exists():
        raise UserError(
            f"There are no finished reconstructions in {folders['brain']}: run `braingen reconstruct --folder {config.run.folder}` first."
        )
    return {source: folder for source, folder in folders.items() if (folder / INDEX).exists()}


def evaluate(config: Config) -> Path:
    """Write scores.json, scores_per_image.csv, comparisons.json and scores.md into the run's folder.

    Returns
    -------
    path of scores.json
    """
    folders = _require(config)
    if refined_is_there(config):
        folders[REFINED] = refined_folder(config)
    targets = Targets(config)
    sheets: dict[str, Sheet] = {}
    decodings: dict[str, Decoding] = {}
    words: dict[str, pd.DataFrame] = {}
    embeddings = {source: load_file(folder / EMBEDDINGS) for source, folder in folders.items()}
    ids = embeddings["brain"]["ids"].numpy()
    networks, named, missing = observers(config, targets, ids)
    truth = targets.stimuli.images(ids)
    true_ND = targets.image(ids).flatten(1)
    raw_ridge, mean = ridge_embeddings(config, targets, ids)
    decodings["ridge"] = _decoding(config, raw_ridge, raw_ridge - mean, true_ND, true_ND - mean, ids)
    store = FeatureStore()  # keeps the features of the true pictures for all three
    for source, folder in folders.items():
        found = embeddings[source]
        if found["ids"].tolist() != ids.tolist():
            raise UserError(f"{folder} and {folders['brain']} hold different images: draw both with the same settings.")
        settings: dict[str, Any] = {"readouts": named, "missing": missing, "resamples": config.scores.bootstrap, "seed": config.run.seed}
        sheets[source] = score_images(truth, ids, Pngs(folder, ids), ids, networks, store=store, **settings)
        if targets.stimuli.simulated:
            words[source] = spoken(load_judge(), Layout.of(config.data.root), ids, Pngs(folder, ids))
            if (words[source]["colour_true"] != "").any():
                sheets[source].scores["colour_accuracy"] = colour_score(words[source], config.scores.bootstrap, config.run.seed)
        if source != REFINED:  # their embeddings are those of the pictures they were made from
            decodings[source] = _decoding(config, found["image"].flatten(1), found["image_clip"].flatten(1), true_ND, true_ND - mean, ids)
    scores = with_baselines(
        {**sheets["brain"].scores, **decodings["brain"].scores},
        random={**sheets["random"].scores, **decodings["random"].scores} if "random" in sheets else None,
        ceiling={**sheets["ceiling"].scores, **decodings["ceiling"].scores} if "ceiling" in sheets else None,
        ridge=decodings["ridge"].scores,
    )
    folder = config.run.folder
    judged = read_study(folder)
    if judged.get("stale"):
        Console().print("The pictures have been drawn anew since people judged them: the study is left out.")
    scores |= scores_in(judged)
    write_json(folder / SCORES, as_json(scores))
    per_image = [sheets["brain"].table, decodings["brain"].table, *([words["brain"]] if words else [])]
    write_text(folder / PER_IMAGE, pd.concat(per_image, axis=1).to_csv(float_format="%.6g"))
    write_json(folder / COMPARISONS, _comparisons(config, decodings, ids))
    if REFINED in sheets:
        write_json(folder / REFINEMENT, _before_and_after(config, sheets["brain"], sheets[REFINED]))
    else:
        (folder / REFINEMENT).unlink(missing_ok=True)
    simulated = "simulated data" if targets.stimuli.simulated else "NSD"
    write_text(folder / TABLE, markdown(rows_of("BrainGen", f"{simulated}, subject {config.data.subjects[0]}", scores)))
    _print(scores, missing)
    return folder / SCORES


def _comparisons(config: Config, decodings: Mapping[str, Decoding], ids: np.ndarray) -> list[dict[str, float | str]]:
    """The encoder against ridge, image by image."""
    tables = {name: decodings[name].table.loc[ids] for name in ("brain", "ridge")}
    columns = {name: {score: table[score].to_numpy() for score in table} for name, table in tables.items()}
    compared = compare(columns, {"brain": ids, "ridge": ids}, config.scores.bootstrap, config.run.seed)
    return [
        {
            "name": f"encoder minus ridge: {each.score}",
            "difference": each.difference,
            "low": each.low,
            "high": each.high,
            "p": each.p_holm,
        }
        for each in compared
    ]


def _before_and_after(config: Config, before: Sheet, after: Sheet) -> dict[str, Any]:
    """Scores of the pictures before and after refinement, and their differences, image by image."""
    sheets = {"after": after, "before": before}
    ids = {name: sheet.table.index.to_numpy() for name, sheet in sheets.items()}
    columns = {name: {score: sheet.table[score].to_numpy() for score in sheet.table} for name, sheet in sheets.items()}
    compared = {each.score: each for each in compare(columns, ids, config.scores.bootstrap, config.run.seed)}
    first, second = as_json(before.scores), as_json(after.scores)
    found: dict[str, Any] = {}
    for name in second:
        found[name] = {"before": first[name], "after": second[name]}
        if name in compared:
            each = compared[name]
            found[name] |= {"difference": each.difference, "low": each.low, "high": each.high, "p": each.p_holm}
    return {"settings": Run(refined_folder(config)).config["refiner"], "scores": found}


def _print(scores: Mapping[str, Score], missing: Mapping[str, str]) -> None:
    columns = (Column("score", no_wrap=True), "brain", Column("95 %", no_wrap=True), "random", "ridge", "ceiling", "chance")
    table = Table(*columns, title="scores")

    def text(value: float | None) -> str:
        return "" if value is None else f"{value:.3f}"

    for name, score in scores.items():
        interval = f"{text(score.low)}-{text(score.high)}"
        table.add_row(name, text(score.value), interval, text(score.random), text(score.ridge), text(score.ceiling), text(score.chance))
    console = Console()
    console.print(table)
    for sentence in missing.values():
        console.print(sentence)


def read_scores(folder: Path) -> dict[str, dict[str, float | None]]:
    """Read scores.json of a run."""
    return json.loads((folder / SCORES).read_text())
