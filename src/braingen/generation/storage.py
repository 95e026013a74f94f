"""A pipeline that is saved in one folder, loaded from it or from the hub, and uploaded whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
import tempfile
from typing import Any, TypeVar

from diffusers import DiffusionPipeline
from safetensors.torch import save_file

from braingen.data.model_facts import model_facts
from braingen.generation.captions import CaptionLibrary
from braingen.generation.lora import LORA_FILE, has_lora, is_fused, load_lora, save_lora
from braingen.pretrained.sdxl import (
    UNREADABLE,
    add_ip_adapter,
    load_ip_adapter_file,
    without_ip_adapter,
)
from braingen.pretrained.sdxl import ip_adapter_weights as adapter_weights_of
from braingen.runtime.errors import UserError
from braingen.runtime.files import refuse_small_disk, replaced_parts
from braingen.runtime.model_card import (
    CARD,
    FACTS,
    NSD,
    SIMULATED,
    ModelFacts,
    facts_in,
    write_card,
)
from braingen.runtime.precision import types_of_parts
from braingen.runtime.repository import Upload, files_below, located, upload, without_local_paths
from braingen.runtime.weights import plain_text, refuse_not_finite

IP_ADAPTER = Path("ip_adapter") / "ip-adapter.safetensors"
LORA, CAPTIONS = "lora", "captions"
INDEX = "model_index.json"
PARTS = (
    "brain_image",
    "brain_text",
    "brain_low_level",
    "unet",
    "vae",
    "scheduler",
    "router_image",
    "router_text",
    IP_ADAPTER.parent.name,
    LORA,
    CAPTIONS,
)
"""Folders of a saved decoder; there may be other files beside them."""
PATTERNS = (INDEX, FACTS, *(f"{part}/*" for part in PARTS))
"""Files of a decoder in a repository of the hub, besides its card."""
Stored = TypeVar("Stored", bound="StoredPipeline")


class StoredPipeline(DiffusionPipeline):
    """What a decoder keeps besides its networks, and where it is kept."""

    facts: ModelFacts | None = None
    """What is known of data, training and scores; None for a decoder put together by hand."""
    _captions: CaptionLibrary | Callable[[], CaptionLibrary] | None = None

    @property
    def caption_library(self) -> CaptionLibrary | None:
        """Captions of training images, of which `decode` returns the nearest; None without. A
        function that returns them may be assigned: it is called when they are needed.
        """
        if callable(self._captions):
            self._captions = self._captions()
        return self._captions

    @caption_library.setter
    def caption_library(
        self, library: CaptionLibrary | Callable[[], CaptionLibrary] | None
    ) -> None:
        self._captions = library

    def described(self, run: Path | str | None = None, captions: bool = True) -> ModelFacts:
        """What a card says: what was recorded when the decoder was assembled, and what the run says
        by now, scores among it.

        Parameters
        ----------
        run : Path | str | None, optional
            Run folder that the decoder is of.
        captions : bool, optional
            Whether captions are saved with it.
        """
        config = self.brain_image.config
        found = model_facts(
            "decoder",
            config.encoder_class,
            config.encoder_config["subjects"],
            run,
            known=self.facts,
        )
        library = self.caption_library if captions else None
        return found._replace(
            captions=0 if library is None else len(library.texts),
            captions_of="" if library is None else library.data,
        )

    def save_pretrained(
        self,
        save_directory: str | Path,
        push_to_hub: bool = False,
        captions: bool | None = None,
        run: Path | str | None = None,
        **kwargs: Any,
    ) -> None:
        """Save everything in one folder; IP-Adapter and LoRA lie in files of their own, as
        everywhere.

        Written beside what is there and put in its place when all is on the disk. Parts that an
        earlier save left and that this decoder has not (LoRA, routers, shards of larger weights)
        go; files that are no part of a decoder stay, a card (README.md) that was edited among them.

        Parameters
        ----------
        save_directory : str or Path
            The folder.
        push_to_hub : bool, optional
            Then upload it, as :meth:`push_to_hub` does, whose arguments may be given too;
            ``repo_id`` is the folder's name when left out.
        captions : bool or None, optional
            Whether captions of training images are saved; None: yes, and an upload of captions of
            one's own data is refused.
        run : Path or str or None, optional
            Run folder whose scores the card shows.
        **kwargs
            As for any pipeline of diffusers, ``variant`` for instance.

        Raises
        ------
        UserError
            When the LoRA is fused into the U-Net: it would be saved twice.
        """
        folder = Path(save_directory)
        hub = {name: kwargs.pop(name) for name in Upload._fields if name in kwargs}
        if hub and not push_to_hub:
            raise UserError(
                f"{next(iter(hub))} has no effect without push_to_hub=True: leave it out."
            )
        if push_to_hub:
            hub.setdefault("repo_id", folder.name)
            self._refuse_own_captions(captions)
        self._save(folder, str(hub.get("repo_id", folder)), run, captions is not False, kwargs)
        if push_to_hub:
            _upload(folder, Upload(**hub), whole=kwargs.get("variant") is None)

    def _save(
        self,
        folder: Path,
        name: str,
        run: Path | str | None,
        with_captions: bool,
        options: dict[str, Any],
    ) -> None:
        """Save everything, with a card on which the decoder has that name."""
        if is_fused(self.unet):
            raise UserError(
                "The LoRA is fused into the U-Net (decoder.fuse_lora()) and would be saved twice:"
                " take it out first, decoder.unfuse_lora()."
            )
        facts = self.described(run, with_captions)
        adapter = {key: value.contiguous() for key, value in adapter_weights_of(self.unet).items()}
        with_adapter = self.unet
        with replaced_parts(
            folder, PARTS, INDEX, keep=options.get("variant") is not None
        ) as temporary:
            self.register_modules(unet=without_ip_adapter(self.unet))
            try:
                super().save_pretrained(temporary, **options)
            finally:
                self.register_modules(unet=with_adapter)
            path = temporary / IP_ADAPTER
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(adapter, path)
            if has_lora(self.unet):
                save_lora(self.unet, temporary / LORA)
            if with_captions and (library := self.caption_library) is not None:
                library.save(temporary / CAPTIONS)
            without_local_paths(temporary)
            write_card(temporary, facts, name, beside=folder)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        run: Path | str | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        create_pr: bool = False,
        captions: bool | None = None,
        **kwargs: Any,
    ) -> str:
        """Upload the decoder to a repository of the hub, with a card, in one commit.

        Everything is saved in a temporary folder first and checked there. What an earlier upload
        left of parts that this decoder has not is removed by the same commit; other files of the
        repository stay, but its README.md is replaced by the card.

        Parameters
        ----------
        repo_id : str
            user/name; created when it does not exist.
        run : Path or str or None, optional
            Run folder whose data, settings and scores the card describes; None for what the decoder
            recorded when it was assembled.
        revision : str or None, optional
            Branch, created when it does not exist; None for the main one.
        commit_message : str or None, optional
            First line of the commit.
        private : bool or None, optional
            Whether a new repository is private; None for the account's default.
        token : str or bool or None, optional
            None for the one that is logged in.
        create_pr : bool, optional
            Open a pull request instead.
        captions : bool or None, optional
            Whether captions of training images are uploaded. Left out, those of simulated data and
            of NSD (COCO's) are; those of one's own data have to be allowed or left out.
        **kwargs
            Of :meth:`save_pretrained`.

        Returns
        -------
        address : str
            Of the commit or pull request.

        Raises
        ------
        UserError
            When something is missing (nothing is uploaded then), the hub refuses, or captions of
            one's own data are neither allowed nor left out.
        """
        self._refuse_own_captions(captions)
        needed = sum(
            weight.numel() * weight.element_size()
            for part in self.components.values()
            if hasattr(part, "parameters")
            for weight in part.parameters()
        )
        refuse_small_disk(
            tempfile.gettempdir(), needed, "The decoder's files", "or set TMPDIR to another disk"
        )
        with tempfile.TemporaryDirectory(prefix="braingen-") as name:
            folder = Path(name)
            self._save(folder, repo_id, run, captions is not False, kwargs)
            how = Upload(repo_id, commit_message, revision, private, token, create_pr)
            return _upload(folder, how, whole=kwargs.get("variant") is None)

    def _refuse_own_captions(self, captions: bool | None) -> None:
        library = self.caption_library if captions is None else None
        if library is not None and library.data not in (SIMULATED, NSD):
            raise UserError(
                f"The decoder holds {len(library.texts)} captions of {library.data or 'its data'}"
                f" (first: {library.texts[0]!r}), which would be uploaded: give captions=True to"
                " upload them, or captions=False to leave them out."
            )

    @classmethod
    def from_pretrained(
        cls: type[Stored], pretrained_model_name_or_path: str | Path, **kwargs: Any
    ) -> Stored:
        """Load what :meth:`save_pretrained` wrote or :meth:`push_to_hub` uploaded.

        Parameters
        ----------
        pretrained_model_name_or_path : str or Path
            A folder, or a repository of the hub, ``user/name``.
        **kwargs
            ``torch_dtype`` is the U-Net's. Of a repository ``revision`` (branch, tag or commit),
            ``token``, ``cache_dir``, ``local_files_only``, ``force_download``.

        Raises
        ------
        UserError
            When it is no saved decoder, damaged, or a repository that cannot be read.
        """
        for name in ("torch_dtype", "dtype"):
            if kwargs.get(name) is not None:
                kwargs[name] = types_of_parts(kwargs[name])
        folder = decoder_folder(pretrained_model_name_or_path, kwargs)
        try:
            decoder = super().from_pretrained(folder, **kwargs)
        except UserError:
            raise
        except UNREADABLE as error:
            raise UserError(
                f"{folder} is damaged or no saved decoder ({plain_text(error)}); save it again."
            ) from error
        for name in ("unet", "vae"):  # the others look after themselves
            refuse_not_finite(getattr(decoder, name), folder / name, "save it again")
        add_ip_adapter(decoder.unet, load_ip_adapter_file(str(folder / IP_ADAPTER)))
        if (folder / LORA / LORA_FILE).exists():
            load_lora(decoder.unet, folder / LORA)
        decoder.facts = facts_in(folder)
        if (folder / CAPTIONS).is_dir():
            decoder.caption_library = lambda: CaptionLibrary.load(folder / CAPTIONS)
        return decoder


def decoder_folder(source: Path | str, options: dict[str, Any] | None = None) -> Path:
    """Folder of a saved decoder, downloaded where a repository of the hub is named; options of
    the hub are taken out.

    Raises
    ------
    UserError
        When it is no saved decoder.
    """
    options = {} if options is None else options
    folder = located(source, options, "a decoder", INDEX, (*PATTERNS, CARD))
    if not (folder / INDEX).is_file():
        raise UserError(
            f"{folder} is not a saved decoder (no {INDEX}); `braingen demo` leaves one in"
            " runs/demo/decoder."
        )
    return folder


def _upload(folder: Path, how: Upload, whole: bool) -> str:
    """Upload a saved decoder; `whole`: what else lies there of its parts is removed."""
    files = files_below(
        folder, lambda name: name in (INDEX, FACTS, CARD) or name.partition("/")[0] in PARTS
    )
    return upload(folder, files, PATTERNS if whole else (), how, "decoder")
