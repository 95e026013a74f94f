"""
Score somebody else's images
============================

Images of any method, scored by the same code, with intervals, and compared image by image. All
that is needed is the images and what was seen.
"""

# %%
# Two methods
# -----------
#
# To have something to compare: the shipped decoder's images, and the same images blurred. In your
# case these are folders of PNGs named by image id, arrays with ids, or MindEye2's
# ``*_all_recons.pt`` (:doc:`/scores` lists what is read).

import json
from pathlib import Path
import tempfile

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from PIL import ImageFilter

from braingen.demo.quickstart import load_shipped, load_shipped_decoder

folder = Path(tempfile.mkdtemp())  # or a folder of yours
brains = load_shipped()
decoded = load_shipped_decoder(scheduler="unipc")(
    brains.voxels_BRV,
    subject=1,
    image_ids=brains.ids,
    num_inference_steps=8,
    guidance_scale=2.5,
    guidance_end=0.5,
).images
methods = {
    "decoder": decoded,
    "blurred": [picture.filter(ImageFilter.GaussianBlur(6)) for picture in decoded],
}
for name, pictures in methods.items():
    (folder / name).mkdir()
    for image, picture in zip(brains.ids, pictures):
        picture.save(folder / name / f"{image:06d}.png")
seen_N3HW = np.stack([np.asarray(picture).transpose(2, 0, 1) for picture in brains.seen])
np.savez(folder / "seen.npz", images=seen_N3HW, ids=brains.ids)

# %%
# Score
# -----
#
# Images are matched by id, never by order. What cannot be scored (a missing image, values outside
# [0, 1], an image of one colour) is refused with the ids in the message.

from braingen.cli import main

for name in methods:
    words = ["--all_recons_path", folder / name, "--true_images_path", folder / "seen.npz"]
    words += ["--folder", folder / "runs" / name, "--method", name, "--bootstrap", "500"]
    assert main(["evaluate", *map(str, words)]) == 0

# %%
# The networks that the field scores with (AlexNet, Inception, CLIP, ...) need their weights on this
# machine; those that are missing are listed with the line that gets them, and never left out
# silently.

tables = {
    name: pd.read_json(folder / "runs" / name / "scores.json", orient="index") for name in methods
}
pd.concat(tables, axis=1)[[(name, part) for name in methods for part in ("value", "low", "high")]]

# %%
# Compare
# -------
#
# ``braingen compare`` pairs the two methods image by image: difference, 95 % interval, permutation
# test, Holm's correction over all scores. With twelve images, differences have to be large.

runs = [str(folder / "runs" / name) for name in methods]
assert main(["compare", *runs, "--output", str(folder / "comparison")]) == 0

compared = json.loads((folder / "comparison" / "comparisons.json").read_text(encoding="utf-8"))
pd.DataFrame(compared)

# %%
# Blurring raises PixCorr: it rewards the mean of what may have been seen. This is why no single
# score decides (:doc:`/scores`, pitfalls). What the eye says:

figure, axes = plt.subplots(3, 6, figsize=(9, 4.8), layout="constrained")
for line, (title, pictures) in zip(axes, {"seen": brains.seen, **methods}.items()):
    line[0].set_ylabel(title)
    for axis, picture in zip(line, pictures):
        axis.imshow(picture)
        axis.set(xticks=[], yticks=[])
plt.show()
