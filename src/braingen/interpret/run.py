"""`braingen interpret`: contributions of voxels and experts as maps, tables, figures and a page."""

from __future__ import annotations

from pathlib import Path
import re

from braingen.config import Config
from braingen.interpret.inputs import read_inputs
from braingen.interpret.question import Explanation
from braingen.interpret.step_ablation import write_ablation
from braingen.interpret.step_attributions import write_attributions
from braingen.interpret.step_components import write_components
from braingen.interpret.step_experts import write_experts
from braingen.interpret.step_patterns import write_patterns
from braingen.interpret.step_routers import write_routers
from braingen.interpret.step_saliency import write_saliency
from braingen.interpret.step_tuning import write_tuning
from braingen.report.inside import write_page
from braingen.runtime.contents import contents_of
from braingen.runtime.files import write_json
from braingen.runtime.fingerprints import fingerprint_of_files
from braingen.runtime.paths import EMBEDDING_DECODER, run_folder
from braingen.runtime.run_folder import CONTENTS, Run
from braingen.runtime.text_files import read_json

MAY_CHANGE = tuple(
    f"interpret.{name}"
    for name in (
        *(
            "steps",
            "parts",
            "nifti_images",
            "grouping",
            "atlases",
            "surface",
            "components",
            "permutations",
            "draws",
        ),
        "ablation_images",
    )
)
STEPS = {
    "attributions": write_attributions,
    "patterns": write_patterns,
    "tuning": write_tuning,
    "experts": write_experts,
    "components": write_components,
    "saliency": write_saliency,
    "ablation": write_ablation,
    "routers": write_routers,
}
"""Steps in order; each writes its files and can run alone."""


def folder_for(config: Config) -> Path:
    """Folder of one question, named by encoder, explained quantity and method."""
    about = re.sub(r"[^a-z0-9]+", "-", config.interpret.about.lower()).strip("-")
    return (
        config.run.folder
        / "interpret"
        / f"{config.interpret.modality}-{about}-{config.interpret.method}"
    )


def interpret(config: Config) -> Path:
    """Explain the decoding of the test images by a trained encoder.

    Repeated steps reuse the existing maps.

    Returns
    -------
    Path
        The page, or the folder if no page is requested.
    """
    folder = folder_for(config)
    settings = {
        **config.model_dump(mode="json", include={"data", "interpret"}),
        "seed": config.run.seed,
    }
    embedding_decoder = run_folder(config, config.interpret.modality) / EMBEDDING_DECODER
    settings["embedding_decoder"] = (
        fingerprint_of_files(embedding_decoder) if embedding_decoder.exists() else ""
    )
    settings[CONTENTS] = contents_of(settings)
    inputs = read_inputs(config)
    with Run.start(folder, settings, {"run": config.run.seed}, may_change=MAY_CHANGE) as run:
        work = Explanation(config, folder, inputs)
        sentences_path = folder / "findings.json"
        findings: dict[str, list[str]] = (
            read_json(sentences_path) if sentences_path.exists() else {}
        )
        for name, step in STEPS.items():
            if name in config.interpret.steps:
                work.sentences = []
                step(work)
                findings[name] = work.sentences
                write_json(sentences_path, findings)
        write_json(folder / "facts.json", work.facts())
        if "page" not in config.interpret.steps:
            return folder
        page = write_page(folder, config.run.folder, config.data.root)
        run.mark_finished({"page": page.name})
    return page
