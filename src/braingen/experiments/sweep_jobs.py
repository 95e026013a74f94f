"""Where the combinations of a sweep run: processes of this command, or jobs of submitit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import os
from pathlib import Path
import subprocess
import sys
import time
from typing import Any

from braingen.config import Config
from braingen.experiments.sweep_point import (
    FAILED,
    FINISHED,
    STOPPED,
    PointResult,
    SweepJob,
    result_of,
)
from braingen.runtime.console import Progress
from braingen.runtime.files import write_json
from braingen.runtime.text_files import read_json
from braingen.runtime.untrusted import one_line

JOB, JOBS = "job.json", "jobs"
_POLL_SECONDS = 0.2


def run_points(config: Config, folder: Path, points: Sequence[Path]) -> list[PointResult]:
    """Run combinations that have not finished; failed ones are tried again.

    Parameters
    ----------
    folder : Path
        Of the sweep.
    points : Sequence[Path]
        Folders of the combinations.

    Returns
    -------
    list[PointResult]
        How each one ended.
    """
    waiting = [point for point in points if not _finished(point)]
    with Progress() as progress:
        bar = progress.add_task("combinations", total=len(points))
        progress.update(bar, completed=len(points) - len(waiting))

        def ended() -> None:
            progress.advance(bar)

        if waiting and config.sweep.cluster == "none":
            _run_here(config, waiting, ended)
        elif waiting:
            _run_by_submitit(config, folder, waiting, ended)
    return [
        result_of(point) or PointResult(FAILED, 0.0, "", "it left no result") for point in points
    ]


def _finished(point: Path) -> bool:
    result = result_of(point)
    return result is not None and result.state == FINISHED


def _run_here(config: Config, points: Sequence[Path], ended: Callable[[], None]) -> None:
    """Run combinations in processes, at most ``sweep.jobs`` at once."""
    count = min(config.sweep.jobs, len(points))
    devices, free = _devices(config), list(range(count))
    remaining, running = list(points), dict[subprocess.Popen[bytes], tuple[Path, int]]()
    try:
        while remaining or running:
            while remaining and free:
                slot, point = free.pop(0), remaining.pop(0)
                environment = {**os.environ, **_share(count)}
                if devices and count > 1:
                    environment["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
                process = subprocess.Popen(
                    [sys.executable, "-m", "braingen.experiments.sweep_point", str(point)],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,  # Ctrl-C reaches this process, which passes it on
                )
                running[process] = (point, slot)
            time.sleep(_POLL_SECONDS)
            for process in [each for each in running if each.poll() is not None]:
                point, slot = running.pop(process)
                free.append(slot)
                _note_crash(point, process.returncode)
                ended()
                result = result_of(point)
                if result is not None and result.state == STOPPED:
                    remaining.clear()  # a signal meant for all of them
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()


def _note_crash(point: Path, code: int) -> None:
    """Write a result where the process could not."""
    if code not in (0, 1) and result_of(point) is None:
        result = PointResult(FAILED, 0.0, "", f"its process ended with code {code}")
        write_json(point / "result.json", result._asdict())


def _share(count: int) -> dict[str, str]:
    """Threads of a process where several share the processors."""
    if count == 1 or "OMP_NUM_THREADS" in os.environ:
        return {}
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return {"OMP_NUM_THREADS": str(max(1, cores // count))}


def _devices(config: Config) -> list[str]:
    """Names of the GPUs that this process sees, for one combination each."""
    if config.run.device == "cpu":
        return []
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES", ""):
        return visible.split(",")
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def _run_by_submitit(
    config: Config, folder: Path, points: Sequence[Path], ended: Callable[[], None]
) -> None:
    """Run combinations as jobs; those of an interrupted sweep that still run are waited for."""
    import submitit

    chosen = config.sweep
    executor = submitit.AutoExecutor(folder=folder / JOBS, cluster=chosen.cluster)
    parameters: dict[str, object] = {"timeout_min": chosen.minutes, "name": "braingen-sweep"}
    if chosen.cluster == "slurm":
        parameters |= {
            "gpus_per_node": chosen.gpus,
            "cpus_per_task": chosen.cpus,
            "mem_gb": chosen.memory_gb,
            "slurm_array_parallelism": chosen.jobs,
        }
        if chosen.partition:
            parameters["slurm_partition"] = chosen.partition
    executor.update_parameters(**parameters)
    at_once = chosen.jobs if chosen.cluster == "local" else len(points)
    for start in range(0, len(points), at_once):
        some = points[start : start + at_once]
        jobs: dict[Path, Any] = {
            point: _running_job(point, folder, chosen.cluster) for point in some
        }
        new = [point for point, job in jobs.items() if job is None]
        if new:
            submitted = executor.map_array(SweepJob(), [str(point) for point in new])
            for point, job in zip(new, submitted):
                jobs[point] = job
                write_json(point / JOB, {"job": job.job_id, "cluster": chosen.cluster})
        for point, job in jobs.items():
            try:
                job.result()
            except Exception as error:  # of submitit: the job was killed, or its node failed
                result = PointResult(FAILED, 0.0, "", f"job {job.job_id}: {one_line(error, 300)}")
                if result_of(point) is None:
                    write_json(point / "result.json", result._asdict())
            (point / JOB).unlink(missing_ok=True)
            ended()


def _running_job(point: Path, folder: Path, cluster: str) -> Any | None:
    """The job of a combination that an interrupted sweep submitted and that has not ended."""
    import submitit

    path = point / JOB
    noted = read_json(path) if path.is_file() else {}
    if cluster != "slurm" or noted.get("cluster") != "slurm":
        return None
    job: Any = submitit.SlurmJob(folder=folder / JOBS, job_id=str(noted["job"]), tasks=[0])
    return None if job.done() else job
