"""Make the registry's torchvision importable with a CPU-only torch.

The torchvision wheel of the package registry is compiled for CUDA. With a CPU-only torch its
compiled operators cannot be loaded, and its import fails with ``operator torchvision::nms does not
exist``, which also breaks transformers and diffusers. Registering the schemas of the two operators
that torchvision wraps at import is enough for its Python part (models, transforms, feature
extraction); the operators have no kernel, and nothing here calls them. Where torchvision's own
library loads (a build for this torch) nothing is registered: registering twice would end the
process.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
import sys
from types import ModuleType

_kept_alive: list[object] = []  # a collected torch Library removes its schemas


class _BeforeTorchvision:
    """A finder that registers the schemas just before torchvision is imported."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name == "torchvision":
            sys.meta_path.remove(self)
            spec = PathFinder.find_spec(name, path, target)
            if spec is not None:
                _register_missing_schemas(spec.submodule_search_locations or ())
            return spec
        return None


def _register_missing_schemas(folders: Sequence[str]) -> None:
    import torch

    if torch.version.cuda is not None or torch.version.hip is not None:
        return
    for file in (file for folder in folders for file in Path(folder).glob("_C.*")):
        try:
            torch.ops.load_library(str(file))
        except OSError:  # compiled for CUDA, whose libraries are missing
            continue
        return
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _kept_alive.append(library)


def install() -> None:
    """Install the guard, unless torchvision is already imported."""
    if "torchvision" not in sys.modules and not any(
        isinstance(finder, _BeforeTorchvision) for finder in sys.meta_path
    ):
        sys.meta_path.insert(0, _BeforeTorchvision())
