"""Files in a folder of another subject that is not called sub-LABEL: without a label they would be
taken for files of all subjects, or of the only one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
import re

from braingen.data.ingest.names import Named, plain
from braingen.runtime.errors import UserError

_LIKE_SUBJECT = re.compile(
    r"sub-([A-Za-z0-9+]+)|(?:sub|subj|subject|participant)[-_ ]?(\d+)", re.IGNORECASE
)


def refuse_strangers(files: Iterable[Named], root: Path, labels: Sequence[str]) -> None:
    """Refuse files without a subject's label in a folder, or of a name, of somebody else.

    Parameters
    ----------
    files : iterable of Named
        Files with their entities.
    root : Path
        Folder of the scans.
    labels : sequence of str
        Labels of the subjects.

    Raises
    ------
    UserError
        When a path says Sub-02, sub02 or subject2, and there is no such label.
    """
    known = {plain(label).casefold() for label in labels}
    known |= {plain(re.sub(r"\D", "", label)) for label in labels}  # subject1 may be S1
    for file in files:
        if file.of("sub"):
            continue
        parts = file.path.relative_to(root).parts
        words = (*parts[:-1], *re.split(r"[_.]", parts[-1]))
        for match in filter(None, map(_LIKE_SUBJECT.fullmatch, words)):
            label = match[1] or match[2]
            if plain(label).casefold() not in known:
                raise UserError(
                    f"{file.path} seems to be of subject {label} ({match[0]}), but subjects are "
                    f"known by sub-LABEL alone (here: {', '.join(labels)}); rename it, with its "
                    f"folder, to sub-{label}."
                )
