"""Text targets of the encoders: caption embeddings of SDXL's text encoders.

B batch, C captions of an image, T tokens, D width (L, bigG, or both side by side)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from braingen.pretrained.hub import is_hub_name, whole_folder
from braingen.pretrained.loading import HUB_OPTIONS, load_frozen
from braingen.runtime.errors import UserError
from braingen.runtime.weights import first_line

Output = Literal["L", "bigG", "joint"]
PARTS: dict[str, tuple[str, ...]] = {"L": ("L",), "bigG": ("bigG",), "joint": ("L", "bigG")}
FOLDERS = {"L": ("text_encoder", "tokenizer"), "bigG": ("text_encoder_2", "tokenizer_2")}
"""Where an SDXL pipeline keeps them."""
LAYER = -2
"""SDXL uses the penultimate hidden state of both text encoders, and so does this module, L's start
token included (where the published implementation takes the last state).
"""


class PromptEmbeddings(NamedTuple):
    """Prompt embeddings in the form of SDXL's U-Net."""

    tokens_BTD: Tensor
    """Penultimate hidden states, L and bigG side by side where both are loaded."""
    pooled_BD: Tensor | None
    """Projected end-of-sequence embedding of bigG; None without it."""


class CLIPTextEncoderDual(nn.Module):
    """SDXL's two frozen text encoders, or one of them.

    Parameters
    ----------
    text_encoder : CLIPTextModel | None, optional
        The first (ViT-L/14, 768 wide). Needed for "L" and "joint".
    tokenizer : PreTrainedTokenizerBase | None, optional
        Its tokenizer.
    text_encoder_2 : CLIPTextModelWithProjection | None, optional
        The second (ViT-bigG/14, 1280 wide). Needed for "bigG" and "joint".
    tokenizer_2 : PreTrainedTokenizerBase | None, optional
        Its tokenizer.
    output : Output, optional
        The encoder whose columns are the target; joint puts L before bigG, as SDXL does.
    tokens : Literal['eos', 'all'], optional
        The end-of-sequence token only (T = 1, the paper's target), or all tokens (T = 77).
    """

    def __init__(
        self,
        text_encoder: CLIPTextModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        text_encoder_2: CLIPTextModelWithProjection | None = None,
        tokenizer_2: PreTrainedTokenizerBase | None = None,
        *,
        output: Output = "bigG",
        tokens: Literal["eos", "all"] = "eos",
    ) -> None:
        super().__init__()
        if output not in PARTS:
            raise UserError(f"output is {output!r}; allowed are 'L', 'bigG' and 'joint'")
        if tokens not in ("eos", "all"):
            raise UserError(f"tokens is {tokens!r}; allowed are 'eos' and 'all'")
        given = {"L": (text_encoder, tokenizer), "bigG": (text_encoder_2, tokenizer_2)}
        self.models: Mapping[str, PreTrainedModel] = nn.ModuleDict()  # type: ignore[assignment]
        self.tokenizers: dict[str, PreTrainedTokenizerBase] = {}
        for name in PARTS[output]:
            model, its_tokenizer = given[name]
            if model is None or its_tokenizer is None:
                raise UserError(
                    f"output {output!r} needs the encoder and the tokenizer of {name}: give"
                    f" {' and '.join(FOLDERS[name])}"
                )
            self.models[name] = model.requires_grad_(False).eval()  # type: ignore[index]
            self.tokenizers[name] = its_tokenizer
        lengths = {name: self._length(name) for name in self.models}
        if len(set(lengths.values())) > 1:
            raise UserError(
                f"the two text encoders take {lengths} tokens; for a joint output the numbers must"
                " be equal"
            )
        self.output = output
        self.tokens = tokens

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        output: Output = "bigG",
        tokens: Literal["eos", "all"] = "eos",
        **kwargs,
    ) -> CLIPTextEncoderDual:
        """Load the encoders that `output` needs from a folder or hub name laid out like SDXL.

        Parameters
        ----------
        path : str or Path
            Holds text_encoder/, tokenizer/ and / or text_encoder_2/, tokenizer_2/.
        output, tokens : Output, optional
            As for the class.
        **kwargs
            For transformers' ``from_pretrained``: dtype, revision, local_files_only ...

        Raises
        ------
        UserError
            If a part cannot be loaded, or weights are missing, left over or of another shape.
        """
        if output not in PARTS:
            raise UserError(f"output is {output!r}; allowed are 'L', 'bigG' and 'joint'")
        hub = {key: value for key, value in kwargs.items() if key in HUB_OPTIONS}
        parts: dict[str, Any] = {}
        for name in PARTS[output]:
            model_folder, tokenizer_folder = FOLDERS[name]
            parts[model_folder] = load_frozen(
                CLIPTextModel if name == "L" else CLIPTextModelWithProjection,
                path,
                subfolder=model_folder,
                **kwargs,
            )
            place, inside = str(path), tokenizer_folder
            if not hub and is_hub_name(place):
                place, inside = str(whole_folder(place, tokenizer_folder)), ""
            try:
                parts[tokenizer_folder] = CLIPTokenizer.from_pretrained(
                    place, subfolder=inside, **hub
                )
            except (OSError, ValueError) as error:
                raise UserError(
                    f"no tokenizer in '{path}/{tokenizer_folder}': {first_line(error)} "
                    "Give a folder laid out like an SDXL pipeline."
                ) from error
        return cls(**parts, output=output, tokens=tokens)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write encoders and tokenizers in the layout of an SDXL pipeline."""
        for name, model in self.models.items():
            model_folder, tokenizer_folder = FOLDERS[name]
            model.save_pretrained(Path(folder) / model_folder)
            self.tokenizers[name].save_pretrained(Path(folder) / tokenizer_folder)

    def _length(self, name: str) -> int:
        return self.models[name].config.max_position_embeddings

    @property
    def length(self) -> int:
        """Number of tokens of a prompt, padding included (77 for the released encoders)."""
        return self._length(next(iter(self.models)))

    @property
    def widths(self) -> dict[str, int]:
        """Width of every loaded encoder, in the order of the columns."""
        return {name: model.config.hidden_size for name, model in self.models.items()}

    @property
    def clip_emb_dim(self) -> int:
        """Width D of the target."""
        return sum(self.widths.values())

    @property
    def clip_seq_dim(self) -> int:
        """Number T of tokens of the target."""
        return 1 if self.tokens == "eos" else self.length

    @property
    def device(self) -> torch.device:
        """Where the encoders are."""
        return next(self.parameters()).device

    def _ids(self, name: str, texts: Sequence[str]) -> Tensor:
        encoded = self.tokenizers[name](
            list(texts),
            padding="max_length",
            truncation=True,
            # always the full length: an embedding must not depend on other texts of the batch
            max_length=self.length,
            return_tensors="pt",
        )
        return encoded["input_ids"].to(self.device)

    def _end(self, name: str, ids_BT: Tensor) -> Tensor:
        """Position of the first end-of-sequence token by the tokenizer, not the model's config."""
        end = ids_BT == self.tokenizers[name].eos_token_id
        return end.int().argmax(dim=1)

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """Encode one text per row.

        Parameters
        ----------
        texts : sequence of str
            B texts.

        Returns
        -------
        Tensor
            B x T x D: T is 1 (end-of-sequence token) or `length`; penultimate hidden states, L
            before bigG.
        """
        columns = []
        for name, model in self.models.items():
            ids_BT = self._ids(name, texts)
            hidden_BTD = model(input_ids=ids_BT, output_hidden_states=True).hidden_states[LAYER]
            if self.tokens == "eos":
                rows = torch.arange(len(ids_BT), device=self.device)
                hidden_BTD = hidden_BTD[rows, self._end(name, ids_BT)][:, None]
            columns.append(hidden_BTD)
        return torch.cat(columns, dim=-1)

    @torch.no_grad()
    def forward(self, captions: Sequence[Sequence[str]]) -> Tensor:
        """Compute target embeddings of images, averaged over the captions of each image.

        Parameters
        ----------
        captions : sequence of sequences of str
            Captions of every image; their number may differ between images.

        Returns
        -------
        Tensor
            B x T x D, in the encoders' type.

        Raises
        ------
        UserError
            If an image has no caption, or a text where its list of captions should be.
        """
        for row, texts in enumerate(captions):
            if isinstance(texts, str) or not texts:
                raise UserError(
                    f"captions of image {row} are {texts!r}; allowed is a list of at least one text"
                )
        counts = torch.tensor([len(texts) for texts in captions])
        each_NTD = self.encode([text for texts in captions for text in texts])
        return torch.stack([part.mean(dim=0) for part in each_NTD.split(counts.tolist())])

    @torch.no_grad()
    def prompt(self, texts: Sequence[str]) -> PromptEmbeddings:
        """Encode prompts for SDXL's U-Net, for any `tokens` (negative prompts, refinement).

        Parameters
        ----------
        texts : sequence of str
            B prompts.

        Returns
        -------
        PromptEmbeddings
            Tokens B x `length` x D.
        """
        columns, pooled_BD = [], None
        for name, model in self.models.items():
            ids_BT = self._ids(name, texts)
            out = model(input_ids=ids_BT, output_hidden_states=True)
            columns.append(out.hidden_states[LAYER])
            if name == "bigG":
                rows = torch.arange(len(ids_BT), device=self.device)
                pooled_BD = cast(CLIPTextModelWithProjection, model).text_projection(
                    out.last_hidden_state[rows, self._end(name, ids_BT)]
                )
        return PromptEmbeddings(torch.cat(columns, dim=-1), pooled_BD)

    @torch.no_grad()
    def start_token(self) -> Tensor:
        """Embed the start token; attention is causal, so it is the same in every text.

        Returns
        -------
        Tensor
            D, penultimate hidden state, L before bigG.
        """
        columns = []
        for name, model in self.models.items():
            ids_11 = torch.tensor([[self.tokenizers[name].bos_token_id]], device=self.device)
            columns.append(
                model(input_ids=ids_11, output_hidden_states=True).hidden_states[LAYER][0, 0]
            )
        return torch.cat(columns)
