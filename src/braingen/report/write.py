"""`braingen report`: one HTML page of images, scores and curves, and a contact sheet."""

from __future__ import annotations

from pathlib import Path

from braingen.config import Config
from braingen.evaluation.score_files import SCORES
from braingen.report.inputs import ReportInputs, read_inputs
from braingen.report.page import render, write_contact_sheet
from braingen.report.subjects import SubjectPage, render_subjects
from braingen.runtime.files import write_text
from braingen.runtime.paths import subject_configs
from braingen.runtime.text_files import read_json

PAGE, CONTACT_SHEET = "report.html", "pictures.png"


def report(cfg: Config) -> Path:
    """Write RUN/report.html and RUN/pictures.png from the files of the run folder.

    Parameters
    ----------
    cfg : Config
        Reads run.folder and, for the seen images, data.root.

    Returns
    -------
    Path
        Path of the page; with several subjects the page that links to each.

    Raises
    ------
    UserError
        When there are no reconstructions yet, or a file is damaged.
    """
    configs = subject_configs(cfg)
    inputs = [_report_subject(one, cfg.run.folder) for one in configs]
    if len(configs) == 1:
        return configs[0].run.folder / PAGE
    page, scores = cfg.run.folder / PAGE, cfg.run.folder / SCORES
    links = [(one.run.folder / PAGE).relative_to(cfg.run.folder).as_posix() for one in configs]
    mean = read_json(scores) if scores.is_file() else {}
    write_text(page, render_subjects([SubjectPage(*each) for each in zip(inputs, links)], mean))
    return page


def _report_subject(cfg: Config, trained: Path) -> ReportInputs:
    """Write page and contact sheet of one subject; `trained` is the folder of its encoders."""
    inputs = read_inputs(
        cfg.run.folder, cfg.data.root, subject=cfg.data.subjects[0], trained=trained
    )
    write_text(cfg.run.folder / PAGE, render(inputs))
    write_contact_sheet(inputs, cfg.run.folder / CONTACT_SHEET)
    return inputs
