"""Repositories of the Hugging Face Hub: a saved model is fetched by name, or uploaded whole.

HF_ENDPOINT names another hub, HF_HUB_OFFLINE=1 restricts loading to what is on this machine
(environment variables of huggingface_hub).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import CommitInfo, HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open

from braingen.runtime.errors import UserError, reason
from braingen.runtime.files import refuse_stand_in, write_json
from braingen.runtime.text_files import read_json

OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "force_download")
"""Keyword arguments of ``from_pretrained`` that say how the hub is asked."""
LOGIN = "log in with `hf auth login`, or pass token="
_SHOWN = 5
_TRANSPORT: type[Exception] = HfHubHTTPError.__bases__[0]
"""Base class of all errors of the HTTP library that huggingface_hub uses, also of lost connections.
"""


class Upload(NamedTuple):
    """How a model is uploaded."""

    repo_id: str
    """user/name, or a name in the user's own namespace."""
    commit_message: str | None = None
    """First line of the commit; None for one that names the kind of model."""
    revision: str | None = None
    """Branch, created where it is missing; None for the main one."""
    private: bool | None = None
    """Whether a new repository is private; None for the account's default."""
    token: str | bool | None = None
    """None for the one that is logged in."""
    create_pr: bool = False
    """Open a pull request instead of a commit on the branch."""


def is_repository_name(source: str | Path) -> bool:
    """Whether a text has the form ``user/name`` and is no folder or file here."""
    text = str(source)
    if isinstance(source, Path):  # a path is meant
        return False
    if text.count("/") != 1 or text.startswith((".", "~")) or Path(text).exists():
        return False
    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return True


def located(
    source: str | Path,
    options: MutableMapping[str, Any],
    what: str,
    index: str,
    patterns: Sequence[str],
) -> Path:
    """Folder of a saved model: the folder that is named, or that of a hub repository.

    Parameters
    ----------
    source : str or Path
        A folder, or ``user/name``; a folder of that name wins.
    options : MutableMapping[str, Any]
        Keyword arguments of ``from_pretrained``, from which those of the hub are taken out.
    what : str
        What it is, with its article, for messages.
    index : str
        Name of the file without which it is none.
    patterns : Sequence[str]
        Files that are downloaded.

    Returns
    -------
    folder : Path
        A folder that is no model is returned as it is; its reader says what is wrong.

    Raises
    ------
    UserError
        When the repository or its revision is not there or cannot be read, or holds something else;
        or when a revision is given with a folder.
    """
    asked = {name: options.pop(name) for name in OPTIONS if options.get(name) is not None}
    for name in OPTIONS:
        options.pop(name, None)
    if not is_repository_name(source):
        if "revision" in asked:
            raise UserError(
                f"revision={asked['revision']!r} has no effect with the folder {source}: leave it"
                " out, or name a repository of the hub, user/name."
            )
        return Path(source).expanduser()
    name = str(source)
    with _hub_errors(f"{name} is no folder here, and", name, str(asked.get("revision") or "main")):
        folder = Path(snapshot_download(name, allow_patterns=list(patterns), **asked))
    if not (folder / index).is_file():
        raise UserError(
            f"The repository {name} holds no {what.partition(' ')[2]} (it has no {index}): name a"
            f" repository that {what} was uploaded to."
        )
    return folder


@contextmanager
def _hub_errors(start: str, name: str, revision: str) -> Iterator[None]:
    """Turn errors of the hub into sentences that begin with `start`."""
    try:
        yield
    except RevisionNotFoundError as error:
        raise UserError(
            f"The repository {name} has no revision {revision!r}: give a branch, a tag or a commit"
            f" that {constants.ENDPOINT}/{name}/commits/main lists."
        ) from error
    except GatedRepoError as error:
        raise UserError(
            f"{start} the repository {name} is open only to people who were admitted: ask on"
            f" {constants.ENDPOINT}/{name}, then {LOGIN}."
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{start} the hub ({constants.ENDPOINT}) has no repository {name} that you may read:"
            f" check the name; for a private one {LOGIN}."
        ) from error
    except LocalTokenNotFoundError as error:
        raise UserError(f"{start} no token is stored on this machine: {LOGIN}.") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise UserError(
            f"{start} the repository {name} is not on this machine, and the hub"
            f" ({constants.ENDPOINT}) cannot be reached: connect (HF_HUB_OFFLINE is"
            f" {'set' if constants.HF_HUB_OFFLINE else 'not set'}), or give a folder."
        ) from error
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        advice = LOGIN if status in (401, 403) else "try again later"
        raise UserError(
            f"{start} the hub ({constants.ENDPOINT}) refused {name} (status {status}:"
            f" {reason(error)}): {advice}."
        ) from error
    except _TRANSPORT as error:
        raise UserError(
            f"{start} the hub ({constants.ENDPOINT}) cannot be reached ({reason(error)}): check the"
            " connection, then try again."
        ) from error


def upload(folder: Path, files: Iterable[str], parts: Sequence[str], how: Upload, kind: str) -> str:
    """Upload a saved model, in one commit, after everything was found to be in its place.

    Files of earlier uploads that belong to the same parts and are no more in the model are removed
    by the same commit; other files of the repository stay.

    Parameters
    ----------
    folder : Path
        The saved model.
    files : Iterable[str]
        Files below it that are uploaded.
    parts : Sequence[str]
        Patterns of all files that such a model may have in the repository.
    kind : str
        What it is, for the commit's message.

    Returns
    -------
    address : str
        Of the commit (or of the pull request).

    Raises
    ------
    UserError
        When a file is missing, empty or cut short (nothing is uploaded then), when the hub refuses,
        or when a file is missing there afterwards.
    """
    # diffusers' names of huggingface_hub's functions: what stands in for the hub under diffusers
    # does so here too
    from diffusers.utils import hub_utils

    names = sorted(files)
    refuse_incomplete(folder, names)
    start = f"{folder} was not uploaded:"
    try:
        validate_repo_id(how.repo_id)
    except HFValidationError as error:
        raise UserError(
            f"repo_id = {how.repo_id!r} is not allowed ({reason(error)}): give user/name."
        ) from error
    with _hub_errors(start, how.repo_id, how.revision or "main"):
        made = hub_utils.create_repo(
            how.repo_id, exist_ok=True, private=how.private, token=how.token
        )
        name = made.repo_id
        api = HfApi(token=how.token)
        if how.revision is not None:
            api.create_branch(name, branch=how.revision, exist_ok=True)
        done = hub_utils.upload_folder(
            repo_id=name,
            folder_path=str(folder),
            allow_patterns=[_literal(each) for each in names],
            delete_patterns=list(parts),
            commit_message=how.commit_message or f"Upload a BrainGen {kind}",
            revision=how.revision,
            token=how.token,
            create_pr=how.create_pr,
        )
        if isinstance(done, CommitInfo):
            there = set(api.list_repo_files(name, revision=done.pr_revision or done.oid))
            if lost := sorted(set(names) - there):
                raise UserError(
                    f"The upload to {name} is incomplete: {len(lost)} files are missing there"
                    f" ({', '.join(lost[:_SHOWN])}); start it again."
                )
            return str(done.pr_url or done.commit_url)
    return str(done)


def _literal(name: str) -> str:
    """A file name as a pattern that matches nothing else."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def files_below(folder: Path, keep: Callable[[str], bool] = lambda name: True) -> list[str]:
    """Names of the files in a folder and its folders, ascending, with ``/``; hidden ones are left
    out.
    """
    found = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return sorted(
        name
        for name in found
        if not any(part.startswith(".") for part in name.split("/")) and keep(name)
    )


def refuse_incomplete(folder: Path, names: Sequence[str]) -> None:
    """Refuse files that are missing, empty, cut short or no JSON, by what their headers say.

    Raises
    ------
    UserError
        For the first of them.
    """
    again = "save the model again"
    if not names:
        raise UserError(f"{folder} holds no files; {again}.")
    for name in names:
        path = refuse_stand_in(folder / name, again)
        if path.suffix == ".json":
            read_json(path, again)
        if path.suffix == ".safetensors":
            try:
                with safe_open(path, framework="np"):
                    pass  # opening checks the header against the file's size
            except (SafetensorError, OSError) as error:
                raise UserError(
                    f"{path} is not a safetensors file or cut short ({reason(error)}); {again}."
                ) from error


def without_local_paths(folder: Path) -> None:
    """Remove from the configurations in a folder where on this machine the models came from.

    diffusers writes the folder that a model was loaded from into its configuration.
    """
    for path in folder.rglob("*.json"):
        if path.name not in ("config.json", "model_index.json", "scheduler_config.json"):
            continue
        found = read_json(path)
        if isinstance(found, dict) and found.pop("_name_or_path", None) is not None:
            write_json(path, found)
