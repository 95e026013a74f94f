"""
Train on a simulated subject
============================

The whole pipeline, small: simulate a subject, train both encoders, generate images, score them. The
demo (``braingen demo``) does the same at a size at which images are good.
"""

# %%
# Settings
# --------
#
# A configuration that ships, ``simulated``, and what is different here. Every setting is in
# :doc:`/settings`; on a command line the same is written ``--config simulated
# simulation.num_sessions=4 ...``.

from pathlib import Path
import tempfile

import matplotlib.pyplot as plt
import pandas as pd
from PIL import Image

from braingen.config import load_config

folder = Path(tempfile.mkdtemp())  # or a folder of yours
config = load_config(
    "simulated",
    {
        "data.root": str(folder / "data"),
        "run.folder": str(folder / "run"),
        "run.tracker": "none",
        "simulation.num_sessions": "3",
        "simulation.trials_per_session": "240",
        "simulation.num_voxels": "800",
        "simulation.num_test_images": "16",
        "encoder.hidden_dim": "128",
        "encoder.n_blocks": "1",
        "prior.depth": "1",
        "training.num_epochs": "10",
        "training.with_ridge": "no",
        "generation.random_draws": "1",
        "evaluation.bootstrap": "500",
    },
)

# %%
# A subject with known truth
# --------------------------
#
# ``braingen simulate`` writes a data folder in the layout of the Natural Scenes Dataset: images,
# captions, the table of trials, responses, region masks. :doc:`/simulation` says how responses
# arise.

from braingen.simulation.dataset import simulate

simulate(config)

# %%
# Train
# -----
#
# Stage 1: an encoder from voxels to CLIP's image embedding, and one to its text embedding. A share
# of the training images is held out to choose the checkpoint; test images are not touched. By
# default ridge regression stands beside an encoder, and with so few trials it would be used alone;
# ``training.with_ridge`` is off here, so that what is trained is seen.

from braingen.training.encoder import train

for modality in ("image", "text"):
    train(config, modality)

figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
for modality in ("image", "text"):
    history = pd.read_json(folder / "run" / modality / "metrics.jsonl", lines=True)
    axis.plot(history["epoch"], history["validation/cosine"], label=f"{modality} encoder")
axis.set(xlabel="epoch", ylabel="cosine with the true embedding\n(held-out images)")
axis.legend()
plt.show()

# %%
# Generate and score
# ------------------
#
# Images from the responses, from random voxels, and from the true embeddings (the oracle: the best
# that this generator could do).

from braingen.config.load import with_settings
from braingen.evaluation.evaluate import evaluate
from braingen.generation.reconstruct import reconstruct

for source in ("brain", "random", "oracle"):
    reconstruct(with_settings(config, "generation", {"source": source}))
evaluate(config)

scores = pd.read_json(folder / "run" / "scores.json", orient="index")
scores[["value", "low", "high", "random", "oracle", "ridge", "chance", "n"]].astype(float).round(3)

# %%
# ``low`` and ``high`` are the 95 % interval over images. With some 600 training trials and seconds
# of training, ridge regression is hard to beat: look at its column before believing in an encoder.
#
# The best and the worst images of the run, beside what was seen:

picture = Image.open(folder / "run" / "best_and_worst.png")
figure, axis = plt.subplots(figsize=(9, 9 * picture.height / picture.width), layout="constrained")
axis.imshow(picture)
axis.axis("off")
plt.show()

# %%
# ``braingen report`` makes one HTML page of all this, and the folder ``run`` holds every number
# behind it (:doc:`/pipeline`).
