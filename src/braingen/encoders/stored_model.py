"""A model of voxels that is loaded from a folder or from the hub, and uploaded with a card."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
import tempfile
from typing import Any, NamedTuple

from diffusers import ConfigMixin, ModelMixin

from braingen.data.model_facts import model_facts, stage_of
from braingen.runtime.console import reported
from braingen.runtime.model_card import ModelFacts, facts_in, write_card
from braingen.runtime.repository import Upload, files_below, located, upload, without_local_paths
from braingen.runtime.weights import load_whole

_AGAIN = "train it again, or name another run folder"
_PATTERNS = ("*.json", "*.safetensors", "*.md")


class ModelKind(NamedTuple):
    """What a card says a model is."""

    kind: str
    architecture: str
    subjects: dict[str, int]
    """Subject -> voxels."""
    scores: tuple[str, ...]
    """Scores of a run that are of this model alone."""


class StoredModel(ModelMixin, ConfigMixin):
    """What embedding decoders and the low-level path have in common on the disk."""

    facts: ModelFacts | None = None
    """What was recorded of data and training where it was uploaded; None of a local model."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Any:
        """Load what ``save_pretrained`` wrote or :meth:`push_to_hub` uploaded.

        Parameters
        ----------
        pretrained_model_name_or_path : str or Path
            A folder, or a repository of the hub, ``user/name``.
        **kwargs
            As for any model of diffusers; of a repository ``revision``, ``token``, ``cache_dir``,
            ``local_files_only``, ``force_download``.

        Raises
        ------
        UserError
            When it is damaged, incomplete, holds NaN or infinite weights, or is a repository that
            cannot be read.
        """
        inside = f"{kwargs['subfolder']}/" if kwargs.get("subfolder") else ""
        folder = located(
            pretrained_model_name_or_path,
            kwargs,
            f"a {cls.__name__}",
            f"{inside}config.json",
            [f"{inside}{pattern}" for pattern in _PATTERNS],
        )
        place = Path(folder) / inside
        with reported(cls.__name__, sorted(place.glob("*.safetensors"))):
            found = load_whole(super().from_pretrained, folder, _AGAIN, **kwargs)
        model = found[0] if isinstance(found, tuple) else found
        model.facts = facts_in(folder / inside) if (folder / inside).is_dir() else None
        return found

    @abstractmethod
    def model_kind(self, stage: dict[str, Any]) -> ModelKind:
        """What the model is.

        Parameters
        ----------
        stage : dict[str, Any]
            Settings of its training; empty where no run is named.
        """

    def described(self, run: Path | str | None = None) -> ModelFacts:
        """What a card says of the model and, where it is named, of the run that trained it."""
        kind = self.model_kind(stage_of(Path(run)).config if run is not None else {})
        return model_facts(
            kind.kind, kind.architecture, kind.subjects, run, known=self.facts, only=kind.scores
        )

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
        **kwargs: Any,
    ) -> str:
        """Upload the model to a repository of the hub, with a card, in one commit.

        Everything is saved in a temporary folder first and checked there.

        Parameters
        ----------
        repo_id : str
            user/name; created when it does not exist.
        run : Path or str or None, optional
            Folder of its training (``runs/demo/image``), which the card describes.
        revision, commit_message, private, token, create_pr
            As in :meth:`braingen.BrainDecoder.push_to_hub`.
        **kwargs
            Of ``save_pretrained``.

        Returns
        -------
        address : str
            Of the commit or pull request.

        Raises
        ------
        UserError
            When the run is none, or the hub refuses.
        """
        how = Upload(repo_id, commit_message, revision, private, token, create_pr)
        facts = self.described(run)
        with tempfile.TemporaryDirectory(prefix="braingen-") as name:
            folder = Path(name)
            self.save_pretrained(folder, **kwargs)
            without_local_paths(folder)
            write_card(folder, facts, repo_id)
            stale = () if kwargs.get("variant") else ("*.json", "*.safetensors")
            return upload(folder, files_below(folder), stale, how, type(self).__name__)
