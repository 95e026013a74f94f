"""
Your own scans
==============

From files as a lab has them to a trained encoder. The scans in this tutorial are made up; put your
own folder in their place. :doc:`/data` describes every form that is read.
"""

# %%
# What a lab has
# --------------
#
# Per subject a mask, and per session one response estimate per trial (from GLMsingle, for
# instance; from time series they are estimated first, :doc:`/data/fmriprep`) with a table that says
# which image was shown in which trial. And the images.

from pathlib import Path
import tempfile

import matplotlib.pyplot as plt
import nibabel
import numpy as np
import pandas as pd
from PIL import Image

folder = Path(tempfile.mkdtemp())  # or a folder of yours
scans, data, run = folder / "scans", folder / "data", folder / "run"
rng = np.random.default_rng(0)
affine = np.diag([2.0, 2.0, 2.0, 1.0])
names = [f"picture{number:02d}.png" for number in range(40)]
(scans / "stimuli").mkdir(parents=True)
for name in names:
    noise = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((64, 64)).save(scans / "stimuli" / name)

subject = scans / "sub-01"
subject.mkdir()
mask = rng.random((10, 12, 8)) < 0.3
nibabel.save(nibabel.Nifti1Image(mask.astype(np.uint8), affine), subject / "sub-01_mask.nii.gz")
signal = {name: rng.normal(0, 1, int(mask.sum())) for name in names}
for session in (1, 2):
    shown = rng.permutation(names * 2)
    events = pd.DataFrame(
        {"onset": 4.0 * np.arange(len(shown)), "duration": 3.0, "stim_file": shown}
    )
    volume = np.zeros((*mask.shape, len(shown)), dtype=np.float32)
    for trial, name in enumerate(shown):
        volume[mask, trial] = signal[name] + rng.normal(0, 1.5, int(mask.sum()))
    stem = subject / f"ses-{session:02d}" / "func" / f"sub-01_ses-{session:02d}_task-look"
    stem.parent.mkdir(parents=True)
    events.to_csv(f"{stem}_events.tsv", sep="\t", index=False)
    nibabel.save(nibabel.Nifti1Image(volume, affine), f"{stem}_betas.nii.gz")

for path in sorted(scans.rglob("sub-*.*")):
    print(path.relative_to(scans))
events.head(3)

# %%
# Prepare
# -------
#
# ``braingen prepare`` pairs responses with events, masks, z-scores and checks them, and writes a
# data folder. What does not fit is refused with a sentence that says what to change. Commands are
# called here by :func:`braingen.cli.main`; in a terminal it is ``braingen prepare --config
# own_scans --data_path data --model_name run --scans scans --no-captions``.

from braingen.cli import main

where = ["--config", "own_scans", "--data_path", str(data), "--model_name", str(run)]
assert main(["prepare", *where, "--scans", str(scans), "--no-captions"]) == 0

# %%
# The summary says how reliable the responses are: two presentations of the same image should
# correlate more than those of different images. If they do not, events and responses are probably
# shifted against each other, and no training will help.
#
# ``braingen doctor`` looks at the data, the models and the machine, and says what is missing.

main(["doctor", *where, "--device", "cpu"])

# %%
# A voxel's place in the head
# ---------------------------
#
# A data folder knows where its voxels are: a map of one number per voxel becomes a volume in the
# subject's space, and back.

from braingen.data.betas import Betas
from braingen.data.volumes import load_places
from braingen.runtime.data_layout import Layout

layout = Layout.of(data)
betas, places = Betas.of(layout, 1), load_places(layout, 1)
response = betas.rows(np.arange(1))[0]
places.write(folder / "response.nii.gz", response)
volume = nibabel.load(folder / "response.nii.gz").get_fdata()
figure, axes = plt.subplots(1, 8, figsize=(9, 1.8), layout="constrained")
for z, axis in enumerate(axes):
    axis.imshow(volume[:, :, z], cmap="RdBu_r", vmin=-3, vmax=3)
    axis.set(xticks=[], yticks=[], title=f"slice {z}")
plt.show()

# %%
# Train
# -----
#
# Small data: the checkpoint is chosen by cross-validation, and only the image encoder is trained,
# since these images have no captions.

small = ["encoder.hidden_dim=32", "prior.depth=1", "training.num_epochs=4", "--tracker", "none"]
assert main(["train", "image", *where, *small, "--device", "cpu"]) == 0

# %%
# Next: ``braingen reconstruct``, ``evaluate`` and ``report`` with the same words.
# :doc:`/data/nifti` has all lines to type for scans like these, says what each of them writes, and
# names the models for photographs: ``own_scans`` uses the small ones that are installed with the
# package, which were trained on simulated scenes. Data sets too small for a test set go through
# ``braingen cross-validate``. Other forms (GLMsingle, fMRIPrep, arrays, surfaces) have pages of
# their own in :doc:`/howto`.
