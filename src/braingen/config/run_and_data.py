"""Settings of a run, of its data and of its preparation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from braingen.config.effect import Needs, above
from braingen.config.values import Factor, Folder, NotNegative, Positive, Precision, Scale, Section


class RunConfig(Section):
    """Where results go and how the machine is used."""

    folder: Folder = Path("runs/demo")
    """Folder of everything a run writes."""
    image: Folder | None = None
    """Run folder of the trained image encoder; <folder>/image when empty."""
    text: Folder | None = None
    """Run folder of the trained text encoder; <folder>/text when empty."""
    finetune: Folder | None = None
    """Run folder of the fine-tuning; <folder>/finetune when empty."""
    encoding: Folder | None = None
    """Run folder of the encoding models; <folder>/encoding when empty."""
    low_level: Folder | None = None
    """Run folder of the low-level path; <folder>/low_level when empty."""
    seed: NotNegative = 0
    """Seed of everything random (initial weights, batches, noise, bootstrap)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto takes a GPU when there is one."""
    mixed_precision: Precision = "auto"
    """Number format while training; auto is fp16 on a GPU (published implementation) and float32 on
    a CPU.
    """
    tf32: bool = True
    """Let a GPU multiply float32 matrices in TF32: several times faster, 10 bits instead of 23
    (MindEye2: yes); no effect on a CPU.
    """
    tracker: Literal["tensorboard", "wandb", "none"] = "tensorboard"
    """Where learning curves are sent, besides metrics.jsonl."""
    processes: NotNegative = 0
    """Processes in which `braingen demo` works, one thread each; 0 for one per core, two at most.
    Other commands: accelerate launch.
    """
    save_minutes: Factor = 10.0
    """Minutes between saves of a training; after an epoch of an encoder a save may come sooner."""


SHARE_OF_NAMED_IMAGES = 0.75
"""Share of synthetic trials where their images are given and the share is not: of 0, 0.25, 0.5 and
0.75 the one that held-out images chose with one and with three sessions
(docs/experiments/encoding_model.md).
"""


class DataConfig(Section):
    """Which data."""

    root: Folder = Path("data/NSD")
    """Folder in the layout that MindEye2 distributes (docs/data.md)."""
    subjects: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1,)
    """Subjects to train on, or the one to reconstruct (the first)."""
    num_sessions: NotNegative = 0
    """Use the first n sessions of every subject; 0 for all."""
    holdout_share: Annotated[float, Field(gt=0, lt=0.5)] = 0.08
    """Share of the training *images* held out to choose the checkpoint; test images are never used
    for it.
    """
    synthetic_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of stage 1's trials that are synthetic: responses that an encoding model of the
    training trials predicts to images that the subject has not seen, with its noise
    (docs/encoding_models.md). Where ``synthetic_images`` is given and the share is not, it is 0.75,
    which held-out images chose (docs/experiments/encoding_model.md).
    """
    synthetic_images: Annotated[str, Needs("synthetic_share", above(0))] = ""
    """Folder of those images; empty for the training images of the data folder's other
    subjects.
    """
    test_set: Annotated[
        Literal["default", "nsdsynthetic", "nsdimagery_vision", "nsdimagery_imagery"],
        Field(exclude=True),
    ] = "default"
    """Test images that prepare writes, and reconstruct and evaluate use: those of the data folder
    (NSD: shared1000), or a sealed set of NSD beside it, which no other command takes
    (docs/data.md).
    """

    @model_validator(mode="before")
    @classmethod
    def _named_images_are_used(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("synthetic_images"):
            return {"synthetic_share": SHARE_OF_NAMED_IMAGES, **given}
        return given


class SimulationConfig(Section):
    """The simulated NSD (docs/simulation.md); defaults are the demo's size."""

    world: Literal["demo", "hard"] = "demo"
    """demo: rendered scenes of one or two objects; hard: scenes of two to four of 120 kinds of
    objects without pictures, features in their place, for comparing encoders
    (--config simulated_hard is its standard size).
    """
    num_subjects: Positive = 1
    """Simulated subjects."""
    num_sessions: Positive = 5
    """Sessions per subject (NSD: 30-40)."""
    trials_per_session: Positive = 750
    """Presentations per session (NSD: 750)."""
    num_voxels: Positive = 2000
    """Voxels in nsdgeneral of subject 1; further subjects differ a little (NSD:
    12682-17907).
    """
    num_test_images: Positive = 120
    """Test images shared by all subjects, each seen three times (NSD: 1000)."""
    noise: Scale = 1.0
    """Noise as a multiple of NSD's."""
    seed: NotNegative = 0
    """Seed of images, brains and noise."""


NSD_SCANS, OWN_SCANS = Needs("prepare.kind", "auto", "nsd"), Needs("prepare.kind", "auto", "own")


class PrepareConfig(Section):
    """Scans to the working layout (docs/data.md)."""

    scans: Folder | None = None
    """Folder with the raw release of NSD, or with scans of your own under BIDS-style names."""
    kind: Literal["auto", "nsd", "own"] = "auto"
    """What it holds; auto: NSD when there is a folder nsddata or nsddata_betas in it."""
    mask: str = ""
    """Voxels that are kept. NSD: a region volume, with labels or names or without
    (prf-visualrois:1,2, prf-visualrois:V1, V1); own scans: a mask's label, or 'all'; or a file
    (NIfTI, .npy). Empty for nsdgeneral, or the mask without a label.
    """
    mask_above: Annotated[float | None, OWN_SCANS] = None
    """Own scans: a voxel is inside a mask whose value is above this; empty for 0, and 0.5 where a
    mask is soft (values between 0 and 1).
    """
    order: Literal["C", "F"] = "C"
    """In which order the voxels of a mask are written: last axis of the volume fastest (C), or
    first (F); order.json records it.
    """
    betas: Annotated[str, NSD_SCANS] = "betas_fithrf_GLMdenoise_RR"
    """Which of NSD's betas (MindEye2: GLMsingle's)."""
    coco: Annotated[Folder | None, NSD_SCANS, Needs("captions", True)] = None
    """Folder with COCO's captions_train2017.json and captions_val2017.json; empty looks for
    <scans>/annotations.
    """
    captions: bool = True
    """Write captions."""
    test_images: Annotated[Folder | None, OWN_SCANS] = None
    """Own scans: file with the test images, one stim_file a line; empty for the column `split` of
    the events, or else test_share.
    """
    test_share: Annotated[float, Field(gt=0, lt=1), OWN_SCANS, Needs("test_images", None)] = 0.1
    """Own scans: share of the images taken for testing, by their names, where nothing else chooses
    them.
    """
    zscore: Literal["auto", "session", "subject", "none"] = "auto"
    """Over which training trials responses are z-scored: those of the session, those of all
    sessions of the subject, or not at all; auto takes the session where every session has 20
    training trials, else the subject, and none below 5. NSD: session.
    """
    space: str = ""
    """NSD: func1pt8mm (empty) or fsaverage. Own scans: the space- whose responses and masks are
    taken, where there are several.
    """
    task: Annotated[str, OWN_SCANS] = ""
    """Own scans: the task- whose events and responses are taken."""
    desc: Annotated[str, OWN_SCANS] = ""
    """Own scans: the desc- whose responses are taken."""
    stat: Annotated[str, OWN_SCANS] = ""
    """Own scans: the stat- whose maps are taken (effect)."""
    entities: Annotated[tuple[str, ...], OWN_SCANS] = ()
    """Own scans: further entities that choose responses, as key-value (res-2, den-32k)."""
    responses: Annotated[str, OWN_SCANS] = ""
    """Own scans: folder, or pattern of paths, below scans, of the responses that are taken, where
    there are several (derivatives/glmsingle).
    """
    dataset: Annotated[str, OWN_SCANS] = ""
    """Own scans: name of the dataset with the responses in HDF5 and .npz files; empty for betas, or
    the only one that fits.
    """
    trials: Annotated[Folder | None, OWN_SCANS] = None
    """Own scans: one table of all trials (CSV, TSV, Parquet: subject, session, trial, image,
    split), instead of events.tsv.
    """
    stimulus_column: Annotated[str, OWN_SCANS] = "stim_file"
    """Own scans: column of the events that names the image."""
    stimuli: Annotated[Folder | None, OWN_SCANS] = None
    """Own scans: folder of the images; empty for <scans>/stimuli."""
    ground: Annotated[str, OWN_SCANS] = "grey"
    """Own scans: background colour of transparent images."""
    trial_type: Annotated[tuple[str, ...], OWN_SCANS] = ()
    """Own scans: values of trial_type that are taken; empty for all."""
    bad_trials: Annotated[Literal["leave_out", "keep"], OWN_SCANS] = "leave_out"
    """Own scans: trials that a column bad, exclude or reject marks."""
    one_back: Annotated[Literal["keep", "leave_out"], OWN_SCANS] = "keep"
    """Own scans: trials that show the image of the trial before."""
    accept: Annotated[tuple[Literal["time_series", "labels", "copies"], ...], OWN_SCANS] = ()
    """Own scans: responses that are taken although they look like a time series, have
    whole-numbered columns like labels, or are equal in several trials.
    """


class PrecomputeConfig(Section):
    """Outputs of frozen models, computed once (docs/data.md)."""

    what: Annotated[tuple[Literal["image", "text", "latents"], ...], Field(min_length=1)] = (
        "image",
        "text",
        "latents",
    )
    """CLIP embeddings of images, states of the text encoders for captions, VAE latents."""
    images: Literal["used", "all"] = "used"
    """Images of the subjects' trials, training and test, or every image of the image file."""
    batch_size: Positive = 64
    """Images at once; a quarter of it for latents, which take more memory."""


class DoctorConfig(Section):
    """Check of data, backbones and machine."""

    output: Literal["text", "json"] = "text"
    """What is printed: a list for people, or JSON for scripts."""
    checksums: bool = False
    """Also compare the files of a prepared folder with the checksums they were written with (reads
    all of them).
    """
