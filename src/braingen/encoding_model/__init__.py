"""Encoding models: from image features to voxels, and back.

features, energy  feature spaces of images, the bands
responses         averages over presentations, noise ceiling
banded_ridge      bands -> voxels, in closed form
noise             covariance of what is not explained
model             all of it, for one person
library           responses -> embeddings, by a library of images
pictures          the images of a library
voxel_space       voxel embeddings in a space that people share
train, run        the command, and trained models for later stages
"""

from braingen.encoding_model.model import EncodingModel

__all__ = ["EncodingModel"]
