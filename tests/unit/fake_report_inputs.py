"""A run folder and a data folder as the stages leave them, made of scenes and noise, for tests of
the report.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import h5py
import numpy as np
from PIL import Image, ImageFilter
from safetensors.numpy import save_file
from unit.fake_human_eval import write_fake_study

from braingen.config import Config
from braingen.config.run_and_data import DataConfig, RunConfig
from braingen.data import nsd
from braingen.runtime.data_layout import Layout
from braingen.runtime.files import write_json, write_text
from braingen.runtime.run_folder import config_text
from braingen.simulation import scenes


def write_fake_run(
    folder: Path, images: int = 30, seed: int = 0, simulated: bool = True, epochs: int = 20
) -> Config:
    """Write RUN and a data folder beside it; every second image id is a test image. Returns the
    settings to report it with.
    """
    rng = np.random.default_rng(seed)
    config = Config(run=RunConfig(folder=folder / "run"), data=DataConfig(root=folder / "data"))
    layout = Layout.of(config.data.root)
    layout.root.mkdir(parents=True, exist_ok=True)
    drawn = [scenes.random_scene(rng) for _ in range(images)]
    seen = [
        Image.fromarray(scenes.render(scene)).resize((224, 224), Image.Resampling.BICUBIC)
        for scene in drawn
    ]
    ids = [2 * number + 1 for number in range(images)]
    _write_data(layout, drawn, seen, ids, rng, simulated)
    write_fake_reliability(layout)
    _write_pictures(config.run.folder, seen, ids, rng)
    _write_routing(config.run.folder, ids)
    _write_explained(config.run.folder)
    _write_scores(config.run.folder, drawn, ids, rng)
    _write_parts(config.run.folder)
    _write_comparison(config.run.folder)
    _write_refinement(config.run.folder, seen, ids)
    _write_runs(config, epochs, rng)
    if images > 3:
        write_fake_study(config.run.folder, ids, folder / "answers")
    return config


def write_fake_reliability(layout: Layout, error: float = 0.01) -> None:
    """What `prepare` leaves of the reliability of four voxels."""
    known = {"pictures": 7, "repeats": 2.5, "split_half_median": 0.41, "share_above_chance": 0.9}
    known |= {"noise_ceiling_median_percent": 34.0, "same_picture": 0.3, "other_picture": 0.01}
    entry = {"reliability": known | {"same_picture_error": error}}
    write_json(layout.prepared(), {"subjects": {"1": entry}})
    rows = "".join(f"{v}\t0.4\t{ceiling}\n" for v, ceiling in enumerate((5.0, 35.0, 36.0, 99.0)))
    write_text(layout.volumes(1) / "reliability.tsv", f"voxel\tsplit_half\tceiling\n{rows}")


def _write_data(
    layout: Layout,
    drawn: list,
    seen: list[Image.Image],
    ids: list[int],
    rng: np.random.Generator,
    simulated: bool,
) -> None:
    with h5py.File(layout.images(), "w") as file:
        dataset = file.create_dataset("images", (2 * len(ids), 3, 224, 224), dtype="float16")
        for image, picture in zip(ids, seen):
            dataset[image] = np.asarray(picture).transpose(2, 0, 1) / 255
        if simulated:
            dataset.attrs[nsd.SIMULATED_ATTRIBUTE] = True
    layout.captions().write_text(
        json.dumps({str(image): scenes.captions(scene, rng) for image, scene in zip(ids, drawn)})
    )


def _write_pictures(
    run: Path, seen: list[Image.Image], ids: list[int], rng: np.random.Generator
) -> None:
    """Pictures of three sources: blurred more (brain), blurred less (oracle), of something else
    (random).
    """
    for number, (image, picture) in enumerate(zip(ids, seen)):
        other = seen[int(rng.integers(len(seen)))]
        blurred = picture if number % 4 else Image.blend(picture, other, 0.75)
        for source, made, radius in (
            ("brain", blurred, 4),
            ("oracle", picture, 2),
            ("random", other, 9),
        ):
            folder = run / "reconstructions" / source
            folder.mkdir(parents=True, exist_ok=True)
            made.filter(ImageFilter.GaussianBlur(radius)).resize((128, 128)).save(
                folder / f"{image:06d}.png"
            )
    for source in ("brain", "oracle", "random"):
        captions = {str(image): f"decoded caption <{image}>" for image in ids}
        (run / "reconstructions" / source / "index.json").write_text(
            json.dumps({"images": ids, "captions": captions})
        )


def _write_refinement(run: Path, seen: list[Image.Image], ids: list[int]) -> None:
    """Pictures blurred a little less, and scores of which one got better, one worse and one cannot
    be compared.
    """
    folder = run / "reconstructions" / "brain_refined"
    folder.mkdir(parents=True)
    for image, picture in zip(ids, seen):
        picture.filter(ImageFilter.GaussianBlur(3)).resize((128, 128)).save(
            folder / f"{image:06d}.png"
        )
    scores = {
        "mse": {
            "before": {"value": 0.041},
            "after": {"value": 0.032},
            "difference": -0.009,
            "low": -0.012,
            "high": -0.006,
            "p": 0.001,
        },
        "ssim": {
            "before": {"value": 0.40},
            "after": {"value": 0.36},
            "difference": -0.04,
            "low": -0.05,
            "high": -0.03,
            "p": 0.0001,
        },
        "pixcorr": {
            "before": {"value": 0.51},
            "after": {"value": 0.50},
            "difference": -0.01,
            "low": -0.03,
            "high": 0.01,
            "p": 0.4,
        },
        "colour_accuracy": {"before": {"value": 0.61}, "after": {"value": 0.62}},
    }
    settings = {"strength": 0.3, "denoising_start": None, "guidance_scale": 5.0}
    (run / "refinement.json").write_text(json.dumps({"settings": settings, "scores": scores}))


def _write_routing(run: Path, ids: list[int], steps: int = 5) -> None:
    """Routing from coarse to fine, and pictures of two of the levels for the first three images."""
    times = np.linspace(980, 20, steps, dtype=np.float32)
    centre = 3 * (1 - times / 1000)
    weights = np.exp(-((np.arange(4) - centre[:, None]) ** 2) / 2)
    levels = np.repeat(
        (weights / weights.sum(1, keepdims=True))[None].astype(np.float32), len(ids), axis=0
    )
    experts = np.concatenate(
        [np.full((len(ids), steps, count), 1 / count, np.float32) for count in (2, 4, 8, 16)],
        axis=2,
    )
    routing = {"ids": np.array(ids), "times": np.repeat(times[None], len(ids), axis=0)}
    routing |= {
        f"{name}_{what}": value
        for name in ("image", "text")
        for what, value in (("levels", levels), ("experts", experts))
    }
    brain = run / "reconstructions" / "brain"
    save_file(routing, brain / "routing.safetensors")
    for level in (0, 1):
        folder = brain.with_name(f"brain_level{level}")
        folder.mkdir()
        for image in ids[:3]:
            Image.open(brain / f"{image:06d}.png").filter(
                ImageFilter.GaussianBlur(4 - 2 * level)
            ).save(folder / f"{image:06d}.png")


def _write_explained(run: Path) -> None:
    """A page of `braingen interpret`, and what it found."""
    folder = run / "interpret" / "image-target-integrated_gradients"
    folder.mkdir(parents=True)
    (folder / "interpret.html").write_text("<!doctype html><title>inside</title>")
    (folder / "findings.json").write_text(
        json.dumps({"attributions": ["Completeness error of the maps: <2> %."]})
    )


def _write_scores(run: Path, drawn: list, ids: list[int], rng: np.random.Generator) -> None:
    n = len(ids)

    def score(
        value: float, random: float, oracle: float, **others: float | None
    ) -> dict[str, float | None]:
        interval = {"low": value * 0.94, "high": min(value * 1.05, 1.0 if value <= 1 else 99)}
        absent = {"ridge": None, "chance": None, "pool": None}
        return {
            "value": value,
            **interval,
            "random": random,
            "oracle": oracle,
            **absent,
            "n": n,
            **others,
        }

    scores = {
        "pixcorr": score(0.512, 0.113, 0.731),
        "ssim": score(0.402, 0.251, 0.533),
        "mse": score(0.0412, 0.0921, 0.0213),
        "psnr": score(14.61, 10.71, 17.42),
        "two_way_clip": score(0.962, 0.503, 0.998, chance=0.5),
        "two_way_classifier_early": score(0.91, 0.49, 0.99, chance=0.5),
        "two_way_classifier_late": score(0.93, 0.51, 0.99, chance=0.5),
        "object_accuracy": score(0.583, 0.05, 0.858, chance=1 / 24),
        "background_accuracy": score(0.892, 0.09, 0.983, chance=0.1),
        "colour_accuracy": score(0.61, 0.21, 0.9, chance=0.2),
        "position_accuracy": score(0.78, 0.34, 0.95, chance=1 / 3),
        "clip_cos": score(0.861, 0.402, 1.0, ridge=0.802),
        "retrieval_brain_to_image": score(0.742, 0.01, 1.0, ridge=0.688, chance=1 / n, pool=n),
        "retrieval_image_to_brain": score(0.731, 0.01, 1.0, ridge=0.702, chance=1 / n, pool=n),
    }
    (run / "scores.json").write_text(json.dumps(scores))
    comparisons = [
        {
            "name": "encoder minus ridge: retrieval_brain_to_image",
            "difference": 0.054,
            "low": 0.011,
            "high": 0.098,
            "p": 0.012,
        },
        {
            "name": "encoder minus ridge: clip_cos",
            "difference": 0.059,
            "low": 0.048,
            "high": 0.071,
            "p": 0.0001,
        },
    ]
    (run / "comparisons.json").write_text(json.dumps(comparisons))
    certainty = {
        "levels": [{"level": 0.9, "value": 0.925, "low": 0.862, "high": 0.965}],
        "rank": {"value": 0.334, "low": 0.16, "high": 0.49},
        "images": [
            {"image": image, "expected": place / 10, "least": place / 20, "true": 0.5}
            for place, image in enumerate(ids, 1)
        ],
    }
    (run / "certainty.json").write_text(json.dumps(certainty))
    with open(run / "scores_per_image.csv", "w", newline="") as handle:
        table = csv.writer(handle)
        named = [
            "object_accuracy",
            "background_accuracy",
            "clip_cos",
            "object_true",
            "object_predicted",
        ]
        table.writerow(["image", "pixcorr", "mse", "two_way_clip", *named])
        for number, (image, scene) in enumerate(zip(ids, drawn)):
            right = number % 4 > 0
            name = scenes.OBJECTS[scene.objects[0].object].name
            said = (
                name
                if right
                else scenes.OBJECTS[(scene.objects[0].object + 5) % len(scenes.OBJECTS)].name
            )
            figures = [
                rng.normal(0.5 if right else 0.2, 0.08),
                rng.uniform(0.02, 0.08),
                rng.uniform(0.8, 1),
            ]
            figures += [float(right), float(number % 7 > 0)]
            table.writerow(
                [
                    image,
                    *(f"{figure:.6g}" for figure in figures),
                    "" if number == 2 else 0.8,
                    name,
                    said,
                ]
            )


def _write_parts(run: Path) -> None:
    """Scores of two levels and their experts."""
    parts = [
        "level 0",
        "level 1",
        *(f"level {level}, expert {expert}" for level in (0, 1) for expert in range(2 + 2 * level)),
    ]
    with open(run / "scores_by_part.csv", "w", newline="") as handle:
        table = csv.writer(handle)
        table.writerow(["part", "score", "value", "low", "high", "chance", "n", "pool"])
        for number, part in enumerate(parts):
            table.writerow([part, "clip_cos", 0.71 - number / 100, 0.66, 0.75, "", 26, ""])
            table.writerow(
                [part, "retrieval_brain_to_image", 0.61 - number / 100, 0.5, 0.7, 1 / 26, 26, 26]
            )


def _write_comparison(run: Path) -> None:
    """What `braingen compare` leaves: two runs, of which one is better at one score."""
    folder = run / "comparison"
    folder.mkdir()
    pair = {
        "level": "runs",
        "first": "runs/<ours>",
        "second": "runs/a_run_with_a_long_name_without_any_blank_in_it",
        "n": 26,
    }
    found = [
        {
            "score": "clip_cos",
            "difference": 0.0012,
            "low": -0.003,
            "high": 0.0051,
            "p": 0.4,
            "p_holm": 0.41,
            "conclusion": "not different",
        },
        {
            "score": "pixcorr",
            "difference": 0.081,
            "low": 0.06,
            "high": 0.1,
            "p": 0.0001,
            "p_holm": 0.0002,
            "conclusion": "better",
        },
    ]
    (folder / "comparisons.json").write_text(json.dumps([{**pair, **each} for each in found]))
    with open(folder / "summary.csv", "w", newline="") as handle:
        table = csv.writer(handle)
        table.writerow(
            [
                "method",
                "score",
                "value",
                "low",
                "high",
                "between_seeds",
                "between_subjects",
                "subjects",
                "seeds",
            ]
        )
        table.writerow(["BrainGen", "pixcorr", 0.512, 0.49, 0.53, 0.004, "", 1, 3])


def _write_runs(config: Config, epochs: int, rng: np.random.Generator) -> None:
    for encoder, speed in (("image", 5.0), ("text", 8.0)):
        folder = config.run.folder / encoder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(config_text(config.model_dump(mode="json")))
        start = {
            "time": "2026-01-02T03:04:05+00:00",
            "command": ["braingen", "demo", "--config", "simulated"],
            "platform": "Linux",
            "versions": {"python": "3.11.2", "torch": "2.13.0"},
            "git": {"commit": "0123456789abcdef0123", "modified": True},
        }
        (folder / "provenance.json").write_text(
            json.dumps({"config_hash": "ab12", "seeds": {"run": 0}, "starts": [start, start]})
        )
        lines = []
        for epoch in range(epochs):
            gone = 1 - np.exp(-epoch / speed)
            record = {"epoch": epoch, "step": 100 * epoch}
            for name, size in (("clip", 3.0), ("prior", 1.1), ("cosine", 0.6)):
                record[f"train/{name}"] = size * (1.2 - gone) + rng.normal(0, 0.01)
            for name, size in (("cosine", 0.82), ("retrieval", 0.7)):
                record[f"validation/{name}"] = size * gone + rng.normal(0, 0.01)
            lines.append(json.dumps(record))
        lines.append('{"epoch": 20, "train/cl')  # cut short by a kill
        (folder / "metrics.jsonl").write_text("\n".join(lines))
    timings = {
        "simulate": 41.2,
        "train image": 152.9,
        "train text": 131.0,
        "reconstruct": 75.5,
        "evaluate": 12.3,
        "report": 2.1,
    }
    (config.run.folder / "timings.json").write_text(json.dumps(timings))
