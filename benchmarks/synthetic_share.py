"""Stage 1 of a new person's few sessions with synthetic trials among the measured ones.

    python benchmarks/synthetic_share.py data/four0 data/four1 data/four2 --others runs/c0 runs/c1
    runs/c2 --folder runs/synthetic

`--others` are folders of `braingen adaptation-curve` (docs/many_subjects.md), whose pretrained
encoder is taken up with the subject layer alone trained; without it encoders start at random
weights. Encoding models of the other people are fitted first and lend their tuning
(encoding.init_from). Held-out images choose; the test images' scores stand beside.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from braingen.config import load_config
from braingen.encoders.embedding_decoder import EmbeddingDecoder
from braingen.encoding_model.train import train_encoding
from braingen.evaluation.embeddings import decode_test_images, score_embeddings
from braingen.evaluation.uncertainty import mean_interval, permutation_p
from braingen.runtime.files import write_json
from braingen.runtime.paths import EMBEDDING_DECODER
from braingen.runtime.text_files import read_json
from braingen.training.encoder import train

SHARES = (0.0, 0.25, 0.5, 0.75)
SCORES = ("retrieval_brain_to_image", "retrieval_image_to_brain", "two_way_clip", "clip_cos")
SIZE = {
    "encoder.hidden_dim": "256",
    "encoder.n_blocks": "1",
    "prior.depth": "2",
    "training.batch_size": "60",
}


def main() -> None:
    """Train, score, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("roots", nargs="+")
    parser.add_argument("--others", nargs="*", default=[])
    parser.add_argument("--subject", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--sessions", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("runs/synthetic"))
    chosen = parser.parse_args()
    found: dict[str, list[dict[str, np.ndarray]]] = {}
    held: dict[str, list[float]] = {}
    for number, root in enumerate(chosen.roots):
        people = {"data.root": root, "run.folder": str(chosen.folder / f"others{number}")}
        numbers = ",".join(str(s) for s in range(1, 5) if s != chosen.subject)
        train_encoding(load_config("simulated", {**people, "data.subjects": numbers}))
        ways = {"scratch": {}}
        if number < len(chosen.others):
            earlier = Path(chosen.others[number], "adaptation_curve", "pretrained-seed0")
            ways["subject"] = {"training.init_from": str(earlier), "training.trained": "subject"}
        for way, start in ways.items():
            # the last line has as many steps as a share of 0.75, of measured trials alone
            for label, share, epochs in [
                *((f"{share:g}", share, chosen.epochs) for share in SHARES),
                ("0, 4 x the epochs", 0.0, 4 * chosen.epochs),
            ]:
                name = f"{way} {label}"
                folder = chosen.folder / f"{number} {name}".replace(" ", "-").replace(",", "")
                settings = {
                    **SIZE,
                    **start,
                    "data.root": root,
                    "data.subjects": str(chosen.subject),
                    "data.num_sessions": str(chosen.sessions),
                    "data.synthetic_share": str(share),
                    "training.num_epochs": str(epochs),
                    "run.folder": str(folder),
                }
                if share:
                    settings["encoding.init_from"] = people["run.folder"]
                config = load_config("simulated", settings)
                run = train(config, "image")
                decoder = EmbeddingDecoder.from_pretrained(run / EMBEDDING_DECODER)
                read = decode_test_images(config, "image", decoder)
                values = score_embeddings(config, "image", decoder, read).values
                found.setdefault(name, []).append(values)
                cosine = read_json(run / "finished")["best_validation_cosine"]
                held.setdefault(name, []).append(cosine)
    results: dict[str, dict] = {}
    for name, parts in found.items():
        joined = {score: np.concatenate([part[score] for part in parts]) for score in SCORES}
        base_parts = found[f"{name.split()[0]} 0"]
        base = {score: np.concatenate([part[score] for part in base_parts]) for score in SCORES}
        results[name] = {"held_out_cosine": float(np.mean(held[name]))}
        print(f"{name:28s} held-out {np.mean(held[name]):.3f}", end="")
        for score in SCORES:
            gain = joined[score] - base[score]
            results[name][score] = {
                **mean_interval(joined[score])._asdict(),
                "gain": mean_interval(gain)._asdict(),
                "p": permutation_p(gain) if gain.any() else 1.0,
            }
            each = results[name][score]
            print(
                f"  {each['value']:.3f} ({each['gain']['value']:+.3f}, p {each['p']:.3f})", end=""
            )
        print()
    write_json(chosen.folder / "synthetic_share.json", results)


if __name__ == "__main__":
    main()
