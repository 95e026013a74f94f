"""
Decode your first brain
=======================

From a person's responses to the image that this person saw, in about twenty lines. The decoder and
the responses of a simulated subject are installed with BrainGen; nothing is downloaded.
"""

# %%
# Responses
# ---------
#
# :func:`~braingen.demo.quickstart.load_shipped` gives the responses to twelve test images, each of
# which was shown three times, and the images themselves. A response is one number per voxel:
# z-scored, as :doc:`/data` describes.

import matplotlib.pyplot as plt
import numpy as np
import torch

from braingen.demo.quickstart import load_shipped, load_shipped_decoder

brains = load_shipped()
print("images x presentations x voxels:", tuple(brains.voxels_BRV.shape))
print("the first image:", brains.captions[0])

# %%
# Two presentations of one image do not give the same response, for the noise is strong: as strong
# as in the Natural Scenes Dataset. Averaging over the three presentations helps.

first, second, _ = brains.voxels_BRV[0]
other = brains.voxels_BRV[1, 0]
print(f"same image, shown twice: r = {np.corrcoef(first, second)[0, 1]:.2f}")
print(f"two different images:    r = {np.corrcoef(first, other)[0, 1]:.2f}")

# %%
# Decode
# ------
#
# The decoder is a diffusers pipeline, :class:`~braingen.generation.pipeline.BrainDecoder`: voxels
# in, images out. Two encoders predict CLIP embeddings from the voxels, one of the image and one of
# its caption. A diffusion model generates an image from both.

decoder = load_shipped_decoder(scheduler="unipc")
output = decoder(
    brains.voxels_BRV, subject=1, num_inference_steps=8, guidance_scale=2.5, guidance_end=0.5
)

figure, axes = plt.subplots(4, 6, figsize=(9, 6.4), layout="constrained")
for number, (seen, generated) in enumerate(zip(brains.seen, output.images)):
    row, column = 2 * (number // 6), number % 6
    for axis, picture in ((axes[row, column], seen), (axes[row + 1, column], generated)):
        axis.imshow(picture)
        axis.set(xticks=[], yticks=[])
for row, title in enumerate(("seen", "decoded", "seen", "decoded")):
    axes[row, 0].set_ylabel(title)
plt.show()

# %%
# Is it the image that was seen?
# ------------------------------
#
# Images that look right to the eye are weak evidence. So ask: among the twelve images, is the one
# that was seen nearest to the decoded embedding? Chance is 1 in 12.

from braingen.config.shipped import TINY
from braingen.targets.clip_image import CLIPImageEncoder

clip = CLIPImageEncoder.from_pretrained(str(TINY), dtype=torch.float32)
pixels_B3HW = torch.stack(
    [torch.from_numpy(np.asarray(picture) / 255).permute(2, 0, 1) for picture in brains.seen]
)
true_BTD = clip(pixels_B3HW.float()).target_BTD
mean_TD = decoder.brain_image.mean_TD  # of the training images, which all embeddings have in common
decoded_BD, true_BD = (
    torch.nn.functional.normalize((x - mean_TD).flatten(1), dim=1)
    for x in (output.decoded.image_BTD, true_BTD)
)
nearest = (decoded_BD @ true_BD.T).argmax(1)
print(f"the seen image is the nearest for {(nearest == torch.arange(12)).sum()} of 12")

# %%
# The control
# -----------
#
# A generative model makes an image of anything. The same decoder, with random voxels:

random = torch.randn(6, 1, 2000, generator=torch.Generator().manual_seed(0))
control = decoder(
    random, subject=1, num_inference_steps=8, guidance_scale=2.5, guidance_end=0.5
).images
figure, axes = plt.subplots(1, 6, figsize=(9, 1.7), layout="constrained")
for axis, picture in zip(axes, control):
    axis.imshow(picture)
    axis.set(xticks=[], yticks=[])
axes[0].set_ylabel("random voxels")
plt.show()

# %%
# These are images too, of nothing that anybody saw. This is why the table of ``braingen evaluate``
# has columns for random voxels (``braingen reconstruct --random_fmri`` generates their images),
# ridge regression and chance (:doc:`/scores`).
#
# The twelve images are test images. The scores of all 120 are in :doc:`/cards/quickstart`.
