"""BrainGen reconstructs seen images from fMRI.

The flow, which is also the folder listing:

    data         trials and voxels of the Natural Scenes Dataset, a simulated one, or your own scans
    targets      targets of the encoders: CLIP embeddings, computed once
    encoders     voxels -> expert embeddings, in CLIP space
    routing      expert embeddings -> conditioning, by denoising time and place in the image
    generation   conditioning -> image
    training     of encoders and of the diffusion model
    evaluation   reconstructions beside the seen images; metrics with intervals
    interpret    which voxels, through which expert, for what
"""

from __future__ import annotations

from braingen.runtime import torchvision_guard as _torchvision_guard

_torchvision_guard.install()

__version__ = "0.1.0"
