"""What of MoRE-Brain's encoder earns its place: parts taken away one by one, same simulated data,
same budget, several seeds.

    python benchmarks/encoder_parts.py --config simulated --seeds 3

Needs the simulated data (`braingen simulate --config simulated`). Image encoder without the prior,
so that nothing behind it makes up for what it lacks. Beside the scores stand the parameters as
trained here and of the same layout at full size (15 724 voxels, 4096 units, 1280 wide; counted on
the meta device). Prints a Markdown table and writes JSON beside it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
import tempfile
import time
from typing import Any

import numpy as np
from routing import retrieval
import torch

from braingen.config import Config, load_config
from braingen.encoders.base import encoder_class
from braingen.encoders.embedding_decoder import EmbeddingDecoder
from braingen.runtime.run_folder import Run
from braingen.training.encoder import train

VARIANTS: dict[str, dict[str, str]] = {
    "published layout": {"routing": "expert_choice", "trunk": "published", "head": "projector"},
    "static routing instead": {"trunk": "published", "head": "projector"},
    "and a trunk that works": {"head": "projector"},
    "and linear heads (default)": {"head": "linear"},
    "default, 1 block": {"head": "linear", "n_blocks": "1"},
    "default, 1 block, levels 2 and 4": {"head": "linear", "n_blocks": "1", "exp_factor_list": "2"},
    "the same, a quarter of the units": {
        "head": "linear",
        "n_blocks": "1",
        "exp_factor_list": "2",
        "hidden_dim": "quarter",
    },
}
"""Encoder settings by what is said of them; the rest is the config's. A quarter is of the config's
hidden_dim.
"""


def settings_of(variant: str, hidden_dim: int) -> dict[str, str]:
    """Overrides of a variant for a config of so many units."""
    return {
        f"encoder.{name}": str(hidden_dim // 4) if text == "quarter" else text
        for name, text in {"hidden_dim": str(hidden_dim), **VARIANTS[variant]}.items()
    }


def parameters(config: Config, voxels: int, width: int) -> int:
    """Parameters of the configured encoder."""
    with torch.device("meta"):
        arguments: dict[str, Any] = config.encoder.arguments()
        model = encoder_class(config.encoder.model)(
            subjects={1: voxels}, clip_emb_dim=width, clip_seq_dim=1, **arguments
        )
    return sum(parameter.numel() for parameter in model.parameters())


def main() -> None:
    """Train every variant with every seed and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, default=Path("simulated"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=0, help="instead of the config's")
    parser.add_argument("--data", default="", help="data folder instead of the config's")
    parser.add_argument(
        "--n_blocks", type=int, default=4, help="of the layouts that do not say (published: 4)"
    )
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/encoder_parts.json"))
    chosen = parser.parse_args()
    plain = load_config(chosen.config, {"data.root": chosen.data} if chosen.data else {})
    common = {"prior.use_prior": "false", "run.tracker": "none", "data.root": str(plain.data.root)}
    common["encoder.n_blocks"] = str(chosen.n_blocks)
    if chosen.epochs:
        common["training.num_epochs"] = str(chosen.epochs)
    chosen.json.parent.mkdir(parents=True, exist_ok=True)
    before = json.loads(chosen.json.read_text(encoding="utf-8")) if chosen.json.exists() else {}
    results: dict[str, dict[str, Any]] = (
        before["results"] if before.get("settings") == common else {}
    )
    for name in VARIANTS:
        settings = common | settings_of(name, plain.encoder.hidden_dim)
        full = load_config(chosen.config, common | settings_of(name, 4096))
        result = results.setdefault(name, {"runs": []})
        result["parameters_full_size"] = parameters(full, 15724, 1280)
        done = {run["seed"] for run in result["runs"]}
        for seed in range(chosen.seeds):
            if seed in done:  # of an earlier call with the same settings
                continue
            with tempfile.TemporaryDirectory() as scratch:
                config = load_config(
                    chosen.config, settings | {"run.folder": scratch, "run.seed": str(seed)}
                )
                started = time.process_time()
                folder = train(config, "image")
                seconds = round(time.process_time() - started, 1)
                found = {"seed": seed, "processor_seconds": seconds, **retrieval(config, folder)}
                found["held_out_cosine"] = Run(folder).summary["best_validation_cosine"]
                result["parameters"] = count_saved(folder)
            result["runs"].append(found)
            print(name, found, flush=True)
            chosen.json.write_text(
                json.dumps({"settings": common, "results": results}, indent=1) + "\n",
                encoding="utf-8",
            )
    print(
        "\n| encoder | parameters here | at full size | cosine, held out | brain to image | image"
        " to brain |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    for name, result in results.items():
        cells = []
        for score in ("held_out_cosine", "retrieval_brain_to_image", "retrieval_image_to_brain"):
            values = np.array([run[score] for run in result["runs"]])
            cells.append(f"{values.mean():.3f} ({', '.join(f'{value:.3f}' for value in values)})")
        print(
            f"| {name} | {result['parameters']:,} | {result['parameters_full_size']:,} |"
            f" {' | '.join(cells)} |"
        )


def count_saved(folder: Path) -> int:
    """Parameters of the encoder of a finished run."""
    return sum(
        parameter.numel()
        for parameter in EmbeddingDecoder.from_pretrained(
            folder / "embedding_decoder"
        ).encoder.parameters()
    )


if __name__ == "__main__":
    main()
