"""The whole flow on a simulated subject: from nothing to a page of pictures. What is finished is not done again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
import time

from braingen.config import Config
from braingen.console import console as new_console
from braingen.data.nsd import Layout
from braingen.data.stimuli import Stimuli
from braingen.errors import UserError
from braingen.files import clear_temporaries, replaced_folder, write_json
from braingen.stages.evaluate import evaluate
from braingen.stages.finetune import finetune
from braingen.stages.reconstruct import assemble, reconstruct
from braingen.stages.refine import refine
from braingen.stages.report import report
from braingen.stages.simulate import simulate
from braingen.stages.targets import Targets
from braingen.stages.train import train
from braingen.text_files import read_json

TIMINGS, DECODER = "timings.json", "decoder"
LEVEL_IMAGES = 8
"""Test images that are drawn from every level alone, for the report."""


def save_decoder(config: Config) -> Path:
    """Leave the whole decoder in one folder, loadable with ``BrainDecoder.from_pretrained``."""
    folder = config.run.folder / DECODER
    if not (folder / "model_index.json").exists():
        with replaced_folder(folder) as temporary:
            assemble(config, Targets(config)).save_pretrained(temporary)
    return folder


def demo(config: Config) -> Path:
    """Simulate, train both encoders, fine-tune, draw brain, random voxels and ceiling and from single levels, refine, score, report.

    Returns
    -------
    path of the page
    """
    layout = Layout.of(config.data.root)
    if layout.images().exists() and not Stimuli(layout).simulated:
        raise UserError(
            f"{layout.root} holds real data, and the demo writes a simulated subject: choose another folder, --root data/simulated."
        )

    levels = len(config.encoder.experts) if config.encoder.model == "BrainMoEMulti" else 0

    def drawn(source: str, level: int | None = None) -> Callable[[], Path]:
        changed: dict[str, object] = {"source": source}
        if level is not None:
            changed |= {"level": level, "num_images": LEVEL_IMAGES}
        return lambda: reconstruct(config.model_copy(update={"sampler": config.sampler.model_copy(update=changed)}))

    steps: list[tuple[str, Callable[[], Path]]] = [
        ("simulate", lambda: simulate(config)),
        ("train image", lambda: train(config, "image")),
        ("train text", lambda: train(config, "text")),
        ("finetune", lambda: finetune(config)),
        ("decoder", lambda: save_decoder(config)),
        ("reconstruct", drawn("brain")),
        ("reconstruct random voxels", drawn("random")),
        ("reconstruct ceiling", drawn("ceiling")),
        *((f"reconstruct level {level}", drawn("brain", level)) for level in range(levels)),
        ("refine", lambda: refine(config)),
        ("evaluate", lambda: evaluate(config)),
        ("report", lambda: report(config)),
    ]
    clear_temporaries(config.run.folder)  # scores and page lie in no stage's own folder
    timings_path = config.run.folder / TIMINGS
    timings: dict[str, float] = read_json(timings_path) if timings_path.exists() else {}
    console, page = new_console(), Path()
    for number, (name, step) in enumerate(steps, 1):
        console.print(f"{number}/{len(steps)} {name}", style="bold")
        started = time.monotonic()
        page = step()
        # a step that was interrupted or is found finished adds what it took this time
        timings[name] = round(timings.get(name, 0.0) + time.monotonic() - started, 1)
        write_json(timings_path, timings)
    console.print(f"Open {page.absolute()} in a browser.")
    return page
