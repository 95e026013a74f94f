"""Which files of a folder are inputs: tables of events, responses, masks and label volumes."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
import re

import pandas as pd

from braingen.config.run_and_data import PrepareConfig
from braingen.data.ingest import forms
from braingen.data.ingest.names import GUIDE, Named, Tree, plain, same_label
from braingen.data.ingest.other_maps import OTHER_MAPS, other_maps
from braingen.data.ingest.strangers import refuse_strangers
from braingen.data.ingest.trial_table import find_trial_table
from braingen.runtime.errors import UserError

_EVENTS = re.compile(r"(_|^)events\.(tsv|csv)(\.gz)?$")
_MASK = re.compile(r"(_|^)mask\.(nii|nii\.gz|npy|gii|label\.gii|shape\.gii)$")
_LABELS = re.compile(r"_dseg\.nii(\.gz)?$")
_LABEL_TABLES = re.compile(r"(_|^)dseg\.tsv$")
_TIME_SERIES = re.compile(r"_bold(\.(dtseries|func))?\.(nii|nii\.gz|gii)$")
_ACQUIRED = re.compile(r"(_|^)(scans|sessions)\.tsv$")
_LIKE_INPUTS = re.compile(r"(?i)event|trial|design|beta|respons|bold")
_NUMBERED_FOLDER = re.compile(r"(?i)^(sub|subj|subject|participant|s|p)[-_ ]?0*(\d+)$")


class Inputs:
    """The files of a folder of scans that `prepare` reads, by subject.

    Parameters
    ----------
    config : PrepareConfig
        Settings of `prepare`; `scans` is the folder.

    Raises
    ------
    UserError
        When the folder does not exist or a setting is malformed.
    """

    def __init__(self, config: PrepareConfig) -> None:
        assert config.scans is not None
        self.root, self.prepare = config.scans, config
        if not self.root.is_dir():
            raise UserError(
                f"The folder of scans {self.root} does not exist; name yours with --scans."
            )
        usual = {
            "task": self.prepare.task,
            "space": self.prepare.space,
            "desc": self.prepare.desc,
            "stat": self.prepare.stat,
        }
        self.wanted = {key: value for key, value in usual.items() if value}
        """Entity -> value that the settings choose."""
        for word in self.prepare.entities:
            key, dash, value = word.partition("-")
            if not dash or not value:
                raise UserError(
                    f"prepare.entities = {word!r} is no key-value, such as res-2; correct it."
                )
            self.wanted[key] = value

    @cached_property
    def _tree(self) -> Tree:
        return Tree(self.root)

    @cached_property
    def events(self) -> list[Named]:
        """Tables of events of all subjects."""
        return self._tree.named(_EVENTS)

    @cached_property
    def trial_table(self) -> tuple[Path, pd.DataFrame] | None:
        """The trial table of all subjects, where there is one."""
        return find_trial_table(self.root, self.prepare.trials, bool(self.events))

    @cached_property
    def labels(self) -> list[str]:
        """Labels of all subjects."""
        if self.trial_table is not None:
            labels = list(dict.fromkeys(self.trial_table[1]["subject"].astype(str)))
        else:
            named = [file for file in self.events if file.of("sub")]
            if len(named) < len(self.events):
                named += [file for file in self._tree.named(forms.RESPONSES) if file.of("sub")]
            labels = list(dict.fromkeys(file.of("sub") for file in named))
            if not labels:
                raise UserError(
                    f"{self.root} holds no table of events (sub-01_ses-01_events.tsv)"
                    f"{self._other_names()}: {GUIDE}."
                )
        first: dict[str, str] = {}
        for label in labels:
            if (other := first.setdefault(plain(label), label)) != label:
                raise UserError(
                    f"{self.root}: subjects {other}, {label} have the same number twice; rename "
                    "one of them."
                )
        return labels

    def _other_names(self) -> str:
        """Files that may be inputs but have other names, and how to name them."""
        found = [
            path
            for path in self._tree.files
            if _LIKE_INPUTS.search(path.name) and not path.name.endswith((".json", ".m", ".py"))
        ]
        if not found:
            return ""
        shown = ", ".join(path.relative_to(self.root).as_posix() for path in found[:4])
        more = f" and {len(found) - 4} more" if len(found) > 4 else ""
        parts = found[0].relative_to(self.root).parts
        numbers = [match[2] for part in parts if (match := _NUMBERED_FOLDER.match(part))]
        sessions = [re.sub(r"\D", "", part) for part in parts if re.match(r"(?i)ses.*\d", part)]
        stem = f"sub-{int((numbers or ['1'])[0]):02d}_ses-{int((sessions or ['1'])[0]):02d}"
        return (
            f"; there are {shown}{more}: call the events {stem}_events.tsv and the responses "
            f"{stem}_betas.npy (or .nii.gz, .hdf5), anywhere below that folder, or write one trial "
            "table (--trials trials.csv)"
        )

    def _of_subject(self, pattern: re.Pattern[str], label: str) -> list[Named]:
        """Files of a subject; those without a subject belong to the only one."""
        labels = ("",) if len(self.labels) == 1 else ()
        return [f for f in self._named(pattern) if same_label(f.of("sub"), label, *labels)]

    def _of_subject_or_all(self, pattern: re.Pattern[str], label: str) -> list[Named]:
        return [f for f in self._named(pattern) if same_label(f.of("sub"), label, "")]

    def _named(self, pattern: re.Pattern[str]) -> list[Named]:
        found = self._tree.named(pattern)
        refuse_strangers(found, self.root, self.labels)
        return found

    def responses_of(self, label: str) -> list[Named]:
        """Files of responses of a subject.

        Raises
        ------
        UserError
            When files name no subject and there are several, or all are Matlab files.
        """
        mine = self._of_subject(forms.RESPONSES, label)
        if mine:
            return mine
        stray = [f for f in self._tree.named(forms.RESPONSES) if not f.of("sub")]
        if stray and len(self.labels) > 1:
            raise UserError(
                f"{stray[0].path} does not say whose it is, there are subjects "
                f"{', '.join(self.labels)}: put it into a folder sub-LABEL."
            )
        if matlab := self._of_subject_or_all(forms.MATLAB, label):
            raise forms.refuse_matlab(matlab[0])
        return []

    def events_of(self, label: str) -> list[Named]:
        """Tables of events of a subject, and those above all subjects."""
        return self._of_subject_or_all(_EVENTS, label)

    def masks_of(self, label: str) -> list[Named]:
        """Masks of a subject."""
        return self._of_subject(_MASK, label)

    def label_volumes_of(self, label: str) -> list[Named]:
        """Label volumes (dseg) of a subject, and those above all subjects."""
        return self._of_subject_or_all(_LABELS, label)

    @property
    def label_tables(self) -> list[Named]:
        """Tables with the names of labels."""
        return self._tree.named(_LABEL_TABLES)

    @property
    def acquisition_tables(self) -> list[Named]:
        """scans.tsv and sessions.tsv of all subjects."""
        return self._tree.named(_ACQUIRED)

    def no_responses(self, label: str, where: str) -> UserError:
        """The error about missing responses of a subject or session, with what is there instead."""
        return UserError(
            f"{self.root} holds no responses of {where} ({where}_betas.nii.gz, .npy or .hdf5)"
            f"{self._instead_of_responses(label)}; {GUIDE}."
        )

    def _instead_of_responses(self, label: str) -> str:
        """Files of a subject that are no responses, as the end of a sentence."""
        if matlab := self._of_subject_or_all(forms.MATLAB, label):
            name = matlab[0].path.name
            return f"; {name} is a Matlab file: {forms.refuse_matlab(matlab[0])}".rstrip(".")
        series = self._of_subject_or_all(_TIME_SERIES, label)
        if not series:
            return self._unread(label)
        more = f" and {len(series) - 1} more" if len(series) > 1 else ""
        return (
            f"; there are time series ({series[0].path.name}{more}) but no single-trial responses: "
            "estimate them first, with GLMsingle or nilearn's LSS"
        )

    def _unread(self, label: str) -> str:
        """Responses of a subject in a form that is not read, as the end of a sentence."""
        named = self._of_subject_or_all(forms.UNREAD, label)
        found = [
            file.path
            for file in named
            if not forms.RESPONSES.search(file.path.name)
            and file.path.suffix not in (".json", ".md", ".bak")
        ]
        if not found:
            return other_maps(self._of_subject_or_all(OTHER_MAPS, label))
        endings = ", ".join(sorted(forms.ENDINGS))
        return (
            f"; {found[0]} is of no form that is read (by their endings: {endings}): write it as "
            ".npy of trials x voxels, or as NIfTI"
        )
