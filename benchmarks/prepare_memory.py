"""Memory of `braingen prepare` with a large session: volumes of 91 x 109 x 91, a mask of 229 360
voxels.

    python benchmarks/prepare_memory.py --folder FOLDER [--volumes 250,1000] [--ending .nii]

Writes a session of random responses a volume at a time, runs `braingen prepare` on it in a process
of its own, and reads VmHWM (the largest resident set, mapped files included) and RssAnon (the
memory that the process has for itself, its maximum over readings every 20 ms) of that process.
"""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path
import shutil
import subprocess
import sys
import time

import nibabel
import numpy as np
import pandas as pd
from PIL import Image

SHAPE, PICTURES = (91, 109, 91), 20
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


def write_scans(root: Path, volumes: int, ending: str) -> int:
    """A session of so many single-trial responses, float32; returns the voxels of the mask."""
    rng = np.random.default_rng(0)
    names = [f"picture{number:02d}.png" for number in range(PICTURES)]
    (root / "stimuli").mkdir(parents=True)
    for name in names:
        pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "stimuli" / name)
    mask = np.zeros(SHAPE, dtype=bool)
    mask[15:76, 15:95, 20:67] = True
    folder = root / "sub-01" / "ses-01" / "func"
    folder.mkdir(parents=True)
    nibabel.save(nibabel.Nifti1Image(mask.astype(np.uint8), AFFINE), folder / "sub-01_mask.nii.gz")
    shown = rng.permutation(np.resize(np.arange(PICTURES), volumes))
    table = pd.DataFrame(
        {"onset": 4.0 * np.arange(volumes), "stim_file": [names[k] for k in shown]}
    )
    table.to_csv(folder / "sub-01_ses-01_events.tsv", sep="\t", index=False)
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.float32)
    header.set_data_shape((*SHAPE, volumes))
    header.set_sform(AFFINE, 2)
    header["magic"], header["vox_offset"] = b"n+1", 352
    path = folder / f"sub-01_ses-01_betas{ending}"
    with gzip.open(path, "wb", 1) if ending.endswith(".gz") else open(path, "wb") as file:
        header.write_to(file)
        file.write(bytes(352 - file.tell()))
        for _ in range(volumes):
            volume = np.zeros(SHAPE, np.float32)
            volume[mask] = rng.standard_normal(int(mask.sum()), dtype=np.float32)
            file.write(volume.tobytes(order="F"))
    return int(mask.sum())


def _status(pid: int) -> dict[str, float]:
    """VmHWM and RssAnon of a process in GB; empty when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return {}
    words = (line.split() for line in lines if line.startswith(("VmHWM", "RssAnon")))
    return {name.rstrip(":"): int(kilobytes) * 1024 / 1e9 for name, kilobytes, _ in words}


def measure(root: Path, data: Path) -> dict[str, float]:
    """Prepare a folder; largest readings and seconds."""
    command = [sys.executable, "-m", "braingen.cli", "prepare", "--scans", str(root)]
    started, greatest = time.monotonic(), {"VmHWM": 0.0, "RssAnon": 0.0}
    process = subprocess.Popen([*command, "--data_path", str(data), "--no-captions"])
    while process.poll() is None:
        found = _status(process.pid)
        greatest = {name: max(value, found.get(name, 0)) for name, value in greatest.items()}
        time.sleep(0.02)
    if process.returncode:
        sys.exit(process.returncode)
    return greatest | {"seconds": time.monotonic() - started}


def main() -> None:
    """Write, prepare and measure every size."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--volumes", default="250,1000")
    parser.add_argument("--ending", default=".nii", choices=(".nii", ".nii.gz"))
    chosen = parser.parse_args()
    rows = []
    for volumes in map(int, chosen.volumes.split(",")):
        root, data = chosen.folder / "scans", chosen.folder / "data"
        voxels = write_scans(root, volumes, chosen.ending)
        found = measure(root, data)
        rows.append({"volumes": volumes, "voxels": voxels, "ending": chosen.ending} | found)
        print(json.dumps(rows[-1]), flush=True)
        for folder in (root, data):
            shutil.rmtree(folder)
    (chosen.folder / "prepare_memory.json").write_text(
        json.dumps(rows, indent=1) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
