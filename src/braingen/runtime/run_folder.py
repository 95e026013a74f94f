"""A run folder: settings, provenance, results, and the state to continue from.

::

    config.yaml        the settings, exactly
    provenance.json    versions, git commit, seeds, config hash, and every command that worked on
                       this run
    metrics.jsonl      one record per line, each with its step
    state.safetensors  everything needed to continue after being killed
    *.safetensors      weights; models themselves are folders written by save_pretrained
    finished           marks the run as complete, with a summary
    diverged.json      marks that the losses became NaN or infinite
    .lock              held while a process uses the folder

Every write is atomic. Importing this loads no torch: `braingen --help` stays fast.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
import hashlib
import importlib.metadata
import json
import os
from pathlib import Path
import platform
import shutil
import subprocess
import sys
from types import TracebackType
from typing import Any

import yaml

from braingen.runtime.errors import UserError
from braingen.runtime.files import (
    clear_temporaries,
    disk_errors_as_sentences,
    recover_folder,
    replaced_folder,
    sync_file,
    write_json,
    write_text,
)
from braingen.runtime.lock import FolderLock
from braingen.runtime.text_files import read_json, read_yaml

DIVERGED = "diverged.json"
"""Marks a training whose losses became NaN or infinite."""
CONTENTS = "contents"
"""Key of the fingerprints in a run's settings: setting -> fingerprint of the file or folder that it
names. Paths are compared by these, not as text.
"""
_PACKAGES = (
    "braingen",
    "torch",
    "torchvision",
    "diffusers",
    "transformers",
    "accelerate",
    "peft",
    "safetensors",
    "numpy",
    "h5py",
)


def config_text(config: Mapping[str, Any]) -> str:
    """Format settings as YAML, in their order."""
    return yaml.safe_dump(json.loads(json.dumps(config)), sort_keys=False, allow_unicode=True)


def config_hash(config: Mapping[str, Any]) -> str:
    """Short hash of settings, independent of the order of their keys."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings to dotted names."""
    out: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            out.update(flat(value, f"{prefix}{key}."))
        else:
            out[f"{prefix}{key}"] = value
    return out


class Run:
    """A run folder opened for reading; `Run.start` opens one for writing.

    Parameters
    ----------
    folder : Path | str
        The run folder.

    Raises
    ------
    UserError
        When it is not a run folder.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        if not (self.folder / "config.yaml").is_file():
            hint = "it does not exist" if not self.folder.exists() else "it has no config.yaml"
            raise UserError(
                f"{self.folder} is not a run folder: {hint}; give the folder of an earlier"
                " `braingen` stage."
            )
        self._lock: FolderLock | None = None

    @classmethod
    def start(
        cls,
        folder: Path | str,
        config: Mapping[str, Any],
        seeds: Mapping[str, int] | None = None,
        may_change: Collection[str] = (),
    ) -> Run:
        """Open a folder for writing: a new run, or one to continue.

        Parameters
        ----------
        folder : Path | str
            Created if missing.
        config : Mapping[str, Any]
            The settings (JSON-able tree), with fingerprints under `CONTENTS`.
        seeds : Mapping[str, int] | None, optional
            Seeds in use, for the provenance.
        may_change : Collection[str], optional
            Dotted names of settings (or whole branches) that may differ when a run is continued,
            such as the number of workers; config.yaml then holds the new ones.

        Returns
        -------
        Run
            To be used in a `with` statement, or closed with `close`.

        Raises
        ------
        UserError
            When another process uses the folder, it holds a run with other settings, or it cannot
            be written.
        """
        folder = Path(folder)
        with disk_errors_as_sentences(folder):
            folder.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(folder)
        try:
            settings = json.loads(json.dumps(config))
            path = folder / "config.yaml"
            if path.exists():
                before = _read_yaml(path)
                if (folder / DIVERGED).exists() and not (folder / "finished").exists():
                    _begin_anew(folder)
                elif has_work(folder):
                    _refuse_other_settings(folder, before, settings, may_change)
            clear_temporaries(folder)
            for aside in folder.glob(".*.before"):
                recover_folder(folder / aside.name[1 : -len(".before")])
            text = config_text(settings)
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                write_text(path, text)
            _add_provenance(folder, settings, seeds or {})
            run = cls(folder)
        except BaseException:
            lock.release()
            raise
        run._lock = lock
        return run

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _own(self) -> FolderLock:
        if self._lock is None:
            raise RuntimeError(
                f"{self.folder} was opened for reading; open it with Run.start to write"
            )
        return self._lock

    @property
    def config(self) -> dict[str, Any]:
        """The settings of the run."""
        return _read_yaml(self.folder / "config.yaml")

    @property
    def provenance(self) -> dict[str, Any]:
        """Provenance of the run."""
        return read_json(self.folder / "provenance.json")

    def path(self, name: str) -> Path:
        """Path of a file in the run folder."""
        return self.folder / name

    # -- finished ----------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Whether the run is complete."""
        return (self.folder / "finished").is_file()

    def mark_finished(self, summary: Mapping[str, Any] | None = None) -> None:
        """Mark the run as complete, so that its command does nothing any more."""
        self._own()
        write_json(self.folder / "finished", dict(summary or {}))

    def unmark_finished(self) -> None:
        """Remove the mark, after files of the run were removed."""
        self._own()
        (self.folder / "finished").unlink(missing_ok=True)

    @property
    def summary(self) -> dict[str, Any]:
        """The summary given to `mark_finished`."""
        return read_json(self.folder / "finished")

    def require_finished(self) -> Run:
        """Return this run, or refuse an incomplete one.

        Raises
        ------
        UserError
            When the run is not complete.
        """
        if (self.folder / DIVERGED).is_file() and not self.finished:
            raise UserError(
                f"The training in {self.folder} diverged"
                f" ({read_json(self.folder / DIVERGED).get('reason')}); train it again with other"
                " settings, or name another run."
            )
        if not self.finished:
            raise UserError(
                f"The run in {self.folder} is not finished; start its command again, it continues"
                " where it stopped."
            )
        return self

    def mark_diverged(self, reason: str) -> None:
        """Mark the training as diverged: the next start begins again, possibly with other settings.

        States are removed, since they may hold NaN; the best checkpoint is kept until a better one
        replaces it.
        """
        self._own()
        write_json(self.folder / DIVERGED, {"reason": reason})
        _drop_states(self.folder)

    # -- state -------------------------------------------------------------------------------------

    def save_state(self, state: Any, name: str = "state") -> None:
        """Write everything needed to continue (`state.save_tree`), after the metrics."""
        from braingen.runtime.state import save_tree  # torch

        self._own().touch()
        metrics = self.folder / "metrics.jsonl"
        if metrics.exists():  # flush them before the state that includes them
            sync_file(metrics)
        save_tree(self.folder / f"{name}.safetensors", state)

    def load_state(self, name: str = "state") -> Any | None:
        """Read the state, or None where none was written."""
        from braingen.runtime.state import load_tree  # torch

        path = self.folder / f"{name}.safetensors"
        return load_tree(path) if path.exists() else None

    def remove_state(self, name: str = "state") -> None:
        """Remove a state that is no longer needed."""
        self._own()
        (self.folder / f"{name}.safetensors").unlink(missing_ok=True)

    @contextmanager
    def replace(self, name: str) -> Iterator[Path]:
        """Yield a temporary folder (for save_pretrained) that then replaces `name`."""
        self._own()
        with replaced_folder(self.folder / name) as temporary:
            yield temporary

    # -- metrics -----------------------------------------------------------------------------------

    def log(self, step: int, **values: Any) -> None:
        """Append one record to metrics.jsonl."""
        self._own().touch()
        path = self.folder / "metrics.jsonl"
        line = (
            json.dumps({"step": step, **values}, default=float) + "\n"
        )  # converts scalars of NumPy and PyTorch
        with disk_errors_as_sentences(path), open(path, "a", encoding="utf-8") as handle:
            handle.write(line)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """Read all records except a truncated last line."""
        path = self.folder / "metrics.jsonl"
        if not path.exists():
            return []
        lines = path.read_text(encoding="utf-8").split("\n")[
            :-1
        ]  # a line without its newline is truncated
        return [json.loads(line) for line in lines if line]

    def rewind_metrics(self, step: int) -> None:
        """Remove the records after `step`, which belong to lost work that is done again."""
        self._own()
        path = self.folder / "metrics.jsonl"
        if path.exists():
            kept = [record for record in self.metrics if record["step"] <= step]
            write_text(path, "".join(json.dumps(record) + "\n" for record in kept))


class Follower(Run):
    """A run folder in a helper process: it reads, while the main process locks and writes."""

    def mark_finished(self, summary: Mapping[str, Any] | None = None) -> None:
        """Do nothing: the main process does it; likewise below."""

    def save_state(self, state: Any, name: str = "state") -> None:
        """See `mark_finished`."""

    def remove_state(self, name: str = "state") -> None:
        """See `mark_finished`."""

    def mark_diverged(self, reason: str) -> None:
        """See `mark_finished`."""

    def log(self, step: int, **values: Any) -> None:
        """See `mark_finished`."""

    def rewind_metrics(self, step: int) -> None:
        """See `mark_finished`."""


def _read_yaml(path: Path) -> dict[str, Any]:
    content = read_yaml(path, "restore it or choose another run folder")
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no settings; restore it or choose another run folder.")
    return content


def _drop_states(folder: Path) -> None:
    for state in folder.glob("*.safetensors"):
        state.unlink()
    shutil.rmtree(folder / "shards", ignore_errors=True)


def _begin_anew(folder: Path) -> None:
    """Remove the traces of a diverged training; its curves are kept under another name."""
    _drop_states(folder)
    metrics = folder / "metrics.jsonl"
    if metrics.exists():
        metrics.replace(folder / "metrics_diverged.jsonl")
    (folder / DIVERGED).unlink()


def has_work(folder: Path) -> bool:
    """Whether the folder has results; a run that failed at setup does not fix its settings."""
    return any(
        path.name not in ("config.yaml", "provenance.json") and not path.name.startswith(".")
        for path in folder.iterdir()
    )


def remove_run(folder: Path) -> None:
    """Remove a run that was refused before any work, and the folders of its run above if empty."""
    shutil.rmtree(folder, ignore_errors=True)
    above = 2 if folder.parent.name == "reconstructions" else 1
    for parent in list(folder.parents)[:above]:
        if parent.is_dir() and not any(parent.iterdir()):
            parent.rmdir()


def _refuse_other_settings(
    folder: Path, before: Mapping[str, Any], now: Mapping[str, Any], may_change: Collection[str]
) -> None:
    contents = [each.get(CONTENTS) or {} for each in (before, now)]
    old, new = (
        flat({key: value for key, value in each.items() if key != CONTENTS})
        for each in (before, now)
    )
    changed = [
        name
        for name in {**old, **new}
        if old.get(name) != new.get(name)
        and not any(name == free or name.startswith(f"{free}.") for free in may_change)
        and not _same_place(name, old.get(name), new.get(name), *contents)
    ]
    if changed:

        def change(name: str) -> str:
            other = " (with other content)" if all(name in each for each in contents) else ""
            return f"{name} was {old.get(name)!r}, is now {new.get(name)!r}{other}"

        shown = "; ".join(map(change, changed[:4]))
        more = f"; and {len(changed) - 4} more" if len(changed) > 4 else ""
        raise UserError(
            f"{folder} holds a run with other settings ({shown}{more}); give the same settings to"
            " continue it, or another --model_name, or remove the folder to start anew."
        )


def _same_place(name: str, old: Any, new: Any, *contents: Mapping[str, str]) -> bool:
    """Whether two paths name files or folders with the same content, or the same path."""
    if name in contents[1] and contents[0].get(name) == contents[1][name]:
        return True
    written = all(
        isinstance(path, str) and path and (os.sep in path or Path(path).exists())
        for path in (old, new)
    )
    return written and os.path.realpath(Path(old).expanduser()) == os.path.realpath(
        Path(new).expanduser()
    )


def _git_state() -> dict[str, Any] | None:
    """Return the commit of this package's source, if it is a git checkout."""
    source = Path(__file__).resolve().parents[3]
    if not (source / ".git").exists():
        return None
    try:
        commit, changes = (
            subprocess.run(
                ["git", "-C", str(source), *words], capture_output=True, timeout=10, check=True
            ).stdout.decode("utf-8", "replace")
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "-uno"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit.strip(), "modified": bool(changes.strip())}


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _add_provenance(folder: Path, config: Mapping[str, Any], seeds: Mapping[str, int]) -> None:
    path = folder / "provenance.json"
    try:
        starts = read_json(path)["starts"]
    except (OSError, ValueError, KeyError, TypeError):
        starts = []  # a new run
    starts.append(
        {
            "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            "platform": platform.platform(),
            "versions": _versions(),
            "git": _git_state(),
        }
    )
    write_json(path, {"config_hash": config_hash(config), "seeds": dict(seeds), "starts": starts})
