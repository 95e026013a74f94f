"""Decoders beside each other on the same data, budget and targets: one person at several numbers of
sessions, and new persons whose decoders are pretrained on others.

    braingen simulate --config simulated_hard
    python benchmarks/peers.py --config simulated_hard --folder runs/peers
    python benchmarks/peers.py --folder runs/peers --ways ridge,default --sessions 1 --seeds 0
    python benchmarks/peers.py --folder runs/peers --way ours encoder.model=NAME start=subject
    python benchmarks/peers.py --folder runs/peers --page docs/experiments/peers.md --only-page

A cell is one way, person, number of sessions and seed. Every finished cell is a line of
`cells.jsonl`; the same command does the missing ones and writes the page again. `--way NAME
section.field=value ...` adds any encoder, as often as wanted; `start` (`all`, `subject`,
`routers`) is what of a pretrained encoder is trained for a new person. All encoders train for the
same epochs with the same batches; the checkpoint is chosen on held-out training images; test images
are scored once. Ways without a seed are computed once.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
import hashlib
import json
from pathlib import Path
import time
from typing import Any, NamedTuple

import numpy as np
from peers_table import write_page
import torch

from braingen.config import Config, load_config
from braingen.config.overrides import parse_overrides
from braingen.data.betas import Betas
from braingen.data.trials import group_repeats, test_trials, train_trials
from braingen.data.volumes import read_regions
from braingen.encoders.embedding_decoder import EmbeddingDecoder
from braingen.encoders.linear_readout import RIDGE_ALONE
from braingen.encoders.parameters import router_parameters
from braingen.encoding_model.banded_ridge import fit_banded_ridge
from braingen.encoding_model.features import FeatureSpaces
from braingen.encoding_model.model import EncodingModel
from braingen.encoding_model.people import people_groups
from braingen.encoding_model.pictures import library_pictures
from braingen.encoding_model.responses import average_responses
from braingen.encoding_model.run import mean_responses
from braingen.encoding_model.train import fit_subject
from braingen.evaluation.embeddings import (
    EmbeddingScores,
    decode_test_images,
    score_embeddings,
    scores_of_decoded,
)
from braingen.evaluation.ridge_baseline import ridge_embeddings
from braingen.runtime.data_layout import Layout
from braingen.runtime.device import accelerator_of
from braingen.runtime.distributed import Workers, shared_run
from braingen.runtime.errors import UserError
from braingen.runtime.files import write_text
from braingen.runtime.paths import EMBEDDING_DECODER, run_folder
from braingen.runtime.text_files import parse_json, read_json, read_text
from braingen.targets.tables import Targets
from braingen.training.encoder import fit, parts_of, train
from braingen.training.encoder_setup import build_embedding_decoder, setup

CELLS = "cells.jsonl"
PUBLISHED_PRIOR = {"prior.depth": "6", "prior.dim_head": "52"}
PUBLISHED_LOSSES = {
    "loss_image.mse_scale": "0",
    "loss_image.clip_scale": "1",
    "loss_image.prior_scale": "30",
    "loss_image.deep_supervision_weight": "0",
}
ALONE = {"training.with_ridge": "false"}
"""Without ridge regression inside, as everything that was published."""
BEST = {"training.linear": "best"}
"""Ridge regression or an inversion of the encoding model inside, by held-out images."""
FIXED = {**BEST, "training.gain_regions": "0"}
"""The same without gains of regions."""
DENSE = {"encoder.model": "BrainEncoder", "loss_image.deep_supervision_weight": "0"}
MINDEYE2 = {
    **PUBLISHED_PRIOR,
    **PUBLISHED_LOSSES,
    **ALONE,
    "encoder.model": "BrainEncoder",
    "encoder.trunk": "published",
    "encoder.head": "projector",
    "encoder.n_blocks": "4",
    "encoder.dropout": "0.15",
    "encoder.voxel_dropout": "0",
    "loss_image.cos_scale": "0",
    "loss_image.prior_clip_scale": "0",
    "prior.use": "sample",
    "prior.sample_steps": "20",
    "prior.guidance_scale": "1",
}
"""MindEye2's backbone, projector, prior and losses (clip 1, prior 30, MixCo for a third of the
epochs), at the width of the others.
"""
MORE_BRAIN = {
    **PUBLISHED_PRIOR,
    **PUBLISHED_LOSSES,
    **ALONE,
    "encoder.model": "BrainMoEMulti",
    "encoder.routing": "expert_choice",
    "encoder.trunk": "published",
    "encoder.head": "projector",
    "encoder.n_blocks": "4",
    "encoder.dropout": "0.15",
    "encoder.voxel_dropout": "0",
    "loss_image.cos_scale": "0.5",
    "loss_image.prior_clip_scale": "1",
    "prior.use": "sample",
}
"""MoRE-Brain's encoder, prior and losses as its code has them, at the width of the others."""


class Way(NamedTuple):
    """A kind of decoder."""

    title: str
    kind: str = "encoder"
    """ridge, banded, encoding, read_out (of an encoder that is not trained), or encoder."""
    overrides: Mapping[str, str] = {}
    start: str = ""
    """New persons: what of an encoder that others trained is trained; empty: from random weights.
    """
    frozen_routers: bool = False
    """Routers stay at their random start."""
    equal_to: str = ""
    """Way whose number of parameters this one's width is chosen for."""
    tasks: tuple[str, ...] = ("within", "new")


WAYS: dict[str, Way] = {
    "ridge": Way("ridge regression", "ridge"),
    "banded_ridge": Way("banded ridge, a penalty per region", "banded"),
    "encoding": Way("encoding model, inverted", "encoding"),
    "encoding_people": Way(
        "encoding model with other people's tuning", "encoding_people", tasks=("new",)
    ),
    "inversion": Way(
        "inversion of the encoding model with fixed weights, or ridge regression",
        "read_out",
        FIXED,
        tasks=("within",),
    ),
    "read_out": Way(
        "mixture of regions with gains, or one of the two above",
        "read_out",
        BEST,
        tasks=("within",),
    ),
    "dense": Way(
        "dense, as many parameters as the default",
        overrides=DENSE,
        start="subject",
        equal_to="default",
    ),
    "dense_alone": Way(
        "the same without ridge regression inside",
        overrides={**DENSE, **ALONE},
        start="subject",
        equal_to="default",
    ),
    "mindeye2": Way("MindEye2's layout and losses", overrides=MINDEYE2, start="all"),
    "more_brain": Way("MoRE-Brain's layout and losses", overrides=MORE_BRAIN, start="routers"),
    "default": Way("present default", start="routers"),
    "default_alone": Way(
        "the same without ridge regression inside", overrides=ALONE, start="routers"
    ),
    "default_best": Way(
        "present default, training.linear=best", overrides=BEST, start="routers", tasks=("within",)
    ),
    "regions": Way(
        "experts that are regions",
        overrides={"encoder.model": "BrainMoERegions", "encoder.hidden_dim": "128"},
        start="subject",
    ),
    "random_routers": Way(
        "present default, routers frozen at random", frozen_routers=True, tasks=("within",)
    ),
    "subject_layer": Way("present default, subject layer alone", start="subject", tasks=("new",)),
    "default_all": Way("present default, everything", start="all", tasks=("new",)),
    "default_scratch": Way("present default, from scratch", tasks=("new",)),
}
"""A Brain-IT-like configuration is missing."""


class Cell(NamedTuple):
    """One entry of the table."""

    way: str
    task: str
    """within: trained on the person alone; new: with what others' data give."""
    subject: int
    sessions: int
    seed: int

    def key(self) -> str:
        """One line of text that names the cell."""
        return json.dumps(self._asdict(), sort_keys=True)


class Outcome(NamedTuple):
    """What a cell found."""

    scores: EmbeddingScores
    facts: dict[str, Any]


class Peers:
    """Cells, how they are computed, and where they are kept.

    Parameters
    ----------
    config_name : str
        Configuration that all ways change.
    overrides : Mapping[str, str]
        Settings of all ways.
    folder : Path
        Run folder of the comparison.
    people : tuple[int, ...]
        Persons that encoders of new persons are pretrained on.
    ways : Mapping[str, Way]
        By name.
    """

    def __init__(
        self,
        config_name: str,
        overrides: Mapping[str, str],
        folder: Path,
        people: tuple[int, ...],
        ways: Mapping[str, Way],
    ) -> None:
        self.config_name, self.overrides = config_name, dict(overrides)
        self.folder, self.people, self.ways = folder, people, ways
        self._others: dict[tuple[int, ...], list[EncodingModel]] = {}

    def config(self, cell: Cell, folder: Path, **changes: str) -> Config:
        """Settings of a cell."""
        own = {
            **self.overrides,
            **self.ways[cell.way].overrides,
            "run.folder": str(folder),
            "run.seed": str(cell.seed),
            "data.subjects": str(cell.subject),
            "data.num_sessions": str(cell.sessions),
            **{name.replace("__", "."): value for name, value in changes.items()},
        }
        if self.ways[cell.way].equal_to:
            own["encoder.hidden_dim"] = str(self.equal_width(cell.way, cell.subject))
        return load_config(self.config_name, own)

    def equal_width(self, name: str, subject: int) -> int:
        """Width at which an encoder of one person has as many parameters as that of another way."""

        def count(way: Way, **changes: str) -> int:
            own = {**self.overrides, **way.overrides, "data.subjects": str(subject)}
            changed = {key.replace("__", "."): value for key, value in changes.items()}
            return _count(load_config(self.config_name, {**own, **changed}))

        way = self.ways[name]
        wanted = count(self.ways[way.equal_to])
        widths = range(32, 4097, 8)
        low, high = 0, len(widths) - 1
        while low < high:  # the number grows with the width
            middle = (low + high) // 2
            there = count(way, encoder__hidden_dim=str(widths[middle]))
            low, high = (middle + 1, high) if there < wanted else (low, middle)
        return widths[low]

    def compute(self, cell: Cell) -> Outcome:
        """Train and score one cell."""
        way, start = self.ways[cell.way], time.process_time()
        compute: Callable[[Cell], Outcome] = {
            "ridge": self._ridge,
            "banded": self._banded,
            "encoding": self._encoding,
            "encoding_people": self._encoding,
            "read_out": self._read_out,
            "encoder": self._encoder,
        }[way.kind]
        found = compute(cell)
        seconds = round(time.process_time() - start, 1)
        return found._replace(facts={"seconds": seconds, **found.facts})

    def _ridge(self, cell: Cell) -> Outcome:
        config = self.config(cell, self.folder / "linear")
        targets, ids = Targets(config), _test_ids(config)
        raw_ND, mean_D = ridge_embeddings(config, targets, ids)
        true_ND = targets.image(ids).flatten(1).numpy()
        scores = scores_of_decoded(config, raw_ND.numpy(), true_ND, mean_D.numpy(), ids)
        count = Betas.of(Layout.of(config.data.root), cell.subject).voxels * true_ND.shape[1]
        return Outcome(scores, {"trained": count, "parameters": count})

    def _banded(self, cell: Cell) -> Outcome:
        config = self.config(cell, self.folder / "linear")
        layout, targets, ids = Layout.of(config.data.root), Targets(config), _test_ids(config)
        regions = read_regions(layout, cell.subject, ("V1", "V2", "V3", "V4", "higher_vis"))
        regions = {name: inside for name, inside in regions.items() if inside.any()}

        def bands(responses_NV: np.ndarray) -> dict[str, np.ndarray]:
            return {name: responses_NV[:, inside] for name, inside in regions.items()}

        betas = Betas.of(layout, cell.subject)
        known = average_responses(train_trials(layout, cell.subject, cell.sessions), betas)
        known_ND = targets.image(known.image_N).flatten(1).numpy()
        ridge = fit_banded_ridge(bands(known.mean_NV), known_ND, known.times_N, seed=cell.seed)
        measured_NV = mean_responses(group_repeats(test_trials(layout, cell.subject)), betas)
        true_ND = targets.image(ids).flatten(1).numpy()
        decoded_ND = ridge.predict(bands(measured_NV))
        scores = scores_of_decoded(config, decoded_ND, true_ND, known_ND.mean(0), ids)
        count = ridge.coefficients_PV.size
        return Outcome(scores, {"trained": count, "parameters": count})

    def _encoding(self, cell: Cell) -> Outcome:
        config = self.config(cell, self.folder / "linear")
        layout, ids = Layout.of(config.data.root), _test_ids(config)
        spaces = FeatureSpaces(config)
        pictures = library_pictures(config, spaces)
        prior = None
        if self.ways[cell.way].kind == "encoding_people":
            others = tuple(person for person in self.people if person != cell.subject)
            models = self._encoding_of(others, config, spaces)
            prior = people_groups(models, pictures.features)
        betas = Betas.of(layout, cell.subject)
        known = average_responses(train_trials(layout, cell.subject, cell.sessions), betas)
        model = fit_subject(config, cell.subject, known, spaces, pictures, prior)
        measured_NV = mean_responses(group_repeats(test_trials(layout, cell.subject)), betas)
        decoded_ND = model.decode(measured_NV, pictures.library(model)).embedding_ND
        true_ND = spaces.targets.image(ids).flatten(1).numpy()
        mean_D = spaces.targets.image(known.image_N).flatten(1).numpy().mean(0)
        scores = scores_of_decoded(config, decoded_ND, true_ND, mean_D, ids)
        count = model.ridge.coefficients_PV.size
        facts = {"trained": count, "parameters": count, "held_out": model.decoding.cosine}
        return Outcome(scores, facts)

    def _encoding_of(
        self, people: tuple[int, ...], config: Config, spaces: FeatureSpaces
    ) -> list[EncodingModel]:
        """The encoding models of other people, on all their sessions."""
        if people not in self._others:
            layout, found = Layout.of(config.data.root), []
            for person in people:
                theirs = average_responses(train_trials(layout, person), Betas.of(layout, person))
                found.append(EncodingModel.fit(spaces.of_ids(theirs.image_N), theirs))
            self._others[people] = found
        return self._others[people]

    def _read_out(self, cell: Cell) -> Outcome:
        config = self.config(cell, self.folder / "linear")
        decoder = setup(config, "image").embedding_decoder
        assert decoder.linear is not None
        decoder.linear.choose(RIDGE_ALONE)
        decoded = decode_test_images(config, "image", decoder)
        count = sum(each.weight_RV.numel() for each in decoder.linear.linears.values())
        scores = score_embeddings(config, "image", decoder, decoded)
        return Outcome(scores, {"trained": count, "parameters": count})

    def _encoder(self, cell: Cell) -> Outcome:
        way = self.ways[cell.way]
        changes = {}
        if cell.task == "new" and way.start:
            changes = {
                "training__init_from": str(self._pretrained(cell)),
                "training__trained": way.start,
            }
        name = f"{cell.way}-{cell.task}-{cell.subject}-{cell.sessions}-{cell.seed}"
        config = self.config(cell, self.folder / "runs" / name, **changes)
        run = train_with_frozen_routers(config) if way.frozen_routers else train(config, "image")
        decoder = EmbeddingDecoder.from_pretrained(run / EMBEDDING_DECODER)
        decoded = decode_test_images(config, "image", decoder)
        finished = read_json(run / "finished")
        facts = {
            "trained": finished["trained_parameters"],
            "parameters": finished["parameters"],
            "held_out": finished["best_validation_cosine"],
        }
        return Outcome(score_embeddings(config, "image", decoder, decoded), facts)

    def _pretrained(self, cell: Cell) -> Path:
        """The run on the other people with the same settings and seed; it serves several ways."""
        people = [person for person in self.people if person != cell.subject]
        settings = json.dumps([dict(self.ways[cell.way].overrides), people], sort_keys=True)
        digest = hashlib.sha256(settings.encode()).hexdigest()[:10]
        folder = self.folder / "pretrained" / f"{digest}-{cell.seed}"
        config = self.config(
            cell, folder, data__subjects=",".join(map(str, people)), data__num_sessions="0"
        )
        batch = config.training.batch_size * len(people)
        training = config.training.model_copy(update={"batch_size": batch})
        train(config.model_copy(update={"training": training}), "image")
        return folder


def train_with_frozen_routers(config: Config) -> Path:
    """Train all of an image encoder but its routers, which stay at their random start."""
    folder, workers = run_folder(config, "image"), Workers(config)
    settings = config.model_dump(mode="json", exclude={"run"}) | {"routers": "frozen"}
    with shared_run(workers, folder, settings, {"run": config.run.seed}) as run:
        if not run.finished:
            accelerator = accelerator_of(config, folder, config.training.batch_size)
            parts = parts_of(config, "image", accelerator, workers)
            for parameter in router_parameters(parts.embedding_decoder).values():
                parameter.requires_grad_(False)
            fit(config, parts, run, accelerator, workers)
    return folder


def _count(config: Config) -> int:
    """Parameters of the embedding decoder of a configuration."""
    layout = Layout.of(config.data.root)
    voxels = {subject: Betas.of(layout, subject).voxels for subject in config.data.subjects}
    width = Targets(config).image(np.array([0])).shape[1:]
    with torch.device("meta"):
        built = build_embedding_decoder(config, voxels, width)
    return sum(parameter.numel() for parameter in built.parameters())


def _test_ids(config: Config) -> np.ndarray:
    layout = Layout.of(config.data.root)
    return group_repeats(test_trials(layout, config.data.subjects[0])).image_N


def read_cells(folder: Path) -> dict[str, dict[str, Any]]:
    """Finished cells by key."""
    path = folder / CELLS
    lines = read_text(path).splitlines() if path.exists() else []
    rows = [parse_json(line) for line in lines if line.strip()]
    return {json.dumps(row["cell"], sort_keys=True): row for row in rows}


def own_ways(given: list[list[str]]) -> dict[str, Way]:
    """Ways of ``--way NAME section.field=value ...``."""
    found = {}
    for name, *words in given:
        start = [word.partition("=")[2] for word in words if word.startswith("start=")]
        settings = [word for word in words if not word.startswith(("start=", "title="))]
        title = [word.partition("=")[2] for word in words if word.startswith("title=")]
        _, overrides = parse_overrides(settings)
        found[name] = Way(
            title[-1] if title else name, "encoder", overrides, start[-1] if start else ""
        )
    return found


def main() -> None:
    """Compute the missing cells and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*", metavar="section.field=value")
    parser.add_argument("--config", default="simulated_hard")
    parser.add_argument("--folder", type=Path, default=Path("runs/peers"))
    parser.add_argument("--way", nargs="+", action="append", default=[])
    parser.add_argument("--ways", default="", help="names; all by default")
    parser.add_argument("--tasks", default="within,new")
    parser.add_argument("--subject", type=int, default=1, help="of the task within")
    parser.add_argument("--sessions", default="1,4,10", help="of the task within")
    parser.add_argument("--new", default="7,8", help="new persons")
    parser.add_argument("--new-sessions", default="1")
    parser.add_argument("--people", default="1,2,3,4", help="persons to pretrain on")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--page", type=Path, help="Markdown page; <folder>/peers.md by default")
    parser.add_argument("--only-page", action="store_true")
    chosen, rest = parser.parse_known_args()
    if rest:
        raise UserError(f"'{rest[0]}' is not understood: see --help.")
    own = own_ways(chosen.way)
    ways = {**WAYS, **own}
    wanted = [name for name in chosen.ways.split(",") if name] or list(ways)
    wanted += [name for name in own if name not in wanted]
    if unknown := [name for name in wanted if name not in ways]:
        raise UserError(f"There is no way {unknown[0]}: choose among {', '.join(ways)}.")
    _, overrides = parse_overrides(chosen.words)

    def numbers(text: str) -> list[int]:
        return [int(word) for word in text.split(",") if word]

    tasks = {"within": ([chosen.subject], numbers(chosen.sessions))}
    tasks["new"] = (numbers(chosen.new), numbers(chosen.new_sessions))
    cells = [
        Cell(way, task, subject, sessions, seed)
        for seed in numbers(chosen.seeds)
        for task in chosen.tasks.split(",")
        for subject in tasks[task][0]
        for sessions in tasks[task][1]
        for way in wanted
        if task in ways[way].tasks and (ways[way].kind in ("encoder", "read_out") or seed == 0)
    ]
    peers = Peers(chosen.config, overrides, chosen.folder, tuple(numbers(chosen.people)), ways)
    done = read_cells(chosen.folder)
    if not chosen.only_page:
        chosen.folder.mkdir(parents=True, exist_ok=True)
        missing = [cell for cell in cells if cell.key() not in done]
        for number, cell in enumerate(missing, 1):
            found = peers.compute(cell)
            values = {name: np.round(v, 6).tolist() for name, v in found.scores.values.items()}
            row = {"cell": cell._asdict(), **found.facts, "values": values}
            with open(chosen.folder / CELLS, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            means = "  ".join(f"{name} {v.mean():.3f}" for name, v in found.scores.values.items())
            print(f"{number}/{len(missing)} {tuple(cell)} {means} {found.facts}", flush=True)
    titles = {name: way.title for name, way in ways.items()}
    rows = list(read_cells(chosen.folder).values())
    page = chosen.page or chosen.folder / "peers.md"
    write_text(page, write_page(rows, titles))
    print(page)


if __name__ == "__main__":
    main()
