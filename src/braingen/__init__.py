"""BrainGen: pictures of what a person saw, from their fMRI.

The flow, which is also the folder listing:

    data        trials and voxels of the Natural Scenes Dataset (or a simulated one)
    brain       voxels -> expert embeddings, in CLIP space
    routing     expert embeddings -> what the diffusion model listens to, when and where
    diffusion   conditioning -> picture
    scores      picture beside the one that was seen
    explain     which part of the brain, through which expert, for what
"""

from __future__ import annotations

from braingen.runtime import torchvision_guard as _torchvision_guard

_torchvision_guard.install()

__version__ = "0.1.0"
