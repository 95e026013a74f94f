"""The whole pipeline on a simulated subject, up to the report; finished steps are skipped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
import time
from typing import Any, NamedTuple

from braingen.config import Config
from braingen.data.model_facts import model_facts
from braingen.data.stimuli import Stimuli
from braingen.demo.quickstart import PAGE, quickstart
from braingen.evaluation.evaluate import evaluate
from braingen.generation.reconstruct import (
    assemble,
    generation_tasks,
    reconstruct_into,
    reconstruct_subject,
    repeats_to_generate,
)
from braingen.generation.refine import refine_folder, refined_folder
from braingen.report.write import report
from braingen.runtime.console import console as new_console
from braingen.runtime.data_layout import Layout
from braingen.runtime.errors import UserError
from braingen.runtime.files import clear_temporaries, write_json
from braingen.runtime.model_card import facts_in, write_card
from braingen.runtime.parallel import Task, group_of
from braingen.runtime.paths import generated_folder, run_folder, subject_configs
from braingen.runtime.text_files import read_json
from braingen.simulation.dataset import simulate
from braingen.targets.tables import Targets
from braingen.training.diffusion import finetune
from braingen.training.encoder import train

TIMINGS, DECODER = "timings.json", "decoder"
LEVEL_IMAGES = 8
"""Test images generated from every level alone, for the report."""


def save_decoder(config: Config) -> Path:
    """Save the whole decoder in one folder for ``BrainDecoder.from_pretrained``."""
    folder = config.run.folder / DECODER
    if not (folder / "model_index.json").exists():
        assemble(config, Targets(config)).save_pretrained(folder)
    return folder


def _report(config: Config) -> Path:
    """Write the page, and the scores into the card of the decoder."""
    folder = config.run.folder / DECODER
    if (facts := facts_in(folder)) is not None:
        subjects = {each.subject: each.voxels for each in facts.subjects}
        run = config.run.folder
        write_card(folder, model_facts(facts.kind, facts.architecture, subjects, run, known=facts))
    return report(config)


class Step(NamedTuple):
    """A step of the demo."""

    name: str
    what: str
    """Description, with the time on two cores."""
    work: Callable[[], Any]
    """Function of the step; the last one returns the path of the page."""


def demo(config: Config) -> Path:
    """Run quickstart, simulate, train, finetune, reconstruct, refine, evaluate and report.

    Returns
    -------
    Path
        Path of the page.
    """
    layout = Layout.of(config.data.root)
    if layout.images().exists() and not Stimuli(layout).simulated:
        raise UserError(
            f"{layout.root} holds real data, and the demo writes a simulated subject: choose"
            " another folder, --root data/simulated."
        )
    if config.simulation.world != "demo":
        raise UserError(
            f"simulation.world = {config.simulation.world} has no pictures, which the demo draws:"
            " leave it out, or train and score encoders with `braingen train image --config"
            " simulated_hard`."
        )
    # scores and page are in the run folder itself, and the card is written anew in the decoder's
    for folder in (config.run.folder, config.run.folder / DECODER):
        clear_temporaries(folder)
    with group_of(config) as group:
        steps = [
            Step(
                "quickstart",
                "decodes 12 test images with the shipped decoder (10 s)",
                lambda: quickstart_page(config),
            ),
            Step(
                "simulate",
                "images and the responses of a simulated subject (20 s)",
                lambda: simulate(config),
            ),
            Step(
                "train",
                "both encoders, from voxels to CLIP embeddings (about 2 min)",
                lambda: group.run(training(config)),
            ),
            Step(
                "finetune",
                "LoRA and routers of the diffusion model (about 1 min)",
                lambda: finetune(config),
            ),
            Step("decoder", "saves the decoder in one folder", lambda: save_decoder(config)),
            Step(
                "reconstruct",
                "brain, random voxels, oracle, single levels, refined (about 2 min)",
                lambda: group.run(generation(config)),
            ),
            Step("evaluate", "scores with intervals (30 s)", lambda: evaluate(config, group)),
            Step("report", "the HTML page", lambda: _report(config)),
        ]
        return _do(steps, config.run.folder)


def quickstart_page(config: Config) -> Path:
    """Write the page of `braingen quickstart` into the run folder."""
    output = config.run.folder / "quickstart"
    if (output / PAGE).exists():
        return output / PAGE
    return quickstart(
        config.model_copy(
            update={"quickstart": config.quickstart.model_copy(update={"output": output})}
        )
    )


def training(config: Config) -> list[Task]:
    """Tasks that train both encoders."""
    return [_training(config, modality) for modality in ("image", "text")]


def _training(config: Config, modality: str) -> Task:
    log = run_folder(config, modality) / "metrics.jsonl"
    return Task(
        f"training the {modality} encoder, epochs",
        train,
        (config, modality),
        _lines_in(log),
        config.training.num_epochs,
    )


def _lines_in(log: Path) -> Callable[[], int]:
    return lambda: log.read_bytes().count(b"\n") if log.exists() else 0


def generation(config: Config) -> list[Task]:
    """Tasks that generate images, the longest first."""
    found = [task for one in subject_configs(config) for task in _generation_of_subject(one)]
    return sorted(found, key=lambda task: -task.total)


def _generation_of_subject(config: Config) -> list[Task]:

    def changed(**settings: object) -> Config:
        return config.model_copy(
            update={"generation": config.generation.model_copy(update=settings)}
        )

    count, who = (
        len(repeats_to_generate(config).image_N),
        f"subject {config.data.subjects[0]}, images",
    )
    sources = [
        each for source in ("random", "oracle") for each in generation_tasks(changed(source=source))
    ]
    brain, refined = generated_folder(config, "brain"), refined_folder(config)
    found = [
        Task(
            f"{who} from brain activity, refined",
            _generate_and_refine,
            (config,),
            _pictures(brain, refined),
            2 * count,
        )
    ]
    for each in sources:
        found.append(
            Task(
                f"{who} ({each.folder.name})",
                reconstruct_into,
                tuple(each),
                _pictures(each.folder),
                count,
            )
        )
    levels = len(config.encoder.experts)
    for level in range(levels if levels > 1 else 0):
        (each,) = generation_tasks(changed(source="brain", level=level, num_images=LEVEL_IMAGES))
        some = min(count, LEVEL_IMAGES)
        found.append(
            Task(
                f"{who} from level {level} alone",
                reconstruct_into,
                tuple(each),
                _pictures(each.folder),
                some,
            )
        )
    return found


def _pictures(*folders: Path) -> Callable[[], int]:
    return lambda: sum(len(list(folder.glob("[0-9]*.png"))) for folder in folders)


def _generate_and_refine(config: Config) -> None:
    reconstruct_subject(
        config.model_copy(
            update={"generation": config.generation.model_copy(update={"source": "brain"})}
        )
    )
    refine_folder(config)


def _do(steps: Sequence[Step], folder: Path) -> Path:
    """Run all steps, print and record the time of each, and return the result of the last."""
    timings_path = folder / TIMINGS
    timings: dict[str, float] = read_json(timings_path) if timings_path.exists() else {}
    console = new_console()
    made: Any = None
    for number, step in enumerate(steps, 1):
        console.print(f"{number}/{len(steps)} {step.name}: {step.what}", style="bold")
        started = time.monotonic()
        made = step.work()
        # times of interrupted runs of a step are added up
        timings[step.name] = round(timings.get(step.name, 0.0) + time.monotonic() - started, 1)
        write_json(timings_path, timings)
    assert made is not None
    console.print(f"Open {made.absolute()} in a browser.")
    return made
