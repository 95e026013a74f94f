"""Settings of evaluation: metrics, comparisons, curves, human evaluation, interpretability."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from braingen.config.effect import Needs, given
from braingen.config.values import Folder, NotNegative, Positive, Section, Share

PRETRAINED_HERE = Needs("training.init_from", None)
"""Without an earlier run, other subjects are trained on first."""


class EvaluationConfig(Section):
    """Evaluation."""

    bootstrap: Positive = 2000
    """Resamples of the images for the 95 % intervals."""
    retrieval_pool: Positive = 300
    """Candidates in a retrieval; all test images when there are fewer (published: 300)."""
    retrieval_draws: Positive = 30
    """Seeded draws of the candidates (published: 30)."""
    all_recons_path: str = ""
    """Score these images instead of the run's own: a folder of PNGs named by image id, or an
    array with ids (docs/scores.md).
    """
    true_images_path: Annotated[str, Needs("all_recons_path", given())] = ""
    """The seen images, in the same forms; empty takes MindEye2's all_images.pt beside the
    reconstructions, else the data folder's.
    """
    method: str = "BrainGen"
    """Name of the method in tables and comparisons."""
    feature_weights: str = ""
    """Folder with the weights of comparison networks; empty looks in the usual caches."""
    published_networks: bool = False
    """Apply the field's networks to simulated images too; to photographs they are always
    applied.
    """
    strict: bool = False
    """A comparison network, or a word list, that is not on this machine is an error instead of a
    note.
    """
    partial: Annotated[bool, Needs("all_recons_path", given())] = False
    """Score the images that have a reconstruction when some have none (with all_recons_path)."""


class CompareConfig(Section):
    """Comparison of evaluated runs."""

    runs: tuple[str, ...] = ()
    """Evaluated run folders; those whose settings differ in nothing but subject and seed are one
    method.
    """
    output: Folder = Path("runs/comparison")
    """Folder of comparisons.json, comparisons.csv, summary.csv and comparison.md; RUN/comparison is
    shown on the page of RUN.
    """


class AdaptationCurveConfig(Section):
    """Decoding of a new subject against sessions of data, with and without pretraining on others
    (MoRE-Brain's figure 9).
    """

    pretrain_on: Annotated[tuple[Positive, ...], Field(min_length=1), PRETRAINED_HERE] = (1, 2, 3)
    """Subjects of the pretraining, with all their sessions; data.subjects is the new subject."""
    pretrain_epochs: Annotated[NotNegative, PRETRAINED_HERE] = 0
    """Passes over their trials; 0 for training.num_epochs."""
    sessions: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1, 4, 10, 20, 40)
    """Sessions of the new subject (paper: 1, 4, 10, 20, 40); more than there are means all."""
    ways: Annotated[
        tuple[Literal["routers", "subject", "all", "scratch"], ...], Field(min_length=1)
    ] = ("routers", "all", "scratch")
    """What is trained for the new subject: subject layer and routers, the subject layer,
    everything, or everything from scratch without others.
    """
    modality: Literal["image", "text"] = "image"
    """Which encoder."""
    seeds: Annotated[tuple[NotNegative, ...], Field(min_length=1)] = (0, 1, 2)
    """Everything is done once per seed, pretraining included."""


class BottleneckConfig(Section):
    """Scores against the width of a bottleneck after the subject layer (BrainBits; MoRE-Brain's
    figure 4).
    """

    bottleneck_dims: Annotated[tuple[Positive, ...], Field(min_length=1)] = (
        16,
        32,
        64,
        128,
        256,
        512,
    )
    """Widths; for the default experts at least 16."""
    seeds: Annotated[tuple[NotNegative, ...], Field(min_length=1)] = (0,)
    """Every width is trained once per seed; with images, one seed."""
    generate: bool = False
    """Generate and score images too, from image and text encoder together; else only the image
    encoder's embeddings are scored.
    """


class CrossValidationConfig(Section):
    """Cross-validation of data sets too small for a test set: every image is left out once
    (docs/data.md).
    """

    folds: Annotated[int, Field(ge=2)] = 10
    """Groups of images; an encoder is trained for each, without its images."""
    subjects: tuple[Positive, ...] = ()
    """Numbers of the subjects; empty for all of the scans."""
    modality: Literal["image", "text"] = "image"
    """Which encoder; text needs captions."""


class HumanEvalConfig(Section):
    """Human evaluation (docs/human_eval.md)."""

    study_folder: str = ""
    """Folder of the study: consent text, pages for raters, result files, analysis; empty for
    <run.folder>/study.
    """
    method_a: str = ""
    """Reconstructions to evaluate: a folder of PNGs named by image id, or an array with ids;
    empty for the run's own.
    """
    method_b: str = ""
    """A second set to compare with, of any kind that method_a may be; empty for none, and then
    there is no preference task.
    """
    name_a: str = ""
    """Name of the first method in results; empty for the name of its folder. Raters never
    see it.
    """
    name_b: Annotated[str, Needs("method_b", given())] = ""
    """The same for the second."""
    seen: str = ""
    """The seen images, as for method_a; empty for those of data.root."""
    tasks: Annotated[
        tuple[Literal["identification", "preference", "similarity"], ...], Field(min_length=1)
    ] = ("identification", "preference", "similarity")
    """Questions, in this order: which was seen? which method is nearer? how alike? Identification
    first: the others show what was seen.
    """
    study_images: Annotated[int, Field(ge=4)] = 40
    """Test images sampled for the study (40: 90 questions with one method, 175 with two, checks
    included).
    """
    per_rater: NotNegative = 0
    """Images of a rater in every task, sampled for each rater; 0 for all."""
    checks: Annotated[int, Field(ge=2)] = 5
    """Attention checks in every task: trials whose answer is obvious."""
    failed_checks: NotNegative = 1
    """Attention checks a rater may fail in all; with more the rater is excluded."""
    image_side: NotNegative = 0
    """Side of the images in pixels, the same for all; 0 for the largest there is, at most 512."""
    draft: bool = False
    """Build with an incomplete consent text, for testing; pages and results are marked."""
    raters: Positive = 5
    """Simulated raters of `human-eval simulate`."""
    lapse: Share = 0.1
    """Share of the trials that a simulated rater answers at random."""
    rater_features: Literal["pixels", "scene_classifier"] = "pixels"
    """What a simulated rater compares: pixels, or late features of the scene classifier (simulated
    images only).
    """


class InterpretConfig(Section):
    """Interpretability of a decoder (docs/interpret.md)."""

    steps: tuple[
        Literal[
            "attributions",
            "patterns",
            "tuning",
            "experts",
            "components",
            "saliency",
            "ablation",
            "routers",
            "page",
        ],
        ...,
    ] = (
        "attributions",
        "patterns",
        "tuning",
        "experts",
        "components",
        "saliency",
        "ablation",
        "routers",
        "page",
    )
    """What to do, in this order; components and saliency take up finished attributions. Finished
    maps are never computed again.
    """
    modality: Literal["image", "text"] = "image"
    """Whose decoding is explained: the image encoder's or the text encoder's."""
    about: str = "target"
    """What is attributed: target (length along the true embedding), cosine (with it), embedding
    (length along what was decoded), label (the image's own class), label:NAME (one class for all
    images), caption (the image's first) or caption:TEXT (text encoder only).
    """
    parts: tuple[str, ...] = ("all",)
    """Parts to attribute: all, whole, levels, experts, or names such as level-0 and
    level-3-expert-5.
    """
    method: Literal["integrated_gradients", "gradient_shap"] = "integrated_gradients"
    """integrated_gradients: from zero, every voxel's mean; gradient_shap: from responses to
    training images (MoRE-Brain's paper).
    """
    points: Positive = 64
    """Points between baseline and image (integrated gradients; encoders bend sharply near zero), or
    draws (GradientSHAP).
    """
    baselines: Annotated[Positive, Needs("method", "gradient_shap")] = 128
    """Training images whose responses are GradientSHAP's baselines."""
    num_images: NotNegative = 0
    """Explain only the first n test images; 0 for all."""
    nifti_images: NotNegative = 0
    """Also write the maps of the first n images as NIfTI, one file each."""
    labels: str = ""
    """CSV with a column image and one per kind of label (several labels of an image joined by ;);
    simulated images have theirs without.
    """
    grouping: str = "supercategory"
    """Kind of label that categories mean: a column of labels; simulated: supercategory, object,
    colour, background or position.
    """
    atlases: tuple[Folder, ...] = ()
    """Atlas or ROI volumes (NIfTI, whole numbers) in the subject's functional space; the data
    folder's own are always used.
    """
    surface: tuple[str, ...] = ()
    """Also plot the whole decoder's map on a surface: fsaverage5 where the volumes are
    in MNI space; where they are in the subject's own space, the subject's own meshes, one file a
    hemisphere (lh.pial,rh.pial; GIFTI or FreeSurfer; {subject} is subj01).
    """
    field_of_view: Annotated[float, Field(gt=0)] = 8.4
    """Width of the image in degrees of visual angle (NSD: 8.4)."""
    components: Positive = 32
    """Independent components of the maps (MoRE-Brain's paper: 32); at most a quarter of the images
    are found.
    """
    permutations: Positive = 2000
    """Permutations of images for the p values of expert profiles."""
    draws: Positive = 20
    """Random sets of voxels, each as large as the region, that are ablated for comparison."""
    ablation_images: NotNegative = 4
    """Generate the first n images with levels and regions ablated, where both encoders are trained;
    0 for none.
    """
