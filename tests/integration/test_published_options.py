"""Every option of the published description acts: one is changed at a time, and weights, pictures
or scores differ; or it is refused in a sentence, never dropped.

The commands run under their published names, at sizes at which nothing is learnt.
"""

from __future__ import annotations

from collections.abc import Callable
import hashlib
import json
from pathlib import Path
import re
import runpy
import sys
from typing import NamedTuple

import pytest
from safetensors.torch import load_file
from unit.fake_backbone import write_fake_backbone
from unit.told_commands import ROOT

from braingen.cli import main

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # of diffusers' scheduler
DATA = [
    "simulation.num_subjects=2",
    "simulation.num_sessions=2",
    "simulation.trials_per_session=30",
    "simulation.num_voxels=60",
]
DATA += ["simulation.num_test_images=3"]
JOB = (
    "backbone.path=backbone backbone.image_encoder= backbone.ip_adapter= backbone.refiner="
    " encoder.hidden_dim=32 encoder.n_blocks=1 encoder.exp_factor_list=2 prior.depth=1"
    " training.num_epochs=1 training.batch_size=12 finetune.max_train_steps=1"
    " finetune.validation_images=2 finetune.resolution=32 finetune.train_batch_size=2"
    " finetune.gradient_accumulation_steps=1 finetune.lr_warmup_steps=0 generation.size=32"
    " generation.steps=2 refinement.steps=4 refinement.strength=0.5 evaluation.bootstrap=20"
    " run.device=cpu run.tracker=none"
)
TRAINED = {
    "subj": "--subj 2",
    "multi_subject": "--multi_subject",
    "num_sessions": "--num_sessions 1",
    "hidden_dim": "--hidden_dim 48",
    "n_blocks": "--n_blocks 2",
    "use_prior": "--no-use_prior",
    "batch_size": "--batch_size 6",
    "num_exp_0": "--num_exp_0 4",
    "exp_factor_list": "--exp_factor_list 2,2",
    "capacity_factor_0": "--capacity_factor_0 0.5",
    "bottleneck_dim": "--b_size 16",
    "seed": "--seed 7",
    "num_epochs": "--num_epochs 2",
    "lr": "--lr 0.01",
    "max_lr": "--max_lr 0.02",
    "weight_decay": "--weight_decay 0.5",
    "mixup_pct": "--mixup_pct 0",
    "prior_scale": "--prior_scale 3",
    "clip_scale": "--clip_scale 7",
    "cos_scale": "--cos_scale 9",
    "prior_clip_scale": "--prior_clip_scale 5",
    "mse_scale": "--mse_scale 4",
    "temp_coeff": "--temp_coeff 20",
    "mixed_precision": "--mixed_precision bf16",
}
"""Option of Train.py and Train_text.py -> how it is changed."""
TUNED = {
    "rank": "--rank 4",
    "snr_gamma": "--snr_gamma 0.1",
    "route_image": "--no-route_image",
    "route_text": "--no-route_text",
    "batch_size": "--batch_size 1",
    "lr": "--lr 0.01",
    "max_train_steps": "--max_train_steps 2",
    "model_name_image": "--model_name_image runs/other",
    "seed": "--seed 7",
}
DRAWN = {
    "guidance_scale": "--guidance_scale 2",
    "num_inference_steps": "--num_inference_steps 3",
    "negative_prompt": "--negative_prompt blurry",
    "random_fmri": "--random_fmri",
    "ip_adapter_scale": "--ip_adapter_scale 0.1",
    "model_name_image": "--model_name_image runs/other --finetuned no",
    "seed": "--seed 7",
    "use_text": "--no-use_text",
}
REFINED = {
    "strength": "--strength 1",
    "guidance_scale": "--guidance_scale 1.5",
    "num_inference_steps": "--num_inference_steps 8",
}
REFUSED = {
    "blurry_recon": ("Train.py", "--blurry_recon", "blurry_recon|low_level"),
    "a typo": ("Train.py", "--hiden_dim 3", "Did you mean hidden_dim"),
    "train_router_only": ("Train.py", "--train_router_only", "name a trained run with --init_from"),
    "two choices of subjects": ("Train.py", "--subj 1 --multi_subject 2", "both set data.subjects"),
    "nowhere": ("final_evaluations.py", "--all_recons_path nowhere", "nowhere"),
}


class Place(NamedTuple):
    """A folder with data/NSD and the models of the defaults."""

    folder: Path
    script: Callable[[str, str], int]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("options")

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_fake_backbone(folder / "backbone", with_clip=True)
        assert main(["simulate", *DATA]) == 0  # into data/NSD, the default
        patch.setenv("BRAINGEN_SET", JOB)

        def script(name: str, words: str) -> int:
            patch.setattr(sys, "argv", [name, *words.split()])
            with pytest.raises(SystemExit) as ended:
                runpy.run_path(str(ROOT / "scripts" / name), run_name="__main__")
            return ended.value.code

        for line in (
            "Train.py",
            "Train_text.py",
            "Finetune_diffusion.py",
            "Recon_inference.py",
            "Recon_inference_refiner.py",
        ):
            assert script(line, "") == 0
        assert script("Train.py", "--model_name runs/other --seed 3") == 0
        yield Place(folder, script)


def weights(folder: Path) -> dict[str, str]:
    """Name of every weight below a folder -> shape and digest of its values."""
    found = {}
    for file in sorted(folder.rglob("*.safetensors")):
        for name, tensor in load_file(file).items():
            key = f"{file.relative_to(folder)}/{name}"
            found[key] = (
                f"{tuple(tensor.shape)}"
                f" {hashlib.sha256(tensor.float().numpy().tobytes()).hexdigest()}"
            )
    assert found, folder
    return found


def pictures(folder: Path) -> dict[str, str]:
    found = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.png")
    }
    assert len(found) == 3, folder
    return found


@pytest.mark.parametrize("option", TRAINED)
def test_an_option_of_training_changes_the_weights(place, option):
    name = f"trained_{option}"
    assert place.script("Train.py", f"--model_name {name} {TRAINED[option]}") == 0
    assert weights(place.folder / name / "image" / "embedding_decoder") != weights(
        place.folder / "runs/nsd_subj01/image/embedding_decoder"
    )


def test_the_same_options_are_those_of_the_text_encoder(place):
    for option in ("prior_scale", "mixup_pct", "bottleneck_dim"):
        words = TRAINED[option].replace("--mixup_pct 0", "--mixup_pct 1")
        assert place.script("Train_text.py", f"--model_name text_{option} {words}") == 0
        assert weights(place.folder / f"text_{option}/text/embedding_decoder") != weights(
            place.folder / "runs/nsd_subj01/text/embedding_decoder"
        )


def test_training_from_others_moves_subject_layer_and_routers_alone(place):
    words = "--model_name routers --subj 2 --train_router_only --multisubject_ckpt runs/nsd_subj01"
    assert place.script("Train.py", words) == 0
    before, after = (
        load_file(next((place.folder / run).rglob("*.safetensors")))
        for run in ("runs/nsd_subj01/image/embedding_decoder", "routers/image/embedding_decoder")
    )
    moved = {name for name in after if name in before and not before[name].equal(after[name])}
    found_anew = ("confidence.", "linear.encoder_weight", "linear.prior_weight")
    moved = {name for name in moved if not name.startswith(found_anew)}  # on held-out images
    assert moved and all("router" in name for name in moved)


@pytest.mark.parametrize("option", TUNED)
def test_an_option_of_fine_tuning_changes_lora_or_routers(place, option):
    name = f"tuned_{option}"
    words = TUNED[option]
    for modality in ("image", "text"):
        if f"model_name_{modality}" not in words:
            words += f" --model_name_{modality} runs/nsd_subj01"
    assert place.script("Finetune_diffusion.py", f"--model_name {name} {words}") == 0
    assert weights(place.folder / name / "finetune" / "last") != weights(
        place.folder / "runs/nsd_subj01/finetune/last"
    )


@pytest.mark.parametrize("option", DRAWN)
def test_an_option_of_reconstruction_changes_the_pictures(place, option):
    name = f"drawn_{option}"
    words = DRAWN[option]
    for modality in ("image", "text"):
        if f"model_name_{modality}" not in words:
            words += f" --model_name_{modality} runs/nsd_subj01"
    assert (
        place.script(
            "Recon_inference.py", f"--model_name {name} finetune=runs/nsd_subj01/finetune {words}"
        )
        == 0
    )
    source = "random" if option == "random_fmri" else "brain"
    now = pictures(place.folder / name / "reconstructions" / source)
    assert now != pictures(place.folder / "runs/nsd_subj01/reconstructions/brain")


@pytest.mark.parametrize("option", REFINED)
def test_an_option_of_refinement_changes_the_pictures(place, option):
    output = place.folder / f"refined_{option}"
    assert place.script("Recon_inference_refiner.py", f"--output {output} {REFINED[option]}") == 0
    assert pictures(output) != pictures(
        place.folder / "runs/nsd_subj01/reconstructions/brain_refined"
    )


def test_all_recons_path_says_which_pictures_are_scored(place):
    found = {}
    for source in ("brain", "brain_refined"):
        words = (
            f"--model_name scored_{source} --all_recons_path"
            f" runs/nsd_subj01/reconstructions/{source}"
        )
        assert place.script("final_evaluations.py", words) == 0
        found[source] = json.loads((place.folder / f"scored_{source}" / "scores.json").read_text())
    assert found["brain"]["pixcorr"]["value"] != found["brain_refined"]["pixcorr"]["value"]


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_act_is_told(place, what, capsys):
    script, words, sentence = REFUSED[what]
    assert place.script(script, f"--model_name refused {words}") == 2
    assert re.search(sentence, capsys.readouterr().err)
