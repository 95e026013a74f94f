"""Stage 1 at the smallest size: a data folder of random numbers, embeddings from a table in place
of CLIP, an encoder of 16 units.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from unit.fake_nsd import write_fake_nsd

from braingen.config import Config, load_config
from braingen.encoders.prior.diffusion_prior import PriorLoss
from braingen.types import ExpertEmbeddings, Trials

WIDTH, IMAGES = 12, 24
"""Width of an embedding, and pictures of the data folder: 0-3 are of the test set, 4-13 subject
1's, 14-23 subject 2's.
"""


def table(modality: str) -> Tensor:
    """The embeddings that stand in for CLIP's: far from zero and of a spread other than one, so
    that standardising shows.
    """
    return 3 + 2 * torch.randn(
        IMAGES, 1, WIDTH, generator=torch.Generator().manual_seed(len(modality))
    )


class TableTargets:
    """Stands in for `braingen.targets.tables.Targets`: embeddings by image id."""

    def __init__(self, config: Config) -> None:
        self.stimuli = _Stimuli()

    def free(self) -> None:
        pass

    def of(self, modality: str, image_ids: np.ndarray) -> Tensor:
        return table(modality)[torch.as_tensor(image_ids)]

    def image(self, image_ids: np.ndarray) -> Tensor:
        return self.of("image", image_ids)

    def text(self, image_ids: np.ndarray) -> Tensor:
        return self.of("text", image_ids)

    def text_widths(self, modality: str) -> tuple[int, ...]:
        return (WIDTH,) if modality == "text" else ()


class _Stimuli:
    simulated, data_name = True, "random numbers"

    def __len__(self) -> int:
        return IMAGES


def with_a_gap(trials: Trials) -> Trials:
    """The same trials without the last presentation of the first image, so that it was shown less
    often than the others.
    """
    table = trials.table
    shown = table.index[table["image"] == table["image"].min()]
    return trials._replace(table=table.drop(index=shown[-1]))


def tiny_config(root: Path, folder: Path, **more: str) -> Config:
    """Settings of a run that takes about a second; `more`: settings with _ for the dot, section
    first (training__batch_size).
    """
    if not root.exists():
        write_fake_nsd(root)
    fixed = {
        "data.root": str(root),
        "run.folder": str(folder),
        "run.device": "cpu",
        "run.tracker": "none",
        "data.holdout_share": "0.3",
    }
    fixed |= {
        "encoder.hidden_dim": "16",
        "encoder.n_blocks": "1",
        "encoder.exp_factor_list": "2",
        "encoder.dropout": "0",
    }
    fixed |= {
        "prior.depth": "1",
        "prior.dim_head": "6",
        "prior.timesteps": "10",
        "training.num_epochs": "3",
        "training.batch_size": "8",
    }
    fixed |= {"evaluation.bootstrap": "20", "evaluation.retrieval_draws": "2"}
    wanted = fixed | {name.replace("__", "."): value for name, value in more.items()}
    if wanted.get("prior.use_prior") == "false":
        wanted = {
            name: value
            for name, value in wanted.items()
            if not name.startswith("prior.") or name == "prior.use_prior"
        }
    if wanted.get("encoder.model") in ("BrainEncoder", "BrainMoERegions"):
        wanted.pop("encoder.exp_factor_list")
    if wanted.get("evaluation.all_recons_path"):
        wanted.pop("evaluation.retrieval_draws")
    if wanted.get("router.time") in ("fixed", "off"):
        wanted.pop("router.time_hidden_dim", None)
    return load_config(None, wanted)


class RecordingPrior(nn.Module):
    """A prior that is one linear map, and keeps what it was given."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.map = nn.Linear(width, width)
        self.given: list[tuple[Tensor, Tensor, torch.Generator]] = []

    def forward(
        self, backbone_BTD: Tensor, aim_BTD: Tensor, generator: torch.Generator
    ) -> PriorLoss:
        self.given.append((backbone_BTD, aim_BTD, generator))
        prediction_BTD = self.predict(backbone_BTD)
        return PriorLoss((prediction_BTD - aim_BTD).abs().mean(), prediction_BTD)

    def predict(self, backbone_BTD: Tensor) -> Tensor:
        return self.map(backbone_BTD)


class LinearReader(nn.Module):
    """An embedding decoder of linear maps whose outputs are all different, so that one taken for
    another shows.
    """

    def __init__(
        self, voxels: dict[int, int], width: int = WIDTH, levels: int = 2, prior: bool = True
    ) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.subject = nn.ModuleDict(
            {str(subject): nn.Linear(count, width) for subject, count in voxels.items()}
        )
        self.clip = nn.Linear(width, width)
        self.levels = nn.ModuleList(nn.Linear(width, width) for _ in range(levels))
        self.prior = RecordingPrior(width) if prior else None
        self.linear = None
        self.without_held_out = nullcontext
        self.noise_shape: tuple[int, ...] = ()
        self.modes: list[bool] = []
        self.seen: list[tuple[Tensor, int]] = []

    def forward(
        self, voxels_BV: Tensor, subject: int, return_experts: bool = False
    ) -> ExpertEmbeddings:
        self.modes.append(self.training)
        self.seen.append((voxels_BV, subject))
        backbone_BTD = self.subject[str(subject)](voxels_BV)[:, None]
        levels_BLTD = torch.stack([level(backbone_BTD) for level in self.levels], dim=1)
        balance = backbone_BTD.square().mean() * (1 + subject)
        clip_BTD = self.clip(backbone_BTD)
        return ExpertEmbeddings(
            backbone_BTD, clip_BTD, levels_BLTD, levels_BLTD, (), (), (), balance
        )


def spy(monkeypatch: Any, module: Any, name: str, before: Any) -> None:
    """Call `before` with the arguments of every call of a module's function."""
    original = getattr(module, name)

    def told(*arguments: Any, **named: Any) -> Any:
        before(*arguments, **named)
        return original(*arguments, **named)

    monkeypatch.setattr(module, name, told)
