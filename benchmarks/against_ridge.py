"""Trained encoders against cross-validated ridge regression on the same trials: retrieval and
CLIP-cos, image by image, over several seeds.

    python benchmarks/against_ridge.py runs/seed0 runs/seed1 --config simulated
    data.root=data/simulated

The run folders hold an image encoder each (`braingen train image`), trained on the data that the
settings name. An image's difference is averaged over the runs; intervals are bootstraps over
images, p is of a sign-flip permutation test.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from braingen.config import Config, load_config
from braingen.config.overrides import parse_overrides
from braingen.data.batches import RepeatBatches, average_repeats
from braingen.data.betas import Betas
from braingen.data.trials import group_repeats, test_trials
from braingen.encoders.trained import load_embedding_decoder
from braingen.evaluation.decoding import decoder_scores
from braingen.evaluation.ridge_baseline import ridge_embeddings
from braingen.evaluation.uncertainty import mean_interval, permutation_p
from braingen.runtime.data_layout import Layout
from braingen.runtime.files import write_json
from braingen.targets.tables import Targets


@torch.no_grad()
def decoded(config: Config) -> tuple[torch.Tensor, torch.Tensor]:
    """Embedding (after the prior) and projected output of a run's image encoder for every test
    image, N x D each.
    """
    embedding_decoder, subject, layout = (
        load_embedding_decoder(config, "image"),
        config.data.subjects[0],
        Layout.of(config.data.root),
    )
    repeats = group_repeats(test_trials(layout, subject))
    embedding, projected = [], []
    for batch in RepeatBatches(repeats, Betas.of(layout, subject), subject, 64):
        count, presentations = batch.present_BR.shape
        out = embedding_decoder(batch.voxels_BRV.flatten(0, 1), subject)
        mean = [
            average_repeats(x.unflatten(0, (count, presentations)), batch.present_BR)
            for x in (out.backbone_BTD, out.clip_BTD)
        ]
        embedding.append(embedding_decoder.embedding(mean[0]).flatten(1))
        projected.append(mean[1].flatten(1))
    return torch.cat(embedding), torch.cat(projected)


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="+", metavar="RUN or section.field=value")
    parser.add_argument("--config", type=Path, default=Path("simulated"))
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/against_ridge.json"))
    chosen = parser.parse_args()
    runs = [Path(word) for word in chosen.words if "=" not in word]
    _, overrides = parse_overrides([word for word in chosen.words if "=" in word])
    configs = [load_config(chosen.config, {**overrides, "run.folder": str(run)}) for run in runs]
    targets = Targets(configs[0])
    ids = group_repeats(
        test_trials(Layout.of(configs[0].data.root), configs[0].data.subjects[0])
    ).image_N
    true = targets.image(ids).flatten(1)
    ridge, mean = ridge_embeddings(configs[0], targets, ids)

    def table(raw_ND: torch.Tensor, around_ND: torch.Tensor) -> dict[str, np.ndarray]:
        cosine = decoder_scores(raw_ND.numpy(), true.numpy(), ids, resamples=1)[1]["clip_cos"]
        found = decoder_scores(
            around_ND.numpy(), (true - mean).numpy(), ids, pool=len(ids), resamples=1
        )[1]
        return {
            "clip_cos": cosine.to_numpy(),
            **{name: found[name].to_numpy() for name in found if name != "clip_cos"},
        }

    theirs = table(ridge, ridge - mean)
    ours = [table(*decoded(config)) for config in configs]
    result = {}
    print(f"{len(ids)} test images, {len(runs)} runs; retrieval among all of them")
    for name, values in theirs.items():
        difference = np.mean([each[name] for each in ours], axis=0) - values
        interval = mean_interval(difference)
        seeds = [round(float(each[name].mean()), 4) for each in ours]
        result[name] = {
            "encoder": float(np.mean(seeds)),
            "seeds": seeds,
            "ridge": float(values.mean()),
            "difference": interval.value,
            "low": interval.low,
            "high": interval.high,
            "p": permutation_p(difference),
        }
        told = f"{result[name]['encoder']:.3f} against {values.mean():.3f}"
        print(
            f"{name:26} {told}: {interval.value:+.3f} ({interval.low:+.3f} to"
            f" {interval.high:+.3f}), p {result[name]['p']:.2g}, {seeds}"
        )
    chosen.json.parent.mkdir(parents=True, exist_ok=True)
    write_json(chosen.json, {"images": len(ids), "runs": len(runs), "scores": result})


if __name__ == "__main__":
    main()
