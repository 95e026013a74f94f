"""Are the maps right? On simulated subjects, whose voxels are known: attributions, activation
patterns, expert assignments, saliency and ablations against what was planted, for the default
encoder, the published one and voxel-level routing.

    python benchmarks/interpret_truth.py --seeds 3

Simulates a small subject per seed (another brain, other pictures; 400 training images, and as many
test images as NSD has), trains an image encoder of every kind on it, and asks. Every finished
(seed, encoder) is kept as JSON, so an interrupted run continues. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
import time
from typing import Any, NamedTuple

import numpy as np
import torch

from braingen.config import Config, load_config
from braingen.data.betas import Betas
from braingen.data.trials import group_repeats, test_trials, train_trials
from braingen.encoders.embedding_decoder import EmbeddingDecoder
from braingen.evaluation.decoding import decoder_scores
from braingen.evaluation.uncertainty import mean_interval
from braingen.interpret.ablation import AblationScores, ablate_voxels
from braingen.interpret.agreement import area_under_roc, group_agreement
from braingen.interpret.attribution import Explainer, Query, completeness
from braingen.interpret.experts import (
    VoxelRows,
    all_expert_outputs,
    expert_outputs_of,
    voxel_selectivity,
)
from braingen.interpret.inputs import averaged
from braingen.interpret.maps import mean_maps
from braingen.interpret.patterns import ClassReadOut, Patterns, activation_patterns
from braingen.interpret.readout import Readout, class_directions
from braingen.interpret.saliency import (
    ReceptiveFields,
    beyond_usual,
    gaussians,
    inside_outside,
    peaks_on_object,
    pointing_game,
    saliency,
)
from braingen.runtime.data_layout import Layout
from braingen.runtime.paths import EMBEDDING_DECODER
from braingen.simulation.dataset import simulate
from braingen.simulation.pictures import load_scenes
from braingen.simulation.retina import FIELD_OF_VIEW
from braingen.simulation.scenes import BACKGROUNDS, COLOUR_NAMES, SUPERCATEGORIES, object_mask
from braingen.simulation.semantics import LABEL_COUNTS, LABELS, labels
from braingen.targets.tables import Targets
from braingen.training.encoder import train
from braingen.training.encoder_setup import setup

VARIANTS = {
    "default": {"encoder.model": "BrainMoEMulti"},
    "published": {
        "encoder.model": "BrainMoEMulti",
        "encoder.routing": "value",
        "encoder.trunk": "published",
    },
    "voxel": {"encoder.model": "BrainMoEVoxel"},
    "voxel, random start": {"encoder.model": "BrainMoEVoxel", "encoder.parcel_init": "random"},
}
EARLY = ("V1v", "V1d", "V2v", "V2d", "V3v", "V3d", "hV4")
FACES = ("OFA", "FFA-1", "FFA-2")
AREAS_FOR = (
    (
        "supercategory",
        ("FFA-1", "FFA-2", "OFA", "EBA", "FBA-1", "FBA-2"),
        [SUPERCATEGORIES.index("person")],
    ),
    ("supercategory", ("food",), [SUPERCATEGORIES.index("food")]),
    (
        "background",
        ("PPA", "OPA", "RSC"),
        [
            BACKGROUNDS.index(name)
            for name in ("room", "street", "forest", "beach", "desert", "sea")
        ],
    ),
)
"""Kind of label, the areas planted for it, and the labels these prefer: attributions to them,
category against early areas.
"""
SIZES = {
    "seeds": 3,
    "voxels": 800,
    "sessions": 7,
    "trials": 600,
    "images": 1000,
    "hidden": 128,
    "epochs": 15,
}
UNSPECIFIC = ("semantic", "where")
CARRIES = 0.1
"""A voxel carries a label that explains at least this share of its noise-free variance; fixed
before anything was computed.
"""
SIDE = 32
POINTS = 16
FEW = 100
"""Test images among which the right one is looked for, and that patterns from few images get."""


def name_of(variant: str) -> str:
    """For folders."""
    return variant.replace(", ", "-").replace(" ", "-")


class Subject(NamedTuple):
    """A simulated subject: what a decoder is given, and what was planted."""

    voxels_NV: np.ndarray
    rows_NR: np.ndarray
    betas: Betas
    image_N: np.ndarray
    label_NL: np.ndarray
    train_image_M: np.ndarray
    train_label_ML: np.ndarray
    truth: dict[str, np.ndarray]
    object_NP: np.ndarray


def config_of(seed: int, variant: str, chosen: argparse.Namespace) -> Config:
    """The demo's settings, smaller."""
    root = chosen.folder / f"data-{seed}"
    run = chosen.folder / f"run-{seed}-{name_of(variant)}"
    overrides = {
        "data.root": str(root),
        "run.folder": str(run),
        "run.seed": str(seed),
        "run.tracker": "none",
        "training.validate_every": "3",
        "simulation.seed": str(seed),
        "simulation.num_voxels": str(chosen.voxels),
        "simulation.num_sessions": str(chosen.sessions),
        "simulation.trials_per_session": str(chosen.trials),
        "simulation.num_test_images": str(chosen.images),
        "encoder.hidden_dim": str(chosen.hidden),
        "training.num_epochs": str(chosen.epochs),
    }
    return load_config(Path("simulated"), overrides | VARIANTS[variant])


def read_subject(config: Config) -> Subject:
    """Test images' responses, three presentations averaged, and the truth."""
    layout = Layout.of(config.data.root)
    repeats, betas = group_repeats(test_trials(layout, 1)), Betas.of(layout, 1)
    scenes = load_scenes(layout, repeats.image_N.tolist())
    train_image_M = np.unique(train_trials(layout, 1).table["image"].to_numpy())
    with np.load(layout.truth(1)) as stored:
        truth = {name: stored[name] for name in stored.files}
    return Subject(
        averaged(betas, repeats),
        repeats.rows_NR,
        betas,
        repeats.image_N,
        labels(scenes),
        train_image_M,
        labels(load_scenes(layout, train_image_M.tolist())),
        truth,
        np.stack([object_mask(scene, SIDE).ravel() for scene in scenes]),
    )


def explain_label(
    embedding_decoder: EmbeddingDecoder,
    subject: Subject,
    direction_CF: torch.Tensor,
    label_N: np.ndarray,
) -> tuple[np.ndarray, float]:
    """Maps of every image, of how far its own class is in what was decoded; and how incomplete they
    are.
    """
    explainer = Explainer(Readout(embedding_decoder, 1), "integrated_gradients", steps=POINTS)
    maps, value, error = [], [], []
    for first in range(0, len(label_N), 32):
        some = slice(first, first + 32)
        voxels_BV = torch.from_numpy(subject.voxels_NV[some])
        found = explainer(Query(subject.image_N[some], voxels_BV, direction_CF[label_N[some]]))
        maps.append(found.map_BV.numpy())
        value.append(found.value_B.numpy())
        error.append(found.error_B.numpy())
    return np.concatenate(maps), completeness(np.concatenate(value), np.concatenate(error))


def patterns_of(
    embedding_decoder: EmbeddingDecoder,
    subject: Subject,
    read_out: ClassReadOut,
    images: int | None = None,
) -> Patterns:
    """Activation patterns of what is decoded of the test images, or of the first of them."""

    def decoded(voxels_NV: np.ndarray) -> np.ndarray:
        return read_out.probability(
            all_expert_outputs(expert_outputs_of(embedding_decoder, voxels_NV, 1)).whole_NF.numpy()
        )

    return activation_patterns(subject.betas.rows, subject.rows_NR[:images], decoded)


def ask(config: Config, subject: Subject) -> dict[str, Any]:
    """Everything about one trained encoder."""
    embedding_decoder = EmbeddingDecoder.from_pretrained(
        config.run.folder / "image" / EMBEDDING_DECODER
    ).eval()
    targets, truth = Targets(config), subject.truth
    area_V = truth["area"]
    early_V, category_V = np.isin(area_V, EARLY), ~np.isin(area_V, (*EARLY, *UNSPECIFIC))
    true_NF = embedding_decoder.standardised(targets.image(subject.image_N)).flatten(1)
    trained_MF = embedding_decoder.standardised(targets.image(subject.train_image_M)).flatten(1)
    said = all_expert_outputs(expert_outputs_of(embedding_decoder, subject.voxels_NV, 1))
    some_N = slice(FEW)
    scores, _ = decoder_scores(
        said.clip_NF[some_N].numpy(), true_NF[some_N].numpy(), subject.image_N[some_N], resamples=1
    )
    cosine, _ = decoder_scores(said.whole_NF.numpy(), true_NF.numpy(), subject.image_N, resamples=1)
    out: dict[str, Any] = {
        "parameters": sum(
            parameter.numel() for parameter in embedding_decoder.encoder.parameters()
        ),
        "top-1": scores["retrieval_brain_to_image"].value,
        "cosine": cosine["clip_cos"].value,
    }

    some = torch.from_numpy(subject.voxels_NV[:64])
    for level, found in enumerate(voxel_selectivity(embedding_decoder, 1, some)):
        out[f"ami level {level}"] = group_agreement(found.chosen_V, area_V)._asdict() | {
            "exact": found.exact
        }
    start = setup(config, "image").embedding_decoder  # the same encoder, not trained
    out["ami untrained"] = group_agreement(
        voxel_selectivity(start.eval(), 1, some)[-1].chosen_V, area_V
    )._asdict()

    fields = ReceptiveFields(truth["prf_x"], truth["prf_y"], truth["prf_size"])
    directions = {}
    for asked in ("object", "colour", "background"):
        which = LABELS.index(asked)
        member_MC = subject.train_label_ML[:, which, None] == np.arange(LABEL_COUNTS[which])
        label_N = subject.label_NL[:, which]
        directions[asked] = class_directions(trained_MF, member_MC)
        maps_NV, incomplete = explain_label(embedding_decoder, subject, directions[asked], label_N)
        used_N = (
            label_N < len(COLOUR_NAMES) if asked == "colour" else np.ones(len(label_N), dtype=bool)
        )  # the last: its own colours
        # signed mean: what a voxel contributes to an image's own class; noise has no side to be on
        strength_V = mean_maps(maps_NV, used_N[:, None])[0]
        either_V = early_V | category_V
        out[asked] = {
            "carries": area_under_roc(strength_V, truth["label_share"][:, which] >= CARRIES),
            "carriers": int((truth["label_share"][:, which] >= CARRIES).sum()),
            "category over early": area_under_roc(strength_V[either_V], category_V[either_V]),
            "planted, category over early": area_under_roc(
                truth["label_share"][either_V, which], category_V[either_V]
            ),
            "incomplete": incomplete,
        }
        read_out = ClassReadOut.learn(trained_MF.numpy(), member_MC)
        named_N = read_out.probability(said.whole_NF.numpy()).argmax(axis=1)
        for name, images in (("patterns", None), ("patterns, few images", FEW)):
            typical_V = patterns_of(embedding_decoder, subject, read_out, images).typical_V
            out[asked][name] = {
                "carries": area_under_roc(typical_V, truth["label_share"][:, which] >= CARRIES),
                "category over early": area_under_roc(typical_V[either_V], category_V[either_V]),
            }
        out[asked]["named rightly"] = float((named_N == label_N).mean())
        if asked == "object":
            for name, inside_V in (
                ("all voxels", np.ones_like(early_V)),
                ("early voxels", early_V),
            ):
                gaussian_VP = gaussians(fields, SIDE, FIELD_OF_VIEW) * inside_V[:, None]
                for kind, map_NV in (
                    ("pointing", maps_NV),
                    ("pointing of responses", subject.voxels_NV),
                ):
                    map_NP = beyond_usual(saliency(map_NV, gaussian_VP))
                    own_N, others_N = peaks_on_object(map_NP, subject.object_NP)
                    out[f"{kind}, {name}"] = pointing_game(map_NP, subject.object_NP)._asdict() | {
                        "inside": mean_interval(
                            inside_outside(map_NP, subject.object_NP), 2000
                        )._asdict(),
                        "gains": np.round(own_N - others_N, 5).tolist(),
                    }
    for name, areas, wanted in AREAS_FOR:
        which = LABELS.index(name)
        chosen_N = np.isin(subject.label_NL[:, which], wanted)
        member_MC = subject.train_label_ML[:, which, None] == np.arange(LABEL_COUNTS[which])
        direction_CF = class_directions(trained_MF, member_MC)
        few = subject._replace(
            voxels_NV=subject.voxels_NV[chosen_N], image_N=subject.image_N[chosen_N]
        )
        maps_NV, _ = explain_label(
            embedding_decoder, few, direction_CF, subject.label_NL[chosen_N, which]
        )
        inside_V = np.isin(area_V, areas)
        either_V = early_V | inside_V
        # the same mean over images of patterns: every image has its own class's
        weight_C = (
            np.bincount(subject.label_NL[chosen_N, which], minlength=LABEL_COUNTS[which])
            / chosen_N.sum()
        )
        pattern_V = (
            weight_C
            @ patterns_of(
                embedding_decoder, subject, ClassReadOut.learn(trained_MF.numpy(), member_MC)
            ).map_CV
        )
        out[f"{areas[0]} over early"] = {
            "attributions": area_under_roc(maps_NV.mean(axis=0)[either_V], inside_V[either_V]),
            "patterns": area_under_roc(pattern_V[either_V], inside_V[either_V]),
            "images": int(chosen_N.sum()),
        }
    out["ablated faces"] = silence_faces(embedding_decoder, subject, directions, trained_MF)
    return out


def silence_faces(
    embedding_decoder: EmbeddingDecoder,
    subject: Subject,
    directions: dict[str, torch.Tensor],
    trained_MF: torch.Tensor,
) -> dict[str, Any]:
    """Relative loss of the evidence for persons (on persons' images) and for the place (on all
    images), planted face voxels ablated.
    """
    kind_N = subject.label_NL[:, LABELS.index("supercategory")]
    person_N, background_N = kind_N == 0, subject.label_NL[:, LABELS.index("background")]
    person_M = subject.train_label_ML[:, LABELS.index("supercategory")] == 0
    person_F = class_directions(trained_MF, person_M[:, None])[0]

    def score(voxels_NV: VoxelRows) -> AblationScores:
        whole_NF = all_expert_outputs(expert_outputs_of(embedding_decoder, voxels_NV, 1)).whole_NF
        place_N = (whole_NF * directions["background"][background_N]).sum(1).numpy()
        return AblationScores(
            (whole_NF @ person_F).numpy(), place_N, place_N
        )  # persons in the first place, places in the others

    before = score(subject.voxels_NV)
    gone = ablate_voxels(
        "faces", np.isin(subject.truth["area"], FACES), subject.voxels_NV, score, draws=20
    )

    def losses(after: AblationScores) -> tuple[np.ndarray, np.ndarray]:
        person = (before.cosine_N - after.cosine_N)[person_N] / before.cosine_N[person_N].mean()
        return person, (before.found_N - after.found_N) / before.found_N.mean()

    person, place = losses(gone.scores)
    rng = np.random.default_rng(0)
    drawn = [
        rng.choice(person, len(person)).mean() - rng.choice(place, len(place)).mean()
        for _ in range(4000)
    ]
    random = np.array([[each.mean() for each in losses(other)] for other in gone.random])
    return {
        "voxels": gone.voxels,
        "person images": len(person),
        "person": person.mean(),
        "place": place.mean(),
        "difference": person.mean() - place.mean(),
        "low": np.quantile(drawn, 0.025),
        "high": np.quantile(drawn, 0.975),
        "random person": random[:, 0].mean(),
        "random place": random[:, 1].mean(),
        "random person most": random[:, 0].max(),
    }


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """All figures, one row each; a cell holds the mean and, in brackets, every seed."""

    def look(run: dict[str, Any], path: tuple[str, ...]) -> float:
        found: Any = run
        for key in path:
            found = found[key]
        return float(found)

    paths = [("parameters",), ("top-1",), ("cosine",)]
    paths += [(f"ami level {level}", "value") for level in range(4)] + [
        ("ami level 3", "permuted_high"),
        ("ami untrained", "value"),
    ]
    for asked in ("object", "colour", "background"):
        paths += [
            (asked, key)
            for key in (
                "carries",
                "category over early",
                "planted, category over early",
                "incomplete",
                "named rightly",
            )
        ]
        kinds = ("patterns", "patterns, few images")
        paths += [
            (asked, kind, key) for kind in kinds for key in ("carries", "category over early")
        ]
    paths += [
        (f"{areas[0]} over early", key)
        for _, areas, _ in AREAS_FOR
        for key in ("attributions", "patterns", "images")
    ]
    pointing = [
        f"{kind}, {where}"
        for where in ("all voxels", "early voxels")
        for kind in ("pointing", "pointing of responses")
    ]
    for name in pointing:
        paths += [(name, key) for key in ("hits", "chance", "gain", "gain_low", "gain_high")]
        paths += [(name, "inside", key) for key in ("value", "low", "high")]
    faces = (
        "voxels",
        "person images",
        "person",
        "place",
        "difference",
        "low",
        "high",
        "random person",
        "random place",
    )
    paths += [("ablated faces", key) for key in faces]
    lines = ["| | " + " | ".join(results) + " |", "| --- |" + " --- |" * len(results)]
    for path in paths:
        cells = []
        for runs in results.values():
            values = [look(run, path) for run in runs]
            whole = all(
                value == int(value) and abs(value) > 1 for value in values if np.isfinite(value)
            )
            cells.append(
                f"{np.mean(values):.0f}"
                if whole
                else f"{np.mean(values):.3f} ({', '.join(f'{v:.3f}' for v in values)})"
            )
        lines.append(f"| {', '.join(path)} | " + " | ".join(cells) + " |")
    for name in pointing:  # all seeds' images together
        pooled = [
            mean_interval(np.concatenate([run[name]["gains"] for run in runs]), 4000)
            for runs in results.values()
        ]
        cells = [f"{told.value:.3f} ({told.low:.3f} to {told.high:.3f})" for told in pooled]
        lines.append(f"| {name}, gain over all images | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Train and ask what is missing, then print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmarks/explain_truth"))
    for name, default in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--first", type=int, default=0, help="first seed")
    chosen = parser.parse_args()
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in chosen.variants}
    for seed in range(chosen.first, chosen.seeds):
        for variant in chosen.variants:
            config = config_of(seed, variant, chosen)
            kept = chosen.folder / f"{seed}-{name_of(variant)}.json"
            if not kept.exists():
                simulate(config)
                started = time.monotonic()
                train(config, "image")
                found = ask(config, read_subject(config)) | {
                    "seed": seed,
                    "seconds": round(time.monotonic() - started, 1),
                }
                kept.write_text(json.dumps(found, indent=1, default=float), encoding="utf-8")
            results[variant].append(json.loads(kept.read_text(encoding="utf-8")))
    print(table(results))


if __name__ == "__main__":
    main()
