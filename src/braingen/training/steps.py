"""A training step as both training stages know it: its losses, and seeds of what chance decides in
it.
"""

from __future__ import annotations

from collections.abc import Mapping
import math
from typing import NamedTuple

import torch
from torch import Tensor

from braingen.runtime.distributed import Workers
from braingen.runtime.errors import UserError
from braingen.runtime.run_folder import Run


class StepLosses(NamedTuple):
    """Terms of the objective, weighted, and their sum."""

    total: Tensor
    terms: dict[str, Tensor]

    @classmethod
    def of(cls, terms: dict[str, Tensor]) -> StepLosses:
        """The losses of some weighted terms."""
        return cls(torch.stack(list(terms.values())).sum(), terms)

    def add_to(self, sums: dict[str, float]) -> None:
        """Add every term to the sum of its name."""
        for name, term in self.terms.items():
            sums[name] = sums.get(name, 0.0) + term.item()


class Divergence:
    """Stops a training whose losses have become NaN or infinite, in all processes.

    Under a loss scale (fp16) single passes may overflow: the scale is lowered and the step left
    out, so that only many of them in a row are a divergence.

    Parameters
    ----------
    run : Run
        Is marked, so that the same command begins anew.
    workers : Workers
        The processes.
    scaled : bool
        Whether there is a loss scale.
    advice : str
        What to change; ends the sentence.
    """

    TOLERATED = 20
    """Passes in a row that may overflow under a loss scale: it starts at 2^16 and is halved by
    each.
    """

    def __init__(self, run: Run, workers: Workers, scaled: bool, advice: str) -> None:
        self._run, self._workers, self._scaled, self._advice = run, workers, scaled, advice
        self._in_a_row = 0

    def passed(self, losses: StepLosses, where: str) -> bool:
        """Look at the losses of a pass; whether they are numbers.

        Raises
        ------
        UserError
            When they are not, and were not too often.
        """
        mine = not bool(torch.isfinite(losses.total.detach()).all())
        if not self._workers.all_reduce_max(int(mine)):
            self._in_a_row = 0
            return True
        self._in_a_row += 1
        if not self._scaled or self._in_a_row > self.TOLERATED:
            self.stop({name: term.item() for name, term in losses.terms.items()}, where)
        return False

    def validated(self, values: Mapping[str, float], where: str) -> None:
        """Look at what was measured on held-out images.

        Raises
        ------
        UserError
            When something of it is no number.
        """
        if not all(math.isfinite(value) for value in values.values()):
            self.stop(values, where)

    def stop(self, values: Mapping[str, float], where: str) -> None:
        """Mark the run and raise."""
        wrong = {name: value for name, value in values.items() if not math.isfinite(value)}
        named = ", ".join(f"{name} {value:g}" for name, value in (wrong or values).items())
        reason = f"NaN or infinite losses {where}: {named}"
        self._run.mark_diverged(reason)
        raise UserError(
            f"The training in {self._run.folder} came to {reason}. It is not finished and nothing"
            f" of it will be used. {self._advice} Then give the same command again: it begins anew."
        )
