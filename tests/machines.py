"""Unit and parity tests as other processors would run them: fewer instruction sets, other numbers
of threads.

    python tests/machines.py            every machine below (make test-machines)
    python tests/machines.py --fast     what .ci/run takes: the oldest instructions, parity and
                                        numerics alone
    python tests/machines.py --only avx2-1 -- -k moe  one of them, with arguments for pytest

PyTorch's own kernels, oneDNN's and MKL's obey these variables. They are read when torch is loaded,
so every machine is a process of its own, and nothing here or in a conftest.py sets them otherwise.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
import re
import subprocess
import sys
import time
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
WHOLE = ("tests/parity", "tests/unit")
NUMERICS = (
    "tests/parity",
    *(
        f"tests/unit/test_{name}.py"
        for name in (
            "backbone",
            "conditioning",
            "diffusion_loss",
            "expert_router",
            "experts",
            "identify",
            "lora",
            "losses",
            "moe",
            "parcels",
            "pixel",
            "prior",
            "ridge",
            "sample",
            "sinusoids",
            "space_router",
            "subject_layer",
            "time_router",
        )
    ),
)


class Machine(NamedTuple):
    """Restrictions that stand for a processor."""

    name: str
    threads: int
    instructions: dict[str, str]
    """Environment variables."""


OLD = {
    "ATEN_CPU_CAPABILITY": "default",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
}
AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}
MACHINES = tuple(
    Machine(f"{name}-{threads}", threads, instructions)
    for name, instructions in (("default", OLD), ("avx2", AVX2), ("this", {}))
    for threads in (1, 2)
)


class Outcome(NamedTuple):
    """How the tests went."""

    code: int
    summary: str
    seconds: float


def run(machine: Machine, arguments: list[str]) -> Outcome:
    """Run pytest under the restrictions of a machine; its output goes to the terminal."""
    kept = {name: value for name, value in os.environ.items() if name not in OLD}
    threads = dict.fromkeys(
        ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(machine.threads)
    )
    threads["OMP_WAIT_POLICY"] = "PASSIVE"  # a thread that waits leaves its core to others
    workers = max(1, (os.cpu_count() or 1) // machine.threads)
    spread = ["-n", str(workers)] if workers > 1 else ["-n", "0"]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *spread, *arguments]
    started, lines = time.monotonic(), [""]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env={**kept, **machine.instructions, **threads},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.strip())
    found = [line for line in lines if re.search(r"\d+ (passed|failed|error)", line)]
    return Outcome(
        process.returncode,
        found[-1].strip("= ") if found else lines[-1],
        time.monotonic() - started,
    )


def main() -> int:
    """Run the machines that were asked for and print a table; 1 if any test failed on any
    of them.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--fast", action="store_true", help="the oldest instructions alone, parity and numerics"
    )
    parser.add_argument(
        "--only", nargs="*", choices=[machine.name for machine in MACHINES], help="these machines"
    )
    parser.add_argument("pytest", nargs="*", help="arguments for pytest, after --")
    asked = parser.parse_args()
    machines = (
        MACHINES[:1]
        if asked.fast
        else [machine for machine in MACHINES if not asked.only or machine.name in asked.only]
    )
    paths = (
        []
        if any(Path(word.split("::")[0]).exists() for word in asked.pytest)
        else list(NUMERICS if asked.fast else WHOLE)
    )
    outcomes = {}
    for machine in machines:
        print(
            f"--- {machine.name}: {machine.threads} threads,"
            f" {machine.instructions or 'every instruction there is'}",
            flush=True,
        )
        outcomes[machine.name] = run(machine, [*paths, *asked.pytest])
    for name, (code, summary, seconds) in outcomes.items():
        print(f"{name:<12}{'ok' if code == 0 else 'FAILED':<8}{seconds:6.0f} s  {summary}")
    return int(any(outcome.code for outcome in outcomes.values()))


if __name__ == "__main__":
    raise SystemExit(main())
