"""One self-contained HTML page from a run folder: what was seen, what was read out of the brain,
and how good it is.

inputs.py    what a run folder and its data folder offer to a page
tables.py    scores and their names, per-image tables, settings, as people read them
pictures.py  pictures as data URIs, and the plain sheet of the README
figures.py   charts as inline SVG
parts.py, compared.py, refinement.py, routers.py, people.py    sections that have a file of their
                                                               own
page.py      the sections, and the page they make
"""

from __future__ import annotations
