"""Start token and widths of a text encoder, which generation needs, without the encoder.

D width of the text target.
"""

from __future__ import annotations

from collections.abc import Callable
import json
from pathlib import Path
from typing import NamedTuple, Protocol, cast

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from braingen.runtime.files import can_be_written, own_cache, replaced_path
from braingen.targets.clip_text import Output


class HasTextForm(Protocol):
    """A text encoder, or its :class:`TextForm`."""

    @property
    def output(self) -> Output: ...
    @property
    def length(self) -> int: ...
    def start_token(self) -> Tensor: ...


class TextForm(NamedTuple):
    """Start token and widths of a text encoder: a few kilobytes in the place of gigabytes."""

    output: Output
    """The encoder whose columns are the target."""
    length: int
    """Tokens of a prompt."""
    start_D: Tensor
    """Penultimate hidden state of the start token, float32 on the CPU."""

    def start_token(self) -> Tensor:
        """The start token's state."""
        return self.start_D

    @classmethod
    def of(cls, encoder: HasTextForm) -> TextForm:
        """The form of a loaded encoder."""
        return cls(encoder.output, encoder.length, encoder.start_token().float().cpu())

    def save(self, path: Path) -> None:
        """Write it to one safetensors file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        about = {"output": self.output, "length": self.length}
        with replaced_path(path) as temporary:
            save_file({"start": self.start_D.contiguous()}, temporary, {"form": json.dumps(about)})

    @classmethod
    def load(cls, path: Path) -> TextForm | None:
        """Read it; None where there is none, or a damaged one."""
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {})["form"])
                output, length = cast(Output, str(about["output"])), int(about["length"])
                return cls(output, length, file.get_tensor("start"))
        except (OSError, SafetensorError, ValueError, LookupError, TypeError):
            return None


def cached_text_form(folder: Path, key: str, make: Callable[[], TextForm]) -> TextForm:
    """Find a form in a folder of caches, or make and keep it.

    Parameters
    ----------
    folder : Path
        Of the caches; where it cannot be written, its `files.own_cache` is used.
    key : str
        Of weights and settings.
    """
    name = f"text_form-{key}.safetensors"
    for place in (folder, own_cache(folder)):
        if (found := TextForm.load(place / name)) is not None:
            return found
    made = make()
    made.save((folder if can_be_written(folder) else own_cache(folder)) / name)
    return made
