"""The transformer of the diffusion prior: noisy embedding, time and brain tokens to embedding.

B batch, S brain tokens, T tokens of the embedding, D CLIP width, N sequence (S + 1 + T, more with
query tokens), A heads, C width of a head

Source: the DALL-E 2 style prior of MindEye2, as used by the published implementation.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
import math
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, normalize, scaled_dot_product_attention, silu

from braingen.encoders.sinusoids import falling_frequencies, sines_and_cosines
from braingen.runtime.errors import UserError

QueryMode = Literal["none", "pos_emb", "token", "all_pos_emb"]
NormRule = Literal["float32", "published"]
PositionRule = Literal["two_sided", "published"]
NullBranch = Literal["condition", "both"]

COSINE_SCALE = 16.0
"""Attention logits are this times a cosine (published implementation)."""
ROTARY_WIDTH = 32
"""At most so many channels of a head are rotated (published implementation)."""
BUCKETS = 32
MAX_DISTANCE = 128
"""Distance from which all relative positions share the last bucket (T5; published code)."""


Made = TypeVar("Made")


@lru_cache(maxsize=128)
@torch.inference_mode(False)  # cached tensors must be usable in training
def _kept(make: Callable[..., Made], *arguments: Any) -> Made:
    return make(*arguments)


def _constant(make: Callable[..., Made], *arguments: Any) -> Made:
    """Cached table that depends on its arguments only; a compiler keeps such constants itself."""
    return make(*arguments) if torch.compiler.is_compiling() else _kept(make, *arguments)


class GainNorm(nn.Module):
    """Layer norm with a gain and no bias.

    Parameters
    ----------
    width : int
        Size of the last axis.
    rule : NormRule, optional
        "float32": eps 1e-5 whatever the number format. "published": eps
        1e-5 for float32 and 1e-3 for every other format.
    by_largest : bool
        Divide each row by its largest entry first (the published implementation's last norm: the
        largest, not the largest in magnitude, so that a row of negative numbers changes its sign).
    """

    def __init__(self, width: int, rule: NormRule = "float32", *, by_largest: bool = False) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))
        self.rule = rule
        self.by_largest = by_largest

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis."""
        if self.by_largest:
            x = x / x.amax(-1, keepdim=True).detach()
        eps = 1e-5 if self.rule == "float32" or x.dtype == torch.float32 else 1e-3
        return layer_norm(x, self.gain.shape, self.gain.to(x.dtype), None, eps)


class RelativePosition(nn.Module):
    """A learned bias of attention by bucketed distance between query and key, one per head (T5).

    Parameters
    ----------
    heads : int
        Number of heads A.
    rule : PositionRule, optional
        "two_sided": half of the buckets for keys behind the query, half
        for keys ahead, one of them (distance 0 ahead, which does not occur) for the null key.
        "published": all buckets for keys behind and one for all keys ahead although attention looks
        both ways, and the null key counted as position 0, so that every key sits one further than
        it is.
    """

    def __init__(self, heads: int, rule: PositionRule = "two_sided") -> None:
        super().__init__()
        self.table = nn.Embedding(BUCKETS, heads)
        self.rule = rule

    def forward(self, length: int) -> Tensor:
        """Bias of N queries and N + 1 keys, the null key first: A x N x (N + 1)."""
        return self.table(self.buckets(length, self.table.weight.device)).permute(2, 0, 1)

    def buckets(self, length: int, device: torch.device | None = None) -> Tensor:
        """Bucket of every pair of query and key, int64, N x (N + 1)."""
        return _constant(_buckets, length, self.rule, device)


def _buckets(length: int, rule: PositionRule, device: torch.device | None) -> Tensor:
    query_N1 = torch.arange(length, device=device)[:, None]
    if rule == "published":
        return _bucket((query_N1 - torch.arange(length + 1, device=device)).clamp(min=0), BUCKETS)
    behind_NN = query_N1 - torch.arange(length, device=device)
    half = BUCKETS // 2
    bucket_NN = _bucket(behind_NN.abs(), half) + half * (behind_NN < 0)
    return torch.cat([torch.full_like(query_N1, half), bucket_NN], dim=1)


def _bucket(distance: Tensor, buckets: int) -> Tensor:
    """Near distances have a bucket each, farther ones share buckets on a logarithmic scale."""
    exact = buckets // 2
    share = (distance.clamp(min=exact).float() / exact).log() / math.log(MAX_DISTANCE / exact)
    far = (exact + share * (buckets - exact)).long().clamp(max=buckets - 1)
    return torch.where(distance < exact, distance, far)


def rotary_frequencies(width: int, device: torch.device | None = None) -> Tensor:
    """Angle per position of every pair of channels, float64, width // 2."""
    return falling_frequencies(width // 2, width / 2, device)


def _rotary_waves(
    width: int, first: int, length: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Sines and cosines of some positions, N x width // 2."""
    return sines_and_cosines(
        torch.arange(first, first + length, device=device), rotary_frequencies(width, device)
    )


def rotate(x: Tensor, width: int, first: int = 0) -> Tensor:
    """Rotary embedding: rotate channel pairs among the first `width` by position-dependent angles.

    Parameters
    ----------
    x : Tensor
        (..., N, C), positions on the last axis but one.
    width : int
        How many channels are rotated; the others stay.
    first : int
        Position of the first row.
    """
    sin, cos = (
        wave.to(x.dtype) for wave in _constant(_rotary_waves, width, first, x.shape[-2], x.device)
    )
    turned, rest = x[..., : 2 * sin.shape[-1]], x[..., 2 * sin.shape[-1] :]
    even, odd = turned.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)
    return torch.cat([turned, rest], dim=-1)


class PriorAttention(nn.Module):
    """Cosine attention of many query heads on one head of keys and values, with a learned null key.

    Parameters
    ----------
    width, heads, dim_head : int
        D, A and C.
    causal : bool
        Tokens see only those before them (and the null key).
    norm : NormRule, optional
        See `GainNorm`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        dim_head: int,
        *,
        causal: bool = False,
        norm: NormRule = "float32",
    ) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.norm_in = GainNorm(width, norm)
        self.queries = nn.Linear(width, heads * dim_head, bias=False)
        self.key_value = nn.Linear(width, 2 * dim_head, bias=False)
        self.null_key_value = nn.Parameter(torch.randn(2, dim_head))
        self.out = nn.Linear(heads * dim_head, width, bias=False)
        self.norm_out = GainNorm(width, norm)

    def forward(self, x_BND: Tensor, bias_ANM: Tensor, asked: int | None = None) -> Tensor:
        """Attend; `bias_ANM` is the bias of N queries and M = N + 1 keys.

        Only the last `asked` tokens are queries; all by default.
        """
        B, N, _ = x_BND.shape
        first = 0 if asked is None else N - asked
        x_BND = self.norm_in(x_BND)
        q_BANC = self.queries(x_BND[:, first:]).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k_BNC, v_BNC = self.key_value(x_BND).chunk(2, dim=-1)
        rotated = min(ROTARY_WIDTH, k_BNC.shape[-1])
        q_BANC, k_BNC = rotate(q_BANC, rotated, first), rotate(k_BNC, rotated)
        null_k, null_v = self.null_key_value.to(x_BND.dtype).expand(B, -1, -1).split(1, dim=1)
        k_BMC, v_BMC = (
            torch.cat([null_k.to(k_BNC.dtype), k_BNC], dim=1),
            torch.cat([null_v.to(v_BNC.dtype), v_BNC], dim=1),
        )
        q_BANC, k_BMC = normalize(q_BANC, dim=-1), normalize(k_BMC, dim=-1)
        if self.causal:
            ahead_NM = torch.ones(N, N + 1, dtype=torch.bool, device=x_BND.device).triu(2)
            bias_ANM = bias_ANM.masked_fill(ahead_NM, -math.inf)
        bias_ANM = bias_ANM[:, first:]
        k_BAMC, v_BAMC = (y[:, None].expand(-1, self.heads, -1, -1) for y in (k_BMC, v_BMC))
        attended_BANC = scaled_dot_product_attention(
            q_BANC,
            k_BAMC.to(q_BANC.dtype),
            v_BAMC.to(q_BANC.dtype),
            bias_ANM.to(q_BANC.dtype),
            scale=COSINE_SCALE,
        )
        return self.norm_out(self.out(attended_BANC.transpose(1, 2).flatten(2)))


class PriorFeedForward(nn.Module):
    """Norm, two linear maps multiplied as value and SiLU gate, linear map back; no biases.

    Parameters
    ----------
    width : int
        D; the inner width is 4 D.
    norm : NormRule, optional
        See `GainNorm`.
    """

    def __init__(self, width: int, norm: NormRule = "float32") -> None:
        super().__init__()
        self.norm_in = GainNorm(width, norm)
        self.value_gate = nn.Linear(width, 8 * width, bias=False)
        self.out = nn.Linear(4 * width, width, bias=False)

    def forward(self, x_BND: Tensor) -> Tensor:
        """Transform every token by itself."""
        value, gate = self.value_gate(self.norm_in(x_BND)).chunk(2, dim=-1)
        return self.out(value * silu(gate))


def time_table(times_B: Tensor, width: int) -> Tensor:
    """Sines, then cosines, of times at frequencies from 1 to 1 / 10 000: float32, B x width."""
    half = width // 2
    return torch.cat(
        sines_and_cosines(times_B, falling_frequencies(half, half - 1, times_B.device)), dim=-1
    )


class PriorTime(nn.Module):
    """One token that encodes the noise level of the embedding.

    Parameters
    ----------
    width : int
        D, even and at least 4.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.layers = nn.Sequential(
            nn.Linear(width, 2 * width),
            nn.SiLU(),
            nn.Linear(2 * width, 2 * width),
            nn.SiLU(),
            nn.Linear(2 * width, width),
        )

    def forward(self, times_B: Tensor) -> Tensor:
        """Times to tokens, B x 1 x D."""
        dtype = next(self.layers.parameters()).dtype
        return self.layers(time_table(times_B, self.width).to(dtype))[:, None]


class PriorNetwork(nn.Module):
    """Predicts a clean embedding from brain tokens, a time and a noisy embedding.

    The sequence is brain tokens, time token, noisy embedding (with learned positions); the
    prediction is read from the last T places.

    Parameters
    ----------
    dim : int
        Width D of the embedding, even.
    num_tokens : int
        Brain tokens S.
    num_tokens_target : int, optional
        Tokens T of the embedding; as many as brain tokens if left out.
    depth, dim_head : int
        Layers and width C of a head (MindEye2: 6 and 52).
    heads : int, optional
        Number of heads; dim // dim_head if left out (MindEye2), but at least 1.
    causal : bool
        Tokens see only those before them.
    learned_query_mode : QueryMode, optional
        Learned vectors added to the noisy embedding
        (published models), appended as tokens the prediction is read from, added to the whole
        sequence, or none.
    norm : NormRule, optional
        "float32": ordinary layer norms. "published": eps by number format,
        and a last norm that divides by the largest entry.
    relative_position : PositionRule, optional
        See `RelativePosition`.

    Raises
    ------
    UserError
        If `dim` is odd or too small.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_tokens: int = 1,
        num_tokens_target: int | None = None,
        depth: int = 6,
        dim_head: int = 52,
        heads: int | None = None,
        causal: bool = False,
        learned_query_mode: QueryMode = "pos_emb",
        norm: NormRule = "float32",
        relative_position: PositionRule = "two_sided",
    ) -> None:
        super().__init__()
        if dim < 4 or dim % 2:
            raise UserError(f"the prior's width is {dim}; it must be even and at least 4")
        S, T = num_tokens, num_tokens_target or num_tokens
        queries = {"none": 0, "pos_emb": T, "token": T, "all_pos_emb": S + 1 + T}
        if learned_query_mode not in queries:
            raise UserError(
                f"learned_query_mode is {learned_query_mode!r}; allowed are {', '.join(queries)}"
            )
        heads = heads or max(1, dim // dim_head)
        self.num_tokens, self.num_tokens_target = S, T
        self.learned_query_mode = learned_query_mode
        # initial values as published: positions small, null tokens standard normal
        places = queries[learned_query_mode]
        self.learned_query = nn.Parameter(torch.randn(places, dim) * dim**-0.5) if places else None
        self.null_condition = nn.Parameter(torch.randn(S, dim))
        self.null_image = nn.Parameter(torch.randn(T, dim))
        self.time = PriorTime(dim)
        self.relative_position = RelativePosition(heads, relative_position)
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "attention": PriorAttention(dim, heads, dim_head, causal=causal, norm=norm),
                    "feed_forward": PriorFeedForward(dim, norm),
                }
            )
            for _ in range(depth)
        )
        self.norm_out = GainNorm(dim, norm, by_largest=norm == "published")
        self.out = nn.Linear(dim, dim, bias=False)

    def forward(
        self,
        noisy_BTD: Tensor,
        times_B: Tensor,
        condition_BSD: Tensor,
        keep_condition_B: Tensor | None = None,
        keep_image_B: Tensor | None = None,
    ) -> Tensor:
        """Predict the clean embedding.

        Parameters
        ----------
        noisy_BTD, condition_BSD : Tensor
            Noisy embedding; brain tokens.
        times_B : Tensor
            Its times, 0 (clean) upward.
        keep_condition_B, keep_image_B : Tensor, optional
            bool; where false, brain tokens or noisy embedding are replaced by learned null tokens.
            Nothing is replaced if left out.

        Returns
        -------
        Tensor
            B x T x D.
        """
        if keep_condition_B is not None:
            condition_BSD = torch.where(
                keep_condition_B[:, None, None],
                condition_BSD,
                self.null_condition.to(condition_BSD.dtype),
            )
        if keep_image_B is not None:
            noisy_BTD = torch.where(
                keep_image_B[:, None, None], noisy_BTD, self.null_image.to(noisy_BTD.dtype)
            )
        sequence = [condition_BSD, self.time(times_B), noisy_BTD]
        if self.learned_query is not None:
            if self.learned_query_mode == "pos_emb":
                sequence[2] = noisy_BTD + self.learned_query.to(noisy_BTD.dtype)
            elif self.learned_query_mode == "token":
                sequence.append(self.learned_query.expand(len(noisy_BTD), -1, -1))
        x_BND = torch.cat([part.to(noisy_BTD.dtype) for part in sequence], dim=1)
        if self.learned_query is not None and self.learned_query_mode == "all_pos_emb":
            x_BND = x_BND + self.learned_query.to(x_BND.dtype)
        bias_ANM = self.relative_position(x_BND.shape[1])
        read = self.num_tokens_target
        for number, layer in enumerate(self.layers, 1):
            assert isinstance(layer, nn.ModuleDict)
            if number < len(self.layers):
                x_BND = x_BND + layer["attention"](x_BND, bias_ANM)
            else:
                # what follows acts on every token by itself, so only those that are read go through
                # it
                x_BND = x_BND[:, -read:] + layer["attention"](x_BND, bias_ANM, read)
            x_BND = x_BND + layer["feed_forward"](x_BND)
        return self.out(self.norm_out(x_BND))

    def guided(
        self,
        noisy_BTD: Tensor,
        times_B: Tensor,
        condition_BSD: Tensor,
        scale: float,
        null: NullBranch = "condition",
    ) -> Tensor:
        """Predict with classifier-free guidance: null + scale * (full - null).

        Both branches run in one pass of 2 B rows (B rows at scale 1).

        Parameters
        ----------
        scale : float
            Guidance; 1 is none.
        null : NullBranch, optional
            Inputs without value in the null branch: brain tokens, or
            (published) brain tokens and noisy embedding.
        """
        if scale == 1:
            return self(noisy_BTD, times_B, condition_BSD)
        B = len(noisy_BTD)
        full_first_B = torch.arange(2 * B, device=noisy_BTD.device) < B
        both = self(
            noisy_BTD.repeat(2, 1, 1),
            times_B.repeat(2),
            condition_BSD.repeat(2, 1, 1),
            keep_condition_B=full_first_B,
            keep_image_B=full_first_B if null == "both" else None,
        )
        full_BTD, null_BTD = both.chunk(2)
        return torch.lerp(null_BTD, full_BTD, scale)
