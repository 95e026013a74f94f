"""
Look inside
===========

What does each level of experts contribute, when during the denoising is it used, and which voxels
does an expert receive? With the shipped decoder of a simulated subject.
"""

# %%
# Levels of experts
# -----------------
#
# The encoder is a hierarchy: 2, then 4, 8 and 16 experts. Each level predicts the embedding by
# itself, and the encoder's output is their mean. So one can generate from one level alone.

import matplotlib.pyplot as plt
import numpy as np
import torch

from braingen.demo.quickstart import load_shipped, load_shipped_decoder

brains = load_shipped()
decoder = load_shipped_decoder(scheduler="unipc")
some = slice(0, 4)
ids = brains.ids[some]
with torch.no_grad():
    read = decoder.decode_embeddings(brains.voxels_BRV[some], 1, ids, experts=True)
print("experts per level:", read.image.counts)

# %%

options = {"steps": 5, "guidance_scale": 2.5, "guidance_end": 0.5}
rows = {"seen": [np.asarray(picture) / 255 for picture in brains.seen[some]]}
for level in (0, 1, 2, 3, None):
    images_B3HW = decoder.generate(read.image, read.text, ids, level=level, **options)
    title = "all levels" if level is None else f"level {level} alone"
    rows[title] = list(images_B3HW.permute(0, 2, 3, 1).numpy())

figure, axes = plt.subplots(len(rows), 4, figsize=(6, 9), layout="constrained")
for line, (title, pictures) in zip(axes, rows.items()):
    line[0].set_ylabel(title)
    for axis, picture in zip(line, pictures):
        axis.imshow(picture)
        axis.set(xticks=[], yticks=[])
plt.show()

# %%
# Experts differ from each other in what they say of the same image. The cosine of their outputs,
# level 2, averaged over the images:

level = torch.nn.functional.normalize(read.image.by_level[2].flatten(2), dim=2)
alike = (level @ level.transpose(1, 2)).mean(0)
figure, axis = plt.subplots(figsize=(4.5, 3.6), layout="constrained")
shown = axis.imshow(alike, cmap="viridis", vmin=0, vmax=1)
axis.set(xlabel="expert", ylabel="expert", title="similarity of the experts of level 2")
figure.colorbar(shown, label="cosine")
plt.show()

# %%
# Which voxels an expert receives
# -------------------------------
#
# :func:`~braingen.interpret.experts.voxel_selectivity` follows every voxel through the subject
# layer and the routers, and gives the share of its weights that each expert receives.

from braingen.interpret.experts import voxel_selectivity

levels = voxel_selectivity(decoder.brain_image, 1, brains.voxels_BRV[:, 0])
figure, axes = plt.subplots(1, 4, figsize=(9, 2.6), layout="constrained", sharey=True)
for number, (axis, selectivity) in enumerate(zip(axes, levels)):
    strongest_V = selectivity.share_EV.max(0)
    axis.hist(strongest_V, bins=30)
    axis.axvline(1 / len(selectivity.share_EV), color="black", linestyle="--")
    axis.set(title=f"level {number}", xlabel="largest share of an expert")
axes[0].set_ylabel("voxels")
plt.show()

# %%
# The dashed line is an even split: a voxel to its right has an expert that it mostly goes to.
#
# Which voxels the decoded image rests on
# ---------------------------------------
#
# Integrated gradients (captum) share the decoded embedding out among the voxels: how much every
# voxel adds to its length along its own direction. The sum over the voxels is the whole, up to an
# error that is always given.

from braingen.interpret.attribution import Explainer, Query
from braingen.interpret.readout import Readout

readout = Readout(decoder.brain_image, subject=1)
voxels_BV = brains.voxels_BRV[some].mean(1)
with torch.no_grad():
    target_BF = torch.nn.functional.normalize(read.image.output_BTD.flatten(1), dim=1)
explain = Explainer(readout, "integrated_gradients", steps=64)
found = explain(Query(np.asarray(ids), voxels_BV, target_BF))
for image, value, error in zip(ids, found.value_B.tolist(), found.error_B.tolist()):
    print(f"image {image}: explained value {value:.1f}, error of the map {error:+.2f}")

# %%
# An attribution is a claim, and ablation tests it: set the voxels with the largest contributions to
# their mean, 0, and decode again. As many voxels drawn by chance are the control.

order_BV = found.map_BV.argsort(descending=True)
by_chance_BV = torch.rand(voxels_BV.shape, generator=torch.Generator().manual_seed(0)).argsort()
counts = [0, 50, 100, 200, 400, 800]
figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
for title, ranked_BV in (("largest contributions", order_BV), ("by chance", by_chance_BV)):
    left = []
    for count in counts:
        ablated_BV = voxels_BV.scatter(1, ranked_BV[:, :count], 0.0)
        with torch.no_grad():
            left.append(float((readout(ablated_BV, target_BF) / found.value_B).mean()))
    axis.plot(counts, left, marker="o", label=title)
axis.axhline(0, color="black", linewidth=0.8)
axis.set(xlabel="ablated voxels, of 2000", ylabel="explained value that is left")
axis.legend()
plt.show()

# %%
# And where do these voxels lie? The areas of a simulated cortex are known.

from braingen.demo.quickstart import load_shipped_brain

regions = load_shipped_brain().regions
mean_V = found.map_BV.mean(0).numpy()
shares = {name: mean_V[inside_V].sum() / mean_V.sum() for name, inside_V in regions.items()}
figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
axis.bar(list(shares), list(shares.values()))
axis.axhline(0, color="black", linewidth=0.8)
axis.set_ylabel("share of the explained value")
axis.tick_params(axis="x", rotation=45)
plt.show()

# %%
# ``braingen interpret`` does this for all test images and parts of a run, writes the maps as NIfTI,
# compares them with regions, and gives intervals (:doc:`/interpret`).
