"""Any folder of the form is checked: other sizes, seeds and settings pass, wrong numbers and
unknown kinds fail.

The other numbers come from encoders written out plainly (tests/unit/published_models.py). That
these compute what the published code computes is shown by its recorded gradients, to which their
float64 gradients are as near as float32 rounding allows.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cases import Case, entries, formula_weights, handlers, is_declined, read_case
import numpy as np
import pytest
from safetensors.torch import save_file
from test_parity import difference
from test_parity import test_case as check
import torch
from torch import Tensor
from unit.published_models import Mixer, MultiLevel, Ridge, Text, lively

WITH_GRADIENTS = [
    entry
    for entry in entries()
    if entry["kind"] == "BrainMoEMulti" and "grad_weight_backbone" in entry["in"]
]


def plain(args: dict[str, Any]) -> MultiLevel:
    """The plainly written encoder that the arguments of an entry describe."""
    depth = args["num_exp_layer"]
    return MultiLevel(
        args["num_voxels_list"],
        args["hidden_dim"],
        args["n_blocks"],
        args["clip_seq_dim"],
        args["clip_emb_dim"],
        [args["num_exp_0"], *args["exp_factor_list"][:depth]],
        [args["capacity_factor_0"], *args["cap_fac_list"][:depth]],
        bottleneck=max(0, args.get("b_size", -1)),
    )


def gradients(model: MultiLevel, case: Case) -> dict[str, Tensor]:
    """Of the weighted sum of both outputs, in the type of the model's weights."""
    dtype = model.ridge.linears[0].weight.dtype
    given = {name: torch.from_numpy(value.copy()) for name, value in case.inputs.items()}
    places = range(len(model.ridge.linears))
    found = [model(given[f"voxel_{place}"][:, 0].to(dtype), place) for place in places]
    backbone, clip = (torch.cat(parts) for parts in zip(*found))
    (
        (backbone * given["grad_weight_backbone"]).sum() + (clip * given["grad_weight_clip"]).sum()
    ).backward()
    return {
        f"grad/{name}": parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


AMPLIFIED = 2.0**-13
"""Bound of the noise in a declined gradient beside its largest entry: half a digit of float32,
2**-24, amplified 2**11 times by layer norms over a single number (measured: 323 times at most, over
three kinds of kernels).
"""


@pytest.mark.parametrize("entry", WITH_GRADIENTS, ids=[entry["case"] for entry in WITH_GRADIENTS])
@pytest.mark.slow
def test_declined_gradients_are_rounding_noise(entry: dict[str, Any]) -> None:
    """In float64 the plain encoder and ours agree, and every recorded float32 gradient lies around
    them: the declined ones within amplified rounding, the others within the entry's tolerance. No
    float32 kernel of this machine takes part.
    """
    case = read_case(entry)
    exact = plain(case.spec["constructor"]).double().eval()
    exact.load_state_dict(
        {name: torch.from_numpy(value.copy()) for name, value in case.state.items()}
    )
    wanted = {name: gradient.numpy() for name, gradient in gradients(exact, case).items()}
    arrays = {
        name: value.astype(np.float64) if value.dtype == np.float32 else value
        for name, value in case.inputs.items()
    }
    doubled = Case(
        case.spec,
        {name: value.astype(np.float64) for name, value in case.state.items()},
        arrays,
        case.outputs,
    )
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        ours = handlers()[case.kind](doubled)
    finally:
        torch.set_default_dtype(default)
    declined = [name for name in case.outputs if is_declined(case.name, case.kind, name)]
    assert declined
    for name, gradient in wanted.items():
        if name in ours:
            np.testing.assert_allclose(ours[name], gradient, rtol=1e-7, atol=1e-9, err_msg=name)
        if name in declined:
            noise = np.abs(case.outputs[name] - gradient).max()
            assert 0 < noise <= AMPLIFIED * np.abs(gradient).max(), name
        elif name in case.outputs:
            assert difference(gradient, case.outputs[name], case.spec["tolerance"], name) == ""


def written(folder: Path, entry: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Write a folder of one case; the entry is completed from the tensors."""
    save_file(
        {name: value.detach().contiguous().clone() for name, value in tensors.items()},
        folder / "case.safetensors",
    )
    for group in ("in", "out"):
        names = [name.partition("/")[2] for name in tensors if name.startswith(f"{group}/")]
        entry[group] = {
            name: {"shape": list(tensors[f"{group}/{name}"].shape), "meaning": ""} for name in names
        }
    entry = {
        "case": "other",
        "file": "case.safetensors",
        "mode": "eval",
        "tolerance": {"rtol": 1e-4, "atol": 1e-5},
        **entry,
    }
    (folder / "manifest.json").write_text(json.dumps({"cases": [entry]}))
    return entry


MULTI = {
    "two subjects, tokens, odd capacities": {
        "num_voxels_list": [9, 14],
        "hidden_dim": 30,
        "n_blocks": 3,
        "clip_emb_dim": 6,
        "clip_seq_dim": 3,
        "num_exp_0": 3,
        "capacity_factor_0": 1.3,
        "num_exp_layer": 2,
        "exp_factor_list": [2, 2, 7],
        "cap_fac_list": [1, 1.5, 1],
        "b_size": -1,
    },
    "bottleneck, one more level than listed in the others": {
        "num_voxels_list": [12],
        "hidden_dim": 21,
        "n_blocks": 1,
        "clip_emb_dim": 10,
        "clip_seq_dim": 1,
        "num_exp_0": 2,
        "capacity_factor_0": 1,
        "num_exp_layer": 4,
        "exp_factor_list": [1, 2, 2, 2],
        "cap_fac_list": [1, 1, 1, 1],
        "b_size": 32,
    },
}


@torch.no_grad()
def other_multi(folder: Path, name: str, training: bool = False) -> dict[str, Any]:
    """A case of MoRE-Brain's encoder at other sizes; with `training`, routers add the recorded
    noise.
    """
    args = MULTI[name]
    model = lively(plain(args), seed=len(name))
    generator = torch.Generator().manual_seed(7)
    voxels = [
        torch.randn(2 + place, 1, count, generator=generator)
        for place, count in enumerate(args["num_voxels_list"])
    ]
    rows = sum(len(x) for x in voxels)
    factors = [args["num_exp_0"], *args["exp_factor_list"][: args["num_exp_layer"]]]
    units = max(0, args["b_size"]) or args["hidden_dim"]
    noise, widths = [], [units, *model.widths]
    for level, factor in enumerate(factors):
        parents = int(np.prod(factors[:level]))
        noise += [
            torch.randn(rows, widths[level], factor, generator=generator) for _ in range(parents)
        ]
    tensors = {f"state/{key}": value for key, value in model.state_dict().items()}
    tensors |= {f"in/voxel_{place}": x for place, x in enumerate(voxels)}
    if training:
        tensors |= {f"in/router_noise_{place:02}": draw for place, draw in enumerate(noise)}
    for rule, group in (("index", "by_index/"), ("gpu", "by_gpu_rule/")):
        found, first = [], 0
        for place, x in enumerate(voxels):
            own = [draw[first : first + len(x)] for draw in noise] if training else None
            found.append(model(x[:, 0], place, rule, own))
            first += len(x)
        tensors |= {
            f"out/{group}{part}": torch.cat(parts)
            for part, parts in zip(("backbone", "clip"), zip(*found))
        }
    return written(
        folder,
        {"kind": "BrainMoEMulti", "constructor": args, "call": {"training": training}},
        tensors,
    )


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", MULTI)
@pytest.mark.slow
def test_other_sizes_of_the_multi_level_encoder(
    name: str, training: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = other_multi(tmp_path, name, training)
    monkeypatch.setenv("BRAINGEN_PARITY_DIR", str(tmp_path))
    check(entries()[0], handlers())
    assert entries()[0] == entry


@torch.no_grad()
def test_other_sizes_of_the_dense_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = {
        "num_voxels_list": [5, 8, 3],
        "hidden_dim": 18,
        "n_blocks": 3,
        "clip_emb_dim": 4,
        "clip_seq_dim": 2,
    }
    model = torch.nn.Module()
    model.ridge, model.backbone = (
        Ridge(args["num_voxels_list"], 18),
        Mixer(18, 3, 2, 4, torch.nn.Linear(4, 4)),
    )
    lively(model, seed=2)
    voxels = [
        torch.randn(1 + place, 1, count) for place, count in enumerate(args["num_voxels_list"])
    ]
    ridge = torch.cat([linear(x) for linear, x in zip(model.ridge.linears, voxels)])
    backbone, clip = model.backbone(ridge)
    tensors = {f"state/{key}": value for key, value in model.state_dict().items()} | {
        f"in/voxel_{i}": x for i, x in enumerate(voxels)
    }
    tensors |= {
        "out/ridge": ridge,
        "out/mixer": model.backbone.trunk(ridge),
        "out/backbone": backbone,
        "out/clip": clip,
    }
    written(tmp_path, {"kind": "BrainEncoder", "constructor": args, "call": {}}, tensors)
    monkeypatch.setenv("BRAINGEN_PARITY_DIR", str(tmp_path))
    check(entries()[0], handlers())


TEXT = {
    "early, odd": {
        "output_mode": "joint",
        "fusion_strategy": "early",
        "n_blocks": 3,
        "train_pool": False,
        "clip_seq_dim": 1,
    },
    "mid, odd, pooled": {
        "output_mode": "joint",
        "fusion_strategy": "mid",
        "n_blocks": 5,
        "train_pool": True,
        "clip_seq_dim": 2,
    },
    "late, one block": {
        "output_mode": "joint",
        "fusion_strategy": "late",
        "n_blocks": 1,
        "train_pool": True,
        "clip_seq_dim": 1,
    },
    "one text encoder": {
        "output_mode": "L",
        "fusion_strategy": "",
        "n_blocks": 3,
        "train_pool": False,
        "clip_seq_dim": 3,
    },
    "the other": {
        "output_mode": "BigG",
        "fusion_strategy": None,
        "n_blocks": 1,
        "train_pool": True,
        "clip_seq_dim": 4,
    },
}


@pytest.mark.parametrize("name", TEXT)
@torch.no_grad()
@pytest.mark.slow
def test_other_text_encoders(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights by the formula, so that no large file is written."""
    args = {"h": 5, "in_dim": 5, **TEXT[name]}
    widths = {"joint": {"L": 768, "G": 1280}, "L": {"L": 768}, "BigG": {"G": 1280}}[
        args["output_mode"]
    ]
    with torch.device("meta"):
        model = Text(
            5,
            args["n_blocks"],
            args["clip_seq_dim"],
            widths,
            args["fusion_strategy"] or "",
            args["train_pool"],
        )
    listed = [
        {
            "key": key,
            "shape": list(value.shape),
            "scale": value.shape[-1] ** -0.5,
            "offset": float(value.ndim == 1 and "weight" in key),
        }
        for key, value in model.state_dict().items()
    ]
    state = {
        tensor["key"]: torch.from_numpy(
            formula_weights(place, 3, tensor["shape"], tensor["scale"], tensor["offset"])
        )
        for place, tensor in enumerate(listed)
    }
    model.load_state_dict(state, assign=True)
    x = torch.randn(2, 1, 5, generator=torch.Generator().manual_seed(1))
    tensors = {"in/x": x} | {f"out/{part}": value for part, value in model.eval()(x).items()}
    weights = {"kind": "formula", "seed": 3, "tensors": listed}
    written(
        tmp_path,
        {"kind": "BrainNetworkText", "constructor": args, "call": {}, "weights": weights},
        tensors,
    )
    monkeypatch.setenv("BRAINGEN_PARITY_DIR", str(tmp_path))
    check(entries()[0], handlers())


@pytest.mark.slow
def test_wrong_numbers_unknown_kinds_and_outputs_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = other_multi(tmp_path, next(iter(MULTI)))
    monkeypatch.setenv("BRAINGEN_PARITY_DIR", str(tmp_path))
    case = read_case(entry)
    with pytest.raises(AssertionError, match="no handler for kind 'BrainNew'"):
        check({**entry, "kind": "BrainNew"}, handlers())
    changed = dict(case.outputs)
    changed["by_index/clip"] = changed["by_index/clip"] * (1 + 3e-4)
    for outputs, message in (
        (changed, "out of tolerance"),
        ({**case.outputs, "surprise": np.zeros(1)}, "returned no"),
    ):
        monkeypatch.setattr(
            "test_parity.read_case",
            lambda spec, outputs=outputs: Case(spec, case.state, case.inputs, outputs),
        )
        with pytest.raises(AssertionError, match=message):
            check(entry, handlers())
