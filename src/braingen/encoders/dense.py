"""Dense encoders: the MindEye2 backbone for images, and one trunk per text encoder for captions.

B batch, V voxels, H shared width, S tokens inside the trunk, D CLIP width, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

from diffusers.configuration_utils import register_to_config
import torch
from torch import Tensor, nn

from braingen.encoders.base import Encoder, without_experts
from braingen.encoders.experts import ExpertHeads, Head, Trunk, make_trunk
from braingen.encoders.low_level import LowLevelBranch
from braingen.encoders.subject_layer import SubjectLayer, Subjects
from braingen.runtime.errors import UserError
from braingen.types import ExpertEmbeddings

TextOutput = Literal["joint", "L", "bigG"]
Fusion = Literal["none", "early", "mid", "late"]


class BackboneOutput(NamedTuple):
    """Output of a backbone."""

    trunk_BSH: Tensor
    """Output of the trunk."""
    backbone_BTD: Tensor
    clip_BTD: Tensor
    intermediate: tuple[Tensor, ...] = ()
    """Projected features after the blocks but the last, B x T x D each; empty by default."""
    low_level: tuple[Tensor, ...] = ()
    """Blurry latents and ConvNext features; empty without the branch."""
    pooled_BD: Tensor | None = None
    """Pooled text embedding; None unless trained."""


class ImageBackbone(nn.Module):
    """Trunk, CLIP tokens and projection head (MindEye2).

    Parameters
    ----------
    width, seq_len : int
        H and S.
    n_blocks, clip_seq_dim, clip_emb_dim, trunk, head, dropout : int
        See :class:`BrainEncoder`.
    low_level : bool, optional
        Add MindEye2's low-level branch.
    interm_out : bool, optional
        Add a projection head after each block but the last.
    """

    def __init__(
        self,
        width: int,
        n_blocks: int,
        clip_seq_dim: int,
        clip_emb_dim: int,
        trunk: Trunk = "residual",
        head: Head = "projector",
        low_level: bool = False,
        interm_out: bool = False,
        dropout: float = 0.15,
        seq_len: int = 1,
    ) -> None:
        super().__init__()
        self.trunk = make_trunk(trunk, 1, width, n_blocks, dropout, tokens=seq_len)
        flat = width * seq_len
        self.heads = ExpertHeads(1, flat, clip_seq_dim, clip_emb_dim, head, inner=clip_emb_dim)
        self.intermediate = nn.ModuleList(
            ExpertHeads(1, flat, clip_seq_dim, clip_emb_dim, "projector", inner=clip_emb_dim)
            for _ in range(n_blocks - 1 if interm_out else 0)
        )
        self.low_level = LowLevelBranch(flat) if low_level else None

    def forward(self, x_BSH: Tensor) -> BackboneOutput:
        """Predict CLIP tokens from the shared units."""
        states_EBH = [state.flatten(2) for state in self.trunk.states(x_BSH[None])]
        backbone_EBTD, clip_EBTD = self.heads(states_EBH[-1])
        return BackboneOutput(
            trunk_BSH=states_EBH[-1][0].view_as(x_BSH),
            backbone_BTD=backbone_EBTD[0],
            clip_BTD=clip_EBTD[0],
            intermediate=tuple(
                heads(state_EBH)[1][0]
                for heads, state_EBH in zip(self.intermediate, states_EBH[1:])
            ),
            low_level=self.low_level(states_EBH[-1][0]) if self.low_level is not None else (),
        )


class TextBackbone(nn.Module):
    """One trunk per SDXL text encoder, optionally fused; tokens of ViT-L, ViT-bigG, or both.

    Parameters
    ----------
    width : int
        H.
    n_blocks, clip_seq_dim, trunk, dropout : int
        See :class:`BrainEncoder`.
    output : TextOutput
        'joint', 'L' or 'bigG'.
    emb_dims : Sequence[int], optional
        D of ViT-L and of ViT-bigG (768 and 1280 in SDXL).
    fusion : Fusion, optional
        With 'joint', linear maps of the concatenated states of both trunks, as published: 'early'
        after every block, 'mid' after every block of the later half (the middle block of an odd
        number included), 'late' after the last block, or 'none'. The published trunk's residuals
        pass by the maps, so that only the last map has an effect there (docs/deviations.md, row
        1.16).
    train_pool : bool, optional
        Also predict the pooled embedding of ViT-bigG, a softmax-weighted mean of its tokens.
    """

    def __init__(
        self,
        width: int,
        n_blocks: int,
        clip_seq_dim: int,
        output: TextOutput,
        emb_dims: Sequence[int] = (768, 1280),
        fusion: Fusion = "none",
        train_pool: bool = False,
        trunk: Trunk = "residual",
        head: Head = "projector",
        dropout: float = 0.15,
    ) -> None:
        super().__init__()
        if output not in get_args(TextOutput) or fusion not in get_args(Fusion):
            raise UserError(
                f"text_output={output} with fusion={fusion} is not possible: allowed are"
                f" {', '.join(get_args(TextOutput))} and {', '.join(get_args(Fusion))}."
            )
        if fusion != "none" and output != "joint":
            raise UserError(
                f"fusion={fusion} joins two trunks and needs text_output=joint, not {output}."
            )
        if train_pool and output == "L":
            raise UserError(
                "train_pool reads the tokens of ViT-bigG and needs text_output=joint or bigG,"
                " not L."
            )
        self.fusion, self.n_blocks, self.clip_seq_dim = fusion, n_blocks, clip_seq_dim
        names = {"joint": ("L", "G"), "L": ("L",), "bigG": ("G",)}[output]
        sizes = dict(zip("LG", emb_dims))
        self.trunks = nn.ModuleDict(
            {name: make_trunk(trunk, 1, width, n_blocks, dropout) for name in names}
        )
        self.heads = nn.ModuleDict(
            {
                name: ExpertHeads(1, width, clip_seq_dim, sizes[name], head, inner=2 * sizes[name])
                for name in names
            }
        )
        first = {"none": n_blocks, "early": 0, "mid": n_blocks // 2, "late": n_blocks - 1}[fusion]
        self.fused_blocks = range(first, n_blocks)
        self.fusion_linears = nn.ModuleList(
            nn.Linear(2 * width, 2 * width) for _ in self.fused_blocks
        )
        self.pool = nn.Linear(sizes["G"], sizes["G"]) if train_pool else None

    def _fuse(self, linear: nn.Module, states: dict[str, Tensor]) -> dict[str, Tensor]:
        left, right = linear(torch.cat([states["L"], states["G"]], dim=-1)).chunk(2, dim=-1)
        return {"L": left, "G": right}

    def forward(self, x_BSH: Tensor) -> BackboneOutput:
        """Predict text tokens from the shared units (S is 1)."""
        states = apart = {name: x_BSH.transpose(0, 1) for name in self.trunks}  # 1 x B x H
        for place in range(self.n_blocks):
            states = apart = {
                name: trunk.step(place, states[name], apart[name])  # type: ignore[operator]
                for name, trunk in self.trunks.items()
            }
            if place in self.fused_blocks:
                states = self._fuse(self.fusion_linears[place - self.fused_blocks.start], states)
        outputs = {name: heads(states[name]) for name, heads in self.heads.items()}
        pooled_BD = None
        if self.pool is not None:
            clip_BTD = outputs["G"][1][0]
            weight_BT = self.pool(clip_BTD).softmax(dim=1).mean(dim=2)
            pooled_BD = torch.einsum("bt,btd->bd", weight_BT, clip_BTD)
        return BackboneOutput(
            trunk_BSH=torch.cat([state.transpose(0, 1) for state in states.values()], dim=-1),
            backbone_BTD=torch.cat([backbone[0] for backbone, _ in outputs.values()], dim=-1),
            clip_BTD=torch.cat([clip[0] for _, clip in outputs.values()], dim=-1),
            pooled_BD=pooled_BD,
        )


class BrainEncoder(Encoder):
    """The dense encoder (MindEye2's backbone), for image or text embeddings.

    Parameters
    ----------
    subjects : Subjects
        Subject number -> voxel count.
    hidden_dim : int, optional
        H.
    n_blocks : int, optional
        Blocks of the trunk.
    clip_emb_dim, clip_seq_dim : int, optional
        D, T.
    trunk : Trunk, optional
        'residual' (residual blocks) or 'published' (mixer blocks that do nothing with one token).
    head : Head, optional
        Projection head, 'projector' (MindEye2) or 'linear' (MoRE-Brain's dense encoder).
    low_level : bool, optional
        Add MindEye2's low-level branch (``blurry_recon``).
    interm_out : bool, optional
        Add projection heads after every block but the last; read from ``intermediate_clip``.
    text_output : str, optional
        '' for images; for text 'joint', 'L' or 'bigG': one trunk per text encoder, see
        :class:`TextBackbone`.
    text_emb_dims : Sequence[int], optional
        D of the two text encoders; their sum or one of them is clip_emb_dim.
    fusion, train_pool : Fusion, optional
        See :class:`TextBackbone`.
    bottleneck_dim : int, optional
        Width of a bottleneck after the subject layer; 0 for none.
    dropout, voxel_dropout : float, optional
        Inside blocks, on voxels.
    """

    @register_to_config
    def __init__(
        self,
        subjects: Subjects,
        hidden_dim: int = 4096,
        n_blocks: int = 4,
        clip_emb_dim: int = 1280,
        clip_seq_dim: int = 1,
        trunk: Trunk = "residual",
        head: Head = "projector",
        low_level: bool = False,
        interm_out: bool = False,
        text_output: str = "",
        text_emb_dims: Sequence[int] = (768, 1280),
        fusion: Fusion = "none",
        train_pool: bool = False,
        bottleneck_dim: int = 0,
        dropout: float = 0.15,
        voxel_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.subject_layer = SubjectLayer(subjects, hidden_dim, voxel_dropout)
        self.bottleneck = nn.Linear(hidden_dim, bottleneck_dim) if bottleneck_dim else None
        width = bottleneck_dim or hidden_dim
        self.backbone: nn.Module
        if text_output:
            wanted = {
                "joint": sum(text_emb_dims),
                "L": text_emb_dims[0],
                "bigG": text_emb_dims[1],
            }.get(text_output, clip_emb_dim)
            if clip_emb_dim != wanted:
                raise UserError(
                    f"clip_emb_dim={clip_emb_dim} does not fit text_output={text_output}: it must"
                    f" be {wanted}."
                )
            if low_level or interm_out:
                raise UserError(
                    "low_level and interm_out belong to images: leave them out with text_output."
                )
            self.backbone = TextBackbone(
                width,
                n_blocks,
                clip_seq_dim,
                text_output,  # type: ignore[arg-type]
                text_emb_dims,
                fusion,
                train_pool,
                trunk,
                head,
                dropout,
            )
        else:
            self.backbone = ImageBackbone(
                width,
                n_blocks,
                clip_seq_dim,
                clip_emb_dim,
                trunk,
                head,
                low_level,
                interm_out,
                dropout,
            )

    def forward(
        self, voxels_BV: Tensor, subject: int, return_experts: bool = False
    ) -> ExpertEmbeddings:
        """Encode the voxels of one subject; there are no experts to return."""
        x_BH = self.subject_layer(voxels_BV, subject)
        x_BH = x_BH if self.bottleneck is None else self.bottleneck(x_BH)
        out = self.backbone(x_BH[:, None])
        return without_experts(out.backbone_BTD, out.clip_BTD)._replace(
            low_level=out.low_level, intermediate_clip=out.intermediate, pooled_BD=out.pooled_BD
        )
