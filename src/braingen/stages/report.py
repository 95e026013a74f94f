"""`braingen report`: one HTML page of pictures, scores and curves, and a plain sheet of pictures beside it."""

from __future__ import annotations

from pathlib import Path

from braingen.config import Config
from braingen.files import write_text
from braingen.report.inputs import read_inputs
from braingen.report.page import draw_sheet, render


def report(cfg: Config) -> Path:
    """Write RUN/report.html and RUN/pictures.png from what the other stages left in the run folder.

    Parameters
    ----------
    cfg : run.folder says which run, data.root where the pictures that were seen lie

    Returns
    -------
    path of the page : open it in any browser

    Raises
    ------
    UserError
        When there are no reconstructions yet, or a file is damaged.
    """
    inputs = read_inputs(cfg.run.folder, cfg.data.root, subject=cfg.data.subjects[0])
    page = cfg.run.folder / "report.html"
    write_text(page, render(inputs))
    draw_sheet(inputs, cfg.run.folder / "pictures.png")
    return page
