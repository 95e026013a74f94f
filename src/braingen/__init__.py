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

from importlib import import_module
from typing import TYPE_CHECKING, Any

from braingen.runtime import torchvision_guard as _torchvision_guard

if TYPE_CHECKING:
    from braingen.config import Config, load_config
    from braingen.encoders.embedding_decoder import EmbeddingDecoder
    from braingen.encoders.latent_encoder import LatentEncoder
    from braingen.encoding_model.model import EncodingModel
    from braingen.generation.output import BrainDecoderOutput
    from braingen.generation.pipeline import BrainDecoder

_torchvision_guard.install()

__version__ = "0.1.0"
__all__ = [
    "BrainDecoder",
    "BrainDecoderOutput",
    "Config",
    "EmbeddingDecoder",
    "EncodingModel",
    "LatentEncoder",
    "__version__",
    "load_config",
]
_PLACES = {
    "BrainDecoder": "braingen.generation.pipeline",
    "BrainDecoderOutput": "braingen.generation.output",
    "Config": "braingen.config",
    "EmbeddingDecoder": "braingen.encoders.embedding_decoder",
    "EncodingModel": "braingen.encoding_model.model",
    "LatentEncoder": "braingen.encoders.latent_encoder",
    "load_config": "braingen.config",
}
"""Public name -> module, which is imported when the name is first used."""


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'braingen' has no attribute {name!r}")
    value = getattr(import_module(_PLACES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
