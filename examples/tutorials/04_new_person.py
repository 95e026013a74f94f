"""
Adapt to a new person
=====================

A new person comes for one session. An encoder trained on other people needs little of the new one:
a layer for their voxels, and the routers. Here this is compared with training from scratch.
"""

# %%
# Three simulated people
# ----------------------
#
# Subjects 1 and 2 have two sessions each; subject 3 is the new person. Their voxels differ in
# number, place and tuning; the images they saw differ too, except for the test images.

from pathlib import Path
import tempfile

import matplotlib.pyplot as plt
import pandas as pd
from PIL import Image

from braingen.config import load_config

folder = Path(tempfile.mkdtemp())  # or a folder of yours
settings = {
    "data.root": str(folder / "data"),
    "run.folder": str(folder / "run"),
    "run.tracker": "none",
    "data.subjects": "3",
    "simulation.num_subjects": "3",
    "simulation.num_sessions": "2",
    "simulation.trials_per_session": "240",
    "simulation.num_voxels": "400",
    "simulation.num_test_images": "40",
}
from braingen.simulation.dataset import simulate

simulate(load_config("simulated", settings))

# %%
# Pretrain, adapt, compare
# ------------------------
#
# ``braingen adaptation-curve`` does it all: it trains on subjects 1 and 2, starts from that for
# subject 3 (``routers``: subject layer and routers only), trains another encoder from scratch on
# the same session, and scores both on the test images. At full size: for 1 to 40 sessions. Ridge
# regression, which stands beside an encoder by default, is left out (``training.with_ridge``).

from braingen.experiments.adaptation_curve import adaptation_curve

config = load_config(
    "simulated",
    {
        **settings,
        "adaptation_curve.pretrain_on": "1,2",
        "adaptation_curve.sessions": "1",
        "adaptation_curve.ways": "routers,scratch",
        "adaptation_curve.seeds": "0",
        "encoder.hidden_dim": "128",
        "encoder.n_blocks": "1",
        "prior.depth": "1",
        "training.num_epochs": "12",
        "training.with_ridge": "no",
        "training.batch_size": "60",
        "evaluation.bootstrap": "500",
    },
)
table = adaptation_curve(config)

# %%
# How many parameters were trained, and what came of it. Intervals are over test images; one seed,
# so nothing is said about the spread between seeds (:doc:`/many_subjects` has three).

import json

curve = json.loads((table.parent / "curve.json").read_text(encoding="utf-8"))
for way, count in curve["parameters"].items():
    print(f"{way}: {count['trained']:,} of {count['total']:,} parameters ({count['share']:.0%})")
pd.DataFrame(curve["points"])

# %%

picture = Image.open(table.parent / "curve.png")
figure, axis = plt.subplots(figsize=(9, 9 * picture.height / picture.width), layout="constrained")
axis.imshow(picture)
axis.axis("off")
plt.show()

# %%
# The two ways are compared image by image, corrected for the number of comparisons:

pd.DataFrame(curve["differences"])

# %%
# By hand
# -------
#
# The same in two commands, for one person:
#
# .. code-block:: bash
#
#    braingen train image --config nsd_multi --multi_subject 2,5,7 --folder runs/others
#    braingen train image --init_from runs/others --subj 1 --num_sessions 1 \
#        --train_router_only --folder runs/new_person
