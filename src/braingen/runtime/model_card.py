"""The card of a saved model, written from what is known of its run: data and their terms, subjects,
voxel order, scores with n and intervals, limits, intended use, citation.

What is known (:class:`ModelFacts`) lies beside the weights in ``facts.json``; the card, README.md,
is written from it. A card that somebody has edited is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from braingen.runtime.errors import UserError
from braingen.runtime.files import write_json, write_text
from braingen.runtime.text_files import read_json
from braingen.runtime.untrusted import markdown_cell, one_line

FACTS, CARD = "facts.json", "README.md"
UNKNOWN = "not recorded"
SIMULATED, NSD = "simulated data", "NSD"
TERMS = {
    SIMULATED: (
        "Simulated by `braingen simulate`: no person took part, and scores are no statement about"
        " real brains."
    ),
    NSD: (
        "The Natural Scenes Dataset (Allen et al., *Nature Neuroscience* 2022), used under its"
        " terms ([naturalscenesdataset.org](https://naturalscenesdataset.org)), which whoever uses"
        " weights trained on it should accept too. Its images are from COCO. This repository holds"
        " no responses and no images of it."
    ),
}
OWN = (
    "Scans of the people who trained the model. Their terms, and what the participants consented"
    " to, are for them to state here. This repository holds no responses and no images."
)
BACKBONES = {
    "tiny": ("BrainGen's tiny backbone", "Apache-2.0"),
    "stabilityai/stable-diffusion-xl-base-1.0": (
        "Stable Diffusion XL base 1.0 (Podell et al., arXiv:2307.01952)",
        "CreativeML Open RAIL++-M",
    ),
}
"""backbone.path -> its name and licence."""
CITATION = """```
@inproceedings{wei2025morebrain,
  title = {{MoRE-Brain}: Routed Mixture of Experts for Interpretable and Generalizable
           Cross-Subject {fMRI} Visual Decoding},
  author = {Wei and others},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2025},
  note = {arXiv:2505.15946}
}
```"""
LIMITS = """- It decodes images that a person saw. It does not read thoughts or intentions, and it
  is not a medical device.
- It decodes only the subjects above, from responses in their voxel order and scaled as in
  training. Other people need an adaptation (`training.trained`,
  docs/many_subjects.md).
- Generated images look plausible also where decoding failed: the diffusion model adds details that
  the brain activity does not determine. Compare with random voxels and ridge regression.
- Decode only data of people who consented to it."""


class SubjectFacts(NamedTuple):
    """Whose voxels a model takes, and in which order."""

    subject: int
    voxels: int
    places: str = ""
    """What the columns are, for instance voxels of nsdgeneral.nii.gz in C order."""
    order_digest: str = ""
    """SHA-256 of the places in their order, 16 hexadecimal digits; equal for equal orders."""
    mask_sha256: str = ""
    """Digest of the mask, as in order.json of the data folder; empty without one."""


class ScoreFacts(NamedTuple):
    """One score of the run."""

    name: str
    title: str
    value: float
    low: float | None
    high: float | None
    """95 % interval over images."""
    n: int
    """Test images."""
    chance: float | None = None
    ridge: float | None = None
    random: float | None = None


class ModelFacts(NamedTuple):
    """What is known of a saved model."""

    kind: str
    """decoder, image encoder, text encoder, low-level path, encoding model."""
    architecture: str
    subjects: tuple[SubjectFacts, ...]
    data: str = ""
    """simulated data, NSD, or what `braingen prepare` calls own scans."""
    sessions: int | None = None
    """Sessions of every subject; 0 for all."""
    seed: int | None = None
    backbone: str = ""
    """``backbone.path`` of the run."""
    settings: Mapping[str, Any] = {}
    """Settings of the training that differ between runs, as ``section.field``."""
    scores: tuple[ScoreFacts, ...] = ()
    protocol: str = ""
    """Data, subject and sessions that the scores are of."""
    captions: int = 0
    """Captions of training images in the folder."""
    captions_of: str = ""
    """Which data they are from."""
    made: Mapping[str, str] = {}
    """Version and commit of BrainGen, date of the run."""

    def of_subject(self, subject: int) -> SubjectFacts | None:
        """Whatever is known of a subject."""
        return next((each for each in self.subjects if each.subject == subject), None)


def as_json(facts: ModelFacts) -> dict[str, Any]:
    """Facts as plain JSON values."""
    return {
        **facts._asdict(),
        "subjects": [each._asdict() for each in facts.subjects],
        "scores": [each._asdict() for each in facts.scores],
        "settings": dict(facts.settings),
        "made": dict(facts.made),
    }


def facts_in(folder: Path) -> ModelFacts | None:
    """Facts that lie beside a saved model; None where there are none.

    Raises
    ------
    UserError
        When the file is damaged.
    """
    path = folder / FACTS
    if not path.is_file():
        return None
    stored = read_json(path, "save the model again")
    try:
        stored = dict(stored)
        stored.pop("card_sha256", None)
        return ModelFacts(
            **{
                **stored,
                "subjects": tuple(SubjectFacts(**each) for each in stored["subjects"]),
                "scores": tuple(ScoreFacts(**each) for each in stored["scores"]),
            }
        )
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(f"{path} holds no facts of a model ({error}); save it again.") from error


def write_card(folder: Path, facts: ModelFacts, name: str = "", beside: Path | None = None) -> None:
    """Write facts.json and README.md; a README.md that was edited, or is another, is kept.

    Parameters
    ----------
    name : str, optional
        By which it will be loaded; empty for the folder.
    beside : Path | None, optional
        Folder whose files these will replace; None for the folder itself.
    """
    text, before = card_text(facts, name or str(folder)), folder if beside is None else beside
    digest = hashlib.sha256(text.encode()).hexdigest()
    written = {**as_json(facts), "card_sha256": digest}
    path, own = before / CARD, folder / FACTS
    if path.exists() and own.is_file() and read_json(own) == json.loads(json.dumps(written)):
        return
    if not path.exists() or _digest(path) == _written(before):
        write_text(folder / CARD, text)
    write_json(own, written)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _written(folder: Path) -> str:
    """Digest of the card as it was written here; empty if none was."""
    path = folder / FACTS
    return str(read_json(path).get("card_sha256", "")) if path.is_file() else ""


def card_text(facts: ModelFacts, name: str) -> str:
    """The card as Markdown with its metadata on top.

    Parameters
    ----------
    name : str
        Hub name or folder, by which it is loaded in the example.
    """
    tags = ["braingen", "fmri", "neuroscience", "brain-decoding"]
    if facts.data == SIMULATED:
        tags.append("simulated")
    data = ModelCardData(
        library_name="braingen",
        license=license_of(facts),
        tags=tags,
        model_name=name.rstrip("/").rpartition("/")[2] or "model",
        eval_results=[
            EvalResult(
                task_type="other",
                task_name="Decoding of seen images from fMRI",
                dataset_type=facts.data.replace(" ", "-").lower() or "unknown",
                dataset_name=facts.protocol or facts.data or UNKNOWN,
                metric_type=each.name,
                metric_name=each.title,
                metric_value=each.value,
            )
            for each in facts.scores
        ]
        or None,
    )
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_body(facts, name)}")
    return str(card).rstrip("\n") + "\n"


def license_of(facts: ModelFacts) -> str:
    """The hub's identifier of the licence of the weights."""
    shared = facts.kind != "decoder" or facts.backbone == "tiny"
    if shared and facts.data == SIMULATED:
        return "apache-2.0"
    if facts.kind == "decoder" and "stable-diffusion-xl" in facts.backbone:
        return "openrail++"
    return "other"


def _body(facts: ModelFacts, name: str) -> str:
    simulated = " of a **simulated** person" if facts.data == SIMULATED else ""
    sections = [
        (
            "",
            f"# {one_line(name.rstrip('/').rpartition('/')[2])}\n\nA BrainGen {facts.kind}"
            f" (`{facts.architecture}`):"
            f" {_PURPOSE.get(facts.kind, 'part of a decoder')}{simulated}.",
        ),
        ("Use", _use(facts, name)),
        ("Data and their terms", _data(facts)),
        ("Subjects and voxel order", _subjects(facts)),
        ("Training", _training(facts)),
        ("Scores", _scores(facts)),
        ("Intended use", _INTENDED),
        ("Limits", LIMITS),
        ("Weights of others", _weights(facts)),
        ("Citation", f"Cite MoRE-Brain and BrainGen.\n\n{CITATION}"),
    ]
    return "\n\n".join(f"## {title}\n\n{text}" if title else text for title, text in sections)


_PURPOSE = {
    "decoder": "it reconstructs seen images from fMRI responses",
    "image encoder": "it predicts CLIP image embeddings from fMRI responses",
    "text encoder": "it predicts CLIP text embeddings from fMRI responses",
    "low-level path": "it predicts a coarse image (VAE latents) from fMRI responses",
    "encoding model": "it predicts fMRI responses from images",
}
_INTENDED = (
    "Research on visual representations in the brain and on decoding methods: to reproduce scores,"
    " to compare methods, to adapt to further subjects who consented."
)


def _use(facts: ModelFacts, name: str) -> str:
    first = facts.subjects[0] if facts.subjects else SubjectFacts(1, 0)
    if facts.kind == "encoding model":
        lines = [
            "from braingen import EncodingModel",
            "",
            f'model = EncodingModel.from_pretrained("{name}")',
            "responses_NV = model.predict(features)  # band -> images x features",
        ]
    elif facts.kind == "decoder":
        lines = [
            "from braingen import BrainDecoder",
            "",
            f'decoder = BrainDecoder.from_pretrained("{name}")',
            f"decoded = decoder.decode(voxels, subject={first.subject})"
            f"  # trials x {first.voxels} voxels, z-scored",
            "decoded.images, decoded.captions, decoded.routing, decoded.uncertainty",
        ]
    else:
        kind = "LatentEncoder" if facts.kind == "low-level path" else "EmbeddingDecoder"
        lines = [
            f"from braingen import {kind}",
            "",
            f'model = {kind}.from_pretrained("{name}").eval()',
            f"output = model(voxels_BV, subject={first.subject})"
            f"  # a tensor, trials x {first.voxels} voxels, z-scored",
        ]
    return "```python\n" + "\n".join(lines) + "\n```\n\nInstall BrainGen first (its README)."


def _data(facts: ModelFacts) -> str:
    terms = TERMS.get(facts.data, OWN) if facts.data else f"The data are {UNKNOWN}."
    sessions = "" if facts.sessions is None else _sessions(facts.sessions)
    found = f"{terms}{sessions}"
    if facts.captions:
        whose = f" of {facts.captions_of}" if facts.captions_of else ""
        source = " (COCO's annotations, CC BY 4.0)" if facts.captions_of == NSD else ""
        found += (
            f"\n\n`captions/` holds the captions of {facts.captions} training images{whose}"
            f"{source}, of which the nearest is returned with every decoded image."
        )
    return found


def _sessions(count: int) -> str:
    return (
        "\n\nTrained on all sessions of every subject."
        if not count
        else f"\n\nTrained on the first {count} sessions of every subject."
    )


def _subjects(facts: ModelFacts) -> str:
    lines = [
        "| subject | voxels | columns | order digest | mask SHA-256 |",
        "| ---: | ---: | --- | --- | --- |",
    ]
    for each in facts.subjects:
        cells = (each.places or UNKNOWN, each.order_digest or UNKNOWN, each.mask_sha256 or UNKNOWN)
        lines.append(
            f"| {each.subject} | {each.voxels} | " + " | ".join(map(markdown_cell, cells)) + " |"
        )
    return "\n".join(lines) + (
        "\n\nResponses must have these columns in this order. With `data_root=` the decoder"
        " compares the order of a data folder with the digest and refuses another."
    )


def _training(facts: ModelFacts) -> str:
    rows = [
        *((f"`{name}`", value) for name, value in facts.settings.items()),
        ("seed", UNKNOWN if facts.seed is None else facts.seed),
        *facts.made.items(),
    ]
    lines = ["| setting | value |", "| --- | --- |"]
    lines += [f"| {name} | {markdown_cell(value)} |" for name, value in rows]
    return "\n".join(lines)


def _scores(facts: ModelFacts) -> str:
    if not facts.scores:
        return (
            "No scores are recorded. `braingen evaluate` scores a run; give the run folder when"
            " uploading (docs/hub.md)."
        )
    lines = [
        "| score | value | 95 % interval | n | chance | ridge | random voxels |",
        "| --- | ---: | :---: | ---: | ---: | ---: | ---: |",
    ]
    for each in facts.scores:
        interval = (
            "" if each.low is None or each.high is None else f"{each.low:.3f} to {each.high:.3f}"
        )
        beside = ("" if x is None else f"{x:.3f}" for x in (each.chance, each.ridge, each.random))
        lines.append(
            f"| {markdown_cell(each.title)} | {each.value:.3f} | {interval} | {each.n} | "
            + " | ".join(beside)
            + " |"
        )
    protocol = f"{markdown_cell(facts.protocol)}. " if facts.protocol else ""
    return (
        "\n".join(lines)
        + f"\n\n{protocol}Test images were used for these scores and for nothing else. Intervals"
        " are over images (n)."
    )


def _weights(facts: ModelFacts) -> str:
    if facts.kind != "decoder":
        return (
            "None: the weights are BrainGen's own. What it predicts are embeddings of"
            f" {_backbone(facts)[0]}."
        )
    name, licence = _backbone(facts)
    return (
        f"U-Net, autoencoder and noise schedule: {name}, licence: {licence}. The IP-Adapter (Ye et"
        " al., arXiv:2308.06721) is Apache-2.0. Encoders, priors, routers and LoRA are of this"
        " training."
    )


def _backbone(facts: ModelFacts) -> tuple[str, str]:
    if facts.backbone in BACKBONES:
        return BACKBONES[facts.backbone]
    return (one_line(facts.backbone) or f"a backbone that is {UNKNOWN}"), "see its own card"
