"""Maps of other programs that are there instead of single-trial responses, with what to do."""

from __future__ import annotations

from collections.abc import Sequence
import re

from braingen.data.ingest.names import Named

_ONE_PER_TRIAL = (
    "where each is one trial, name them in the order of onsets "
    "sub-01_ses-01_desc-trial001_betas.nii.gz and so on, or put them into one file of x, y, z, "
    "trials"
)
_TOOLS = {
    r"^TYPEA_\w+\.\w+$": (
        "GLMsingle's TYPEA has one map for all trials; let GLMsingle write TYPEB, TYPEC or TYPED"
    ),
    r"^(beta|con|spmT)_\d{4}\.(nii(\.gz)?|img)$": f"these are SPM's maps; {_ONE_PER_TRIAL}",
    r"^(cope|pe|zstat|tstat)\d+\.nii(\.gz)?$": f"these are FSL's maps; {_ONE_PER_TRIAL}",
    r"^LSS\S*\+(orig|tlrc)\.(HEAD|BRIK(\.gz)?)$": (
        "this is AFNI's 3dLSS: write it as NIfTI with 3dAFNItoNIFTI, named ..._betas.nii.gz"
    ),
}
"""Pattern of names -> what they are, and what to do."""
OTHER_MAPS = re.compile("|".join(f"(?:{pattern})" for pattern in _TOOLS))


def other_maps(files: Sequence[Named]) -> str:
    """The end of a sentence about missing responses: maps of other programs; empty for none."""
    if not files:
        return ""
    name = files[0].path.name
    what = next(what for pattern, what in _TOOLS.items() if re.search(pattern, name))
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    return f"; there are {files[0].path}{more}: {what}"
