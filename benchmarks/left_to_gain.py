"""What could listening better still gain? What the decoded embeddings hold, against what the
pictures drawn from them show.

    python benchmarks/routing_helps.py --folder runs/routing_helps --lines untouched both oracle
    python benchmarks/left_to_gain.py --folder runs/routing_helps

Object, background and position are read from the embeddings of the test images by linear
discriminants (class means from the true embeddings of training images, shrunk as held-out reads
are; covariance within classes, plus that of the errors of held-out reads, shrunk after Ledoit and
Wolf): once from what both encoders put out, once from what each of their levels says. If the second
is no better, levels hold nothing that their mean does not, and no weighting of them can gain. If
the pictures are named as well as the embeddings are read, nothing is lost in drawing. And where a
picture is named right, PixCorr beside that of the picture drawn from the true embeddings says what
is lost otherwise.

An ideal listener knows how unsure the decoded embeddings are, and draws what may have been seen:
the untouched diffusion model is given the decoded embeddings plus what the decoding of a held-out
training image, drawn by chance, was off by (image and text together). Fine-tuning on unsure reads
leads there; where that listener scores below the untouched model, which takes the decoded embedding
for the true one, nothing is to be gained by it. Test images are scored, nothing is fitted to them.
"""

from __future__ import annotations

import json

import numpy as np
from routing_helps import LINES, arguments, config_of
from safetensors.torch import load_file, save_file
from sklearn.covariance import ledoit_wolf
import torch
from torch import Tensor

from braingen.config import Config
from braingen.data.trials import group_repeats, hold_out_images, train_trials
from braingen.encoders.trained import load_embedding_decoders
from braingen.evaluation.image_sets import PngImages, SeenImages
from braingen.evaluation.metric_table import score_images
from braingen.evaluation.observers import observers
from braingen.evaluation.uncertainty import mean_interval
from braingen.experiments.ablation_table import config_of as line_of
from braingen.generation.reconstruct import assemble, decode_responses, generate_images, write_index
from braingen.generation.reconstruct import setup as drawing_parts
from braingen.runtime.data_layout import Layout
from braingen.runtime.distributed import Workers
from braingen.runtime.files import write_json
from braingen.runtime.paths import EMBEDDINGS, INDEX, generated_folder
from braingen.runtime.seeds import hash_seed
from braingen.simulation.pictures import load_scenes
from braingen.simulation.semantics import LABELS, labels
from braingen.targets.tables import Targets
from braingen.training.diffusion import setup
from braingen.training.diffusion_data import diffusion_data

NAMED = ("object", "background", "position")
RESULT, IDEAL = "left_to_gain.json", "ideal_listener"
AGAINST_IDEAL = (
    "pixcorr",
    "ssim",
    "two_way_classifier_late",
    "object_accuracy",
    "position_accuracy",
)


def outputs(experts_NED: Tensor, counts: tuple[int, ...], levels: bool) -> np.ndarray:
    """What an encoder puts out, N x D, or what its levels say, N x (L D), from what its experts
    say.
    """
    each_NLD = torch.stack(
        [level_NED.mean(dim=1) for level_NED in experts_NED.split(list(counts), dim=1)], dim=1
    )
    return (each_NLD.flatten(1) if levels else each_NLD.mean(dim=1)).double().numpy()


class Discriminants:
    """Linear discriminant analysis of reads, from true embeddings and the errors of other reads.

    Parameters
    ----------
    truth_NF : np.ndarray
        What would be read without error.
    label_N : np.ndarray
        Classes.
    error_JF : np.ndarray
        Errors.
    """

    def __init__(self, truth_NF: np.ndarray, label_N: np.ndarray, error_JF: np.ndarray) -> None:
        self.classes, row_N, count_C = np.unique(label_N, return_inverse=True, return_counts=True)
        mean_CF = np.stack(
            [truth_NF[row_N == row].mean(axis=0) for row in range(len(self.classes))]
        )
        within_NF = truth_NF - mean_CF[row_N]
        covariance_FF = within_NF.T @ within_NF / len(within_NF) + ledoit_wolf(error_JF)[0]
        self.weight_CF = np.linalg.solve(covariance_FF, mean_CF.T).T
        self.bias_C = np.log(count_C / count_C.sum()) - 0.5 * (self.weight_CF * mean_CF).sum(axis=1)

    def __call__(self, read_NF: np.ndarray) -> np.ndarray:
        """The class of every read."""
        return self.classes[(read_NF @ self.weight_CF.T + self.bias_C).argmax(axis=1)]


def read_out(config: Config) -> dict[str, dict[str, list[float]]]:
    """'output', 'levels' -> label -> per test image, whether it is read right from both encoders
    together.
    """
    own = line_of(config, "both")
    parts, embedding_decoders, targets = setup(own), load_embedding_decoders(own), Targets(own)
    data = diffusion_data(
        own, targets, embedding_decoders, parts.model.size, 10**6
    )  # the errors of all held-out images
    drawn = load_file(generated_folder(own) / EMBEDDINGS)
    layout = Layout.of(own.data.root)
    known_NL, asked_ML = (
        labels(load_scenes(layout, ids.tolist()))
        for ids in (data.train.image_N, drawn["ids"].numpy())
    )
    found: dict[str, dict[str, list[float]]] = {}
    for kind in ("output", "levels"):
        truth, error, read = [], [], []
        for name in embedding_decoders:
            counts, unsure = parts.model.counts[name], data.decoding_error[name]
            shrunk_NETD = unsure.slope_E[:, None, None] * data.train.truth[name][:, None]
            for column, table in (
                (truth, shrunk_NETD),
                (error, unsure.error_JETD),
                (read, drawn[f"{name}_experts"]),
            ):
                column.append(outputs(table.flatten(2).float(), counts, kind == "levels"))
        truth_NF, error_JF, read_MF = (
            np.concatenate(column, axis=1) for column in (truth, error, read)
        )
        columns = {label: LABELS.index(label) for label in NAMED}
        found[kind] = {
            label: (
                (Discriminants(truth_NF, known_NL[:, k], error_JF)(read_MF) == asked_ML[:, k])
                .astype(float)
                .tolist()
            )
            for label, k in columns.items()
        }
    return found


def draw_ideally(config: Config) -> Config:
    """Draw the test images as an ideal listener would; the settings of what was drawn."""
    untouched = line_of(config, "untouched")
    own = untouched.model_copy(
        update={
            "run": untouched.run.model_copy(
                update={"folder": untouched.run.folder.with_name(IDEAL)}
            )
        }
    )
    folder = generated_folder(own)
    if (folder / INDEX).exists():
        return own
    parts, subject = drawing_parts(own), own.data.subjects[0]
    trials = train_trials(Layout.of(own.data.root), subject, own.data.num_sessions)
    held_out = group_repeats(hold_out_images(trials, own.data.holdout_share, own.run.seed)[1])
    decoder = assemble(own, parts.targets)
    known, asked = (
        decode_responses(own, decoder.encoders, held_out, parts.betas, subject),
        load_file(generated_folder(untouched) / EMBEDDINGS),
    )
    chance = torch.Generator().manual_seed(hash_seed(own.run.seed, "ideal listener", 0))
    row_N = torch.randint(len(held_out.image_N), (len(asked["ids"]),), generator=chance)
    for name in ("image", "text"):
        asked[name] = asked[name] + (parts.targets.of(name, held_out.image_N) - known[name])[row_N]
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: asked[name].contiguous() for name in ("ids", "image", "text")}, folder / EMBEDDINGS
    )
    generate_images(own, decoder, lambda: parts.targets.image_encoder, folder, Workers(own))
    write_index(folder, asked["ids"].tolist())
    return own


def scores_of_ideal(config: Config, images: list[int]) -> dict[str, np.ndarray]:
    """Score -> what every test image adds to it, of the ideal listener's pictures."""
    own = draw_ideally(config)
    folder, targets, ids = generated_folder(own), Targets(own), np.array(images)
    networks, named, _ = observers(own, targets.stimuli.simulated, ids)
    sheet = score_images(
        SeenImages(targets.stimuli, ids),
        ids,
        PngImages(folder, ids),
        ids,
        networks,
        readouts=named,
        resamples=1,
    )
    table = sheet.paired.sort_index()
    return {score: table[score].to_numpy() for score in table}


def described(values_SN: np.ndarray, resamples: int) -> dict[str, object]:
    """Mean over seeds and images, its interval over images, and every seed's mean."""
    interval = mean_interval(values_SN.mean(axis=0), resamples)
    return {
        **{name: round(end, 5) for name, end in interval._asdict().items()},
        "seeds": values_SN.mean(axis=1).round(5).tolist(),
    }


def main() -> None:
    """Read out, compare, print."""
    chosen, words = arguments(__doc__).parse_known_args()
    configs = [
        config_of(chosen.config, chosen.folder, seed, chosen.images, words)
        for seed in range(chosen.seeds)
    ]
    lines = [
        json.loads((config.run.folder / LINES).read_text(encoding="utf-8")) for config in configs
    ]
    read = [read_out(config) for config in configs]
    resamples, table = configs[0].evaluation.bootstrap, dict[str, dict[str, object]]()
    for label in NAMED:
        for line in ("untouched", "both", "oracle"):
            named_SN = np.array([seed[line][f"{label}_accuracy"] for seed in lines])
            table[f"{label} named in pictures, {line}"] = described(named_SN, resamples)
        for kind in ("output", "levels"):
            table[f"{label} read from the embeddings, {kind}"] = described(
                np.array([seed[kind][label] for seed in read]), resamples
            )
        gain = np.array([seed["levels"][label] for seed in read]) - np.array(
            [seed["output"][label] for seed in read]
        )
        table[f"{label} read, levels minus output"] = described(gain, resamples)
    for line in ("untouched", "both"):
        right_SN = np.array(
            [
                [all(row) for row in zip(*(seed[line][f"{label}_accuracy"] for label in NAMED))]
                for seed in lines
            ]
        )
        loss_SN = np.array([seed["oracle"]["pixcorr"] for seed in lines]) - np.array(
            [seed[line]["pixcorr"] for seed in lines]
        )
        table[f"PixCorr lost against true embeddings, {line}"] = described(loss_SN, resamples)
        for name, some_SN in (("right", right_SN), ("wrong", ~right_SN)):
            interval = mean_interval(loss_SN[some_SN], resamples)
            table[f"PixCorr lost, {line}, pictures named {name}"] = {
                **interval._asdict(),
                "share": float(some_SN.mean()),
            }
    ids = [
        load_file(generated_folder(line_of(config, "untouched")) / EMBEDDINGS)["ids"].tolist()
        for config in configs
    ]
    ideal = [scores_of_ideal(config, sorted(some)) for config, some in zip(configs, ids)]
    for score in AGAINST_IDEAL:
        ideal_SN = np.stack([seed[score] for seed in ideal])
        table[f"{score}, ideal listener"] = described(ideal_SN, resamples)
        for line in ("untouched", "both"):
            other_SN = np.array([seed[line][score] for seed in lines])
            table[f"{score}, ideal listener minus {line}"] = described(
                ideal_SN - other_SN, resamples
            )
    write_json(chosen.folder / RESULT, table)
    for name, row in table.items():
        print(
            f"{name:60} {row['value']:.4f} ({row['low']:.4f} to {row['high']:.4f}) "
            f" {row.get('seeds', row.get('share'))}"
        )
    print(chosen.folder / RESULT)


if __name__ == "__main__":
    main()
