"""One self-contained HTML page from a run folder: seen and generated images, and their scores.

inputs.py    the files of run folder and data folder that a page shows
tables.py    scores, per-image tables and settings as text
figures.py   charts as inline SVG
parts.py, compared.py, refinement.py, routers.py, people.py    sections in files of their own
page.py      the sections and the page
"""

from __future__ import annotations
