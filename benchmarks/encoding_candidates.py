"""Samples chosen by the measured responses, beside the first one and the one nearest to the decoded
embedding; and what brain correlation does when pictures get worse.

    python benchmarks/encoding_candidates.py runs/a runs/b runs/c --roots data/a data/b data/c
    --samples 6 generation.steps=5

A run holds an image encoder and an encoding model of its first subject (`braingen train image`,
`braingen train encoding`). Test images are decoded by the image encoder, or by the encoding model
with generation.decode_by=encoding_model. Differences are paired by image over all runs together;
intervals are bootstraps over images, p is of a sign-flip permutation test, not corrected.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from braingen.config import Config, load_config
from braingen.config.overrides import parse_overrides
from braingen.encoding_model.evidence import discriminate
from braingen.evaluation.brain_correlation import WHOLE, BrainScorer, brain_values
from braingen.evaluation.image_sets import SeenImages
from braingen.evaluation.metric_table import score_images
from braingen.evaluation.observers import observers
from braingen.evaluation.uncertainty import mean_interval, permutation_p, two_way_by_image
from braingen.generation.by_encoding_model import ByEncodingModel
from braingen.generation.reconstruct import assemble, embeddings_in, embeddings_of, setup
from braingen.generation.rerank import by_embedding
from braingen.runtime.console import track
from braingen.runtime.files import write_json
from braingen.targets.tables import Targets

SCORES = (
    "pixcorr",
    "ssim",
    "two_way_classifier_early",
    "two_way_classifier_late",
    "two_way_clip",
    "object_accuracy",
    "background_accuracy",
    "brain_correlation",
)
NOISE = (0.0, 0.1, 0.2, 0.4, 0.8)
"""Standard deviation of the noise added to pixels in [0, 1]."""


@torch.no_grad()
def drawn(config: Config, samples: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Pictures chosen in three ways, N x 3 x S x S uint8 each, and their ids."""
    parts = setup(config)
    chooser = ByEncodingModel(config, parts.targets, parts.repeats, parts.betas)
    decoder = assemble(config, parts.targets)
    embeddings = embeddings_in(embeddings_of(config, parts, decoder.encoders))
    ids, settings = np.array(embeddings.image_N), config.generation
    kept: dict[str, list[np.ndarray]] = {"first": [], "embedding": [], "responses": []}
    for start in track(range(0, len(ids), 10), description=f"pictures of {config.run.folder}"):
        rows = slice(start, start + 10)
        image_BTD = embeddings.image_NTD[rows]
        encoder = decoder.brain_image
        nearest = by_embedding(
            lambda x, e=encoder: e.standardised(parts.targets.image_encoder(x).target_BTD),
            encoder.standardised(image_BTD),
        )
        likeliest = chooser.similarity(rows)
        made, values = [], {"embedding": [], "responses": []}
        for sample in range(samples):
            pictures = decoder.generate(
                image_BTD,
                None,
                embeddings.image_N[rows],
                seed=config.run.seed,
                steps=settings.steps,
                guidance_scale=settings.guidance_scale,
                guidance_end=settings.guidance_end,
                ip_adapter_scale=settings.ip_adapter_scale,
                size=settings.size,
                sample=sample,
            )
            made.append(np.round(pictures.numpy() * 255).astype(np.uint8))
            values["embedding"].append(nearest(pictures).numpy())
            values["responses"].append(likeliest(pictures).numpy())
        stack_SB = np.stack(made)
        kept["first"].append(stack_SB[0])
        for way, rows_SB in values.items():
            best_B = np.stack(rows_SB).argmax(0)
            kept[way].append(stack_SB[best_B, np.arange(len(best_B))])
    return {way: np.concatenate(each) for way, each in kept.items()}, ids


def measure(config: Config, samples: int) -> tuple[dict[str, dict[str, np.ndarray]], dict]:
    """Scores of every image by way of choosing, and facts about brain correlation."""
    chosen, ids = drawn(config, samples)
    brain = BrainScorer(config, targets_of(config), ids)
    truth = SeenImages(brain.trained.spaces.targets.stimuli, ids)
    networks, readouts, _ = observers(config, True, ids)
    found = {}
    for way, pictures in chosen.items():
        table = score_images(
            truth, ids, pictures, ids, networks, readouts=readouts, resamples=1
        ).paired
        table[WHOLE] = brain_values(brain.predicted(pictures), brain.measured_NV, {})[WHOLE]
        found[way] = {name: table[name].to_numpy(dtype=float) for name in SCORES}
    return found, brain_facts(brain, truth, ids)


def targets_of(config: Config) -> Targets:
    """Frozen models of the configuration."""
    return Targets(config)


def brain_facts(brain: BrainScorer, truth: SeenImages, ids: np.ndarray) -> dict:
    """Brain correlation of the seen pictures with noise, of shuffled ones and of random voxels; and
    which of two pictures was seen.
    """
    seen = np.stack([truth[row] for row in range(len(ids))])
    random = np.random.default_rng(0)
    facts: dict[str, object] = {}
    for sd in NOISE:
        noisy = np.clip(seen + sd * random.standard_normal(seen.shape), 0, 1).astype(np.float32)
        parts = brain_values(brain.predicted(noisy), brain.measured_NV, brain.regions)
        facts[f"noise {sd:g}"] = {name: float(each.mean()) for name, each in parts.items()}
    predicted = brain.predicted(seen)
    for name, measured in (
        ("random voxels", random.standard_normal(brain.measured_NV.shape)),
        ("shuffled pictures", brain.measured_NV[random.permutation(len(ids))]),
    ):
        facts[name] = mean_interval(brain_values(predicted, measured, {})[WHOLE])._asdict()
    beats_NN, nearest_N = discriminate(brain.trained.model, brain.measured_NV, predicted)
    hardest = beats_NN[np.arange(len(ids)), nearest_N].astype(float)
    facts["told from all others"] = mean_interval(two_way_by_image(beats_NN))._asdict()
    facts["told from the most similar"] = mean_interval(hardest)._asdict()
    return facts


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="+", metavar="RUN or section.field=value")
    parser.add_argument("--roots", nargs="+", required=True)
    parser.add_argument("--samples", type=int, default=6)
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/candidates.json"))
    chosen = parser.parse_args()
    _, overrides = parse_overrides([word for word in chosen.words if "=" in word])
    runs = [word for word in chosen.words if "=" not in word]
    parts, facts = [], {}
    for run, root in zip(runs, chosen.roots):
        changed = {"run.folder": run, "data.root": root, "generation.use_text": "false"}
        found, facts[run] = measure(
            load_config("simulated", {**overrides, **changed}), chosen.samples
        )
        parts.append(found)
        print(run, facts[run])
    joined = {
        way: {name: np.concatenate([part[way][name] for part in parts]) for name in SCORES}
        for way in parts[0]
    }
    results: dict[str, dict] = {"facts": facts}
    for way, scores in joined.items():
        results[way] = {name: mean_interval(scores[name])._asdict() for name in SCORES}
    for other in ("first", "embedding"):
        results[f"responses - {other}"] = {
            name: {
                **mean_interval(gain := joined["responses"][name] - joined[other][name])._asdict(),
                "p": permutation_p(gain),
            }
            for name in SCORES
        }
    for label, scores in results.items():
        if label != "facts":
            cells = (
                f"{name} {each['value']:.3f} ({each['low']:.3f} to {each['high']:.3f})"
                + (f" p {each['p']:.3f}" if "p" in each else "")
                for name, each in scores.items()
            )
            print(label, *cells, sep="\n    ")
    write_json(chosen.json, results)


if __name__ == "__main__":
    main()
