"""What settings are made of: kinds of values that several sections share, and the section
itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
NotNegative = Annotated[int, Field(ge=0)]
Scale = Annotated[float, Field(ge=0)]
Factor = Annotated[float, Field(gt=0)]
Folder = Annotated[Path, AfterValidator(Path.expanduser)]
Scheduler = Literal[
    "default", "euler", "euler_ancestral", "heun", "ddim", "ddpm", "dpmpp_2m", "unipc"
]
# YAML reads a bare `no` as false
Precision = Annotated[
    Literal["auto", "no", "fp16", "bf16"],
    BeforeValidator(lambda value: "no" if value is False else value),
]


class Section(BaseModel):
    """A group of settings."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )
