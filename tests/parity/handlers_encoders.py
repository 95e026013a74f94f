"""Parity of the encoders: subject layer, trunks, expert router, mixtures of experts, text
trunks.
"""

from __future__ import annotations

from typing import Any

from cases import Case, Handler
import numpy as np
from published import published_balance, to_published
import torch
from torch import Tensor

import braingen  # noqa: F401
from braingen.compat.keys import load_published
from braingen.encoders.dense import BackboneOutput, BrainEncoder, ImageBackbone, TextBackbone
from braingen.encoders.feature_router import ExpertChoiceRouter
from braingen.encoders.moe import BrainMoE, BrainMoEHier, BrainMoEMulti
from braingen.types import ExpertEmbeddings

ORDERS = {"": "native", "by_index/": "index", "by_value/": "value", "by_gpu_rule/": "gpu"}
"""Group of outputs -> our name of the order."""


def tensors(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}


def load(model: torch.nn.Module, case: Case) -> None:
    """Load the published weights through the importer's mapping; everything must find its place."""
    report = load_published(model, tensors(case.state))
    assert report.is_complete, report
    model.eval()


def subjects(case: Case) -> dict[int, int]:
    return dict(enumerate(case.spec["constructor"]["num_voxels_list"], start=1))


def voxels(case: Case) -> list[tuple[int, Tensor]]:
    """Subject number in our model (position in the published list) and voxels."""
    found = sorted(
        (int(name.split("_")[1]), x)
        for name, x in tensors(case.inputs).items()
        if name.startswith("voxel_")
    )
    return [(place + 1, x[:, 0]) for place, x in found]


def per_subject(
    model: torch.nn.Module, case: Case, router_noise: list[Tensor] | None = None, **options: Any
) -> list[ExpertEmbeddings]:
    """Published encoders join subjects on the batch axis, in the order of the list; routers' noise,
    P x B x U x F, was recorded so.
    """
    records, first = [], 0
    for subject, x_BV in voxels(case):
        if router_noise is not None:
            options["router_noise"] = [
                noise_PBUF[:, first : first + len(x_BV)] for noise_PBUF in router_noise
            ]
        records.append(model(x_BV, subject, **options))
        first += len(x_BV)
    return records


def stacked(records: list[ExpertEmbeddings], name: str) -> Tensor:
    return torch.cat([getattr(record, name) for record in records])


def noise_by_level(case: Case, routers: list[int]) -> list[Tensor] | None:
    """Recorded draws of the routers, stacked per level (P x B x U x F); None where there are none.

    Parameters
    ----------
    routers : list[int]
        Number of routers per level.
    """
    draws = [
        x for name, x in sorted(tensors(case.inputs).items()) if name.startswith("router_noise_")
    ]
    if not draws:
        return None
    first = np.cumsum([0, *routers])
    return [torch.stack(draws[first[level] : first[level + 1]]) for level in range(len(routers))]


def called_noise(case: Case, routers: list[int]) -> list[Tensor] | None:
    """The draws that the plain outputs were made with: those recorded if the call had its training
    flag on.
    """
    return noise_by_level(case, routers) if case.spec.get("call", {}).get("training") else None


def numbers(out: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy() for name, value in out.items()}


def head_of(case: Case, prefix: str) -> str:
    """MoRE-Brain's dense encoder has one linear map as clip head, MindEye2's a projector."""
    return "linear" if f"{prefix}clip_proj.weight" in case.state else "projector"


def brain_encoder(case: Case) -> dict[str, np.ndarray]:
    args = case.spec["constructor"]
    model = BrainEncoder(
        subjects=subjects(case),
        hidden_dim=args["hidden_dim"],
        n_blocks=args["n_blocks"],
        clip_emb_dim=args["clip_emb_dim"],
        clip_seq_dim=args["clip_seq_dim"],
        trunk="published",
        head=head_of(case, "backbone."),
        low_level=args.get("blurry_recon", False),
        interm_out=args.get("interm_out", False),
    )
    load(model, case)
    units_B1H = torch.cat([model.subject_layer(x, subject)[:, None] for subject, x in voxels(case)])
    out = backbone_outputs(model.backbone(units_B1H))
    records = per_subject(model, case)
    torch.testing.assert_close(stacked(records, "backbone_BTD"), out["backbone"])
    torch.testing.assert_close(stacked(records, "clip_BTD"), out["clip"])
    return numbers({"ridge": units_B1H, **out})


def backbone_outputs(result: BackboneOutput) -> dict[str, Tensor]:
    out = {"mixer": result.trunk_BSH, "backbone": result.backbone_BTD, "clip": result.clip_BTD}
    out |= {f"interm_{place}": clip_BTD for place, clip_BTD in enumerate(result.intermediate)}
    if result.pooled_BD is not None:
        out["pooled"] = result.pooled_BD
    if result.low_level:
        out["blurry"], out["blurry_aux"] = result.low_level
    return out


def brain_network(case: Case) -> dict[str, np.ndarray]:
    args = case.spec["constructor"]
    width = args["clip_size"]
    model = ImageBackbone(
        args["h"],
        args["n_blocks"],
        args["out_dim"] // width,
        width,
        trunk="published",
        head=head_of(case, ""),
        seq_len=args["seq_len"],
        low_level=args.get("blurry_recon", False),
        interm_out=args.get("interm_out", False),
    )
    load(model, case)
    return numbers(backbone_outputs(model(tensors(case.inputs)["x"])))


def brain_network_text(case: Case) -> dict[str, np.ndarray]:
    """Fusion needs both trunks, pooling that of ViT-bigG; elsewhere the arguments mean nothing."""
    args = case.spec["constructor"]
    output = {"joint": "joint", "l": "L", "bigg": "bigG"}[args["output_mode"].lower()]
    model = TextBackbone(
        args["h"],
        args["n_blocks"],
        args["clip_seq_dim"],
        output,
        fusion=((args.get("fusion_strategy") or "none").lower() if output == "joint" else "none"),
        train_pool=bool(args.get("train_pool")) and output != "L",
        trunk="published",
    )
    load(model, case)
    return numbers(backbone_outputs(model(tensors(case.inputs)["x"])))


def expert_router(case: Case) -> dict[str, np.ndarray]:
    args, inputs = case.spec["constructor"], tensors(case.inputs)
    x_BNU = inputs["x"]
    experts, token_width, units = args["num_exp"], args.get("n_emb", 1), x_BNU.shape[-1]
    width = int(units / experts * args.get("capacity_factor", 1))
    out: dict[str, Tensor] = {}
    for group, order in ORDERS.items():
        router = ExpertChoiceRouter(1, experts, width, token_width, order)
        router.load_state_dict({"weight": tensors(case.state)["router.weight"][None]})
        picked_PBFNK, (routing,) = router.route(
            x_BNU[None], inputs["noise"][None] if "noise" in inputs else None
        )
        out[f"{group}selected"] = picked_PBFNK[0].transpose(0, 1)
        out[f"{group}weights"] = routing.weights_BEK.transpose(0, 1)
        out[f"{group}indices"] = routing.chosen_BEK.transpose(0, 1)
        if not group:
            out["probs"] = routing.probabilities_BEH.mT
            out["lb_loss"] = published_balance(routing.chosen_BEK, units)
            mask_BEU = torch.zeros(*routing.probabilities_BEH.shape, dtype=torch.bool).scatter_(
                2, routing.chosen_BEK, True
            )
            out["mask"] = mask_BEU.transpose(0, 1)
    return numbers(out)


def published_loss(
    records: list[ExpertEmbeddings], routers: list[int], widths: list[int]
) -> Tensor:
    """Mean over the given routers of the published load-balancing figure."""
    figures = []
    for router, width in zip(routers, widths):
        chosen_BEK = torch.cat([record.routing[router].chosen_BEK for record in records])
        figures.append(published_balance(chosen_BEK, width))
    return torch.stack(figures).mean()


def level_routing(records: list[ExpertEmbeddings], routers: range, field: str) -> Tensor:
    """Chosen units or their weights of all experts of a level: E x B x K."""
    parts = [
        torch.cat([getattr(record.routing[place], field) for record in records])
        for place in routers
    ]
    return torch.cat([part.transpose(0, 1) for part in parts])


def common(case: Case, order: str) -> dict[str, Any]:
    args = case.spec["constructor"]
    return {
        "subjects": subjects(case),
        "hidden_dim": args["hidden_dim"],
        "n_blocks": args["n_blocks"],
        "clip_emb_dim": args["clip_emb_dim"],
        "clip_seq_dim": args["clip_seq_dim"],
        "routing": "expert_choice",
        "trunk": "published",
        "token_order": order,
        "dropout": 0.0,
    }


def brain_moe(case: Case) -> dict[str, np.ndarray]:
    args, out = case.spec["constructor"], {}
    for group, order in ORDERS.items():
        settings = {
            "capacity_factor": args.get("capacity_factor", 1),
            "meta": args.get("meta", False),
        }
        model = BrainMoE(num_exp=args["num_exp"], **settings, **common(case, order))
        load(model, case)
        records = per_subject(
            model, case, return_experts=True, router_noise=called_noise(case, [1])
        )
        out[f"{group}backbone"] = torch.cat(
            [record.expert_backbone[0] for record in records]
        ).transpose(0, 1)
        out[f"{group}clip"] = torch.cat([record.expert_clip[0] for record in records]).transpose(
            0, 1
        )
        out[f"{group}indices"] = level_routing(records, range(1), "chosen_BEK")
        out[f"{group}weights"] = level_routing(records, range(1), "weights_BEK")
        out[f"{group}lb_loss"] = published_loss(records, [0], [args["hidden_dim"]])
    return numbers(out)


def brain_moe_hier(case: Case) -> dict[str, np.ndarray]:
    args, out = case.spec["constructor"], {}
    for group, order in ORDERS.items():
        model = BrainMoEHier(
            num_exps=args["num_exps"],
            capacity_factors=args["capacity_factors"],
            meta=args.get("meta", False),
            **common(case, order),
        )
        load(model, case)
        levels = len(args["num_exps"])
        records = per_subject(
            model, case, return_experts=True, router_noise=called_noise(case, [1] * levels)
        )
        out[f"{group}backbone"], out[f"{group}clip"] = (
            stacked(records, "backbone_BTD"),
            stacked(records, "clip_BTD"),
        )
        out[f"{group}lb_loss"] = published_loss(
            records, list(range(levels)), [args["hidden_dim"]] * levels
        )
        for level in range(levels):
            out[f"{group}indices_{level}"] = level_routing(
                records, range(level, level + 1), "chosen_BEK"
            )
            out[f"{group}weights_{level}"] = level_routing(
                records, range(level, level + 1), "weights_BEK"
            )
    return numbers(out)


def brain_moe_multi(case: Case) -> dict[str, np.ndarray]:
    args, out = case.spec["constructor"], {}
    depth = args.get("num_exp_layer", len(args["exp_factor_list"]))
    factors = [args["num_exp_0"], *args["exp_factor_list"][:depth]]
    routers = [int(np.prod(factors[:level])) for level in range(len(factors))]
    bottleneck_dim = max(0, args.get("b_size", -1))
    units = bottleneck_dim or args["hidden_dim"]
    for group, order in ORDERS.items():
        model = BrainMoEMulti(
            num_exp_0=factors[0],
            exp_factor_list=factors[1:],
            capacity_factor_0=args["capacity_factor_0"],
            cap_fac_list=args["cap_fac_list"][:depth],
            bottleneck_dim=bottleneck_dim,
            **common(case, order),
        )
        load(model, case)
        runs = {"": called_noise(case, routers), "noisy/": noise_by_level(case, routers)}
        for name, noise in runs.items():
            records = per_subject(model, case, return_experts=True, router_noise=noise)
            out |= {
                f"{name}{group}{key}": value
                for key, value in multi_outputs(records, routers, units).items()
            }
        if order == "index" and "grad_weight_backbone" in case.inputs:
            out |= gradients(model, case)
    return numbers(out)


def multi_outputs(
    records: list[ExpertEmbeddings], routers: list[int], units: int
) -> dict[str, Tensor]:
    out = {
        "backbone": stacked(records, "backbone_BTD"),
        "clip": stacked(records, "clip_BTD"),
        "lb_loss": published_loss(records, [0], [units]),
    }
    first = np.cumsum([0, *routers])
    for level in range(len(routers)):
        places = range(first[level], first[level + 1])
        out[f"expert_backbone_{level}"] = torch.cat(
            [record.expert_backbone[level] for record in records]
        ).transpose(0, 1)
        out[f"expert_clip_{level}"] = torch.cat(
            [record.expert_clip[level] for record in records]
        ).transpose(0, 1)
        out[f"indices_{level}"] = level_routing(records, places, "chosen_BEK")
        out[f"weights_{level}"] = level_routing(records, places, "weights_BEK")
    return out


def gradients(model: BrainMoEMulti, case: Case) -> dict[str, Tensor]:
    """Of the weighted sum of both outputs, tokens in ascending position."""
    records, weight = per_subject(model, case), tensors(case.inputs)
    total = (stacked(records, "backbone_BTD") * weight["grad_weight_backbone"]).sum()
    total = total + (stacked(records, "clip_BTD") * weight["grad_weight_clip"]).sum()
    total.backward()
    grads = {
        name: parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    return {"grad_objective": total} | {
        f"grad/{name}": grad for name, grad in to_published(model, grads).items()
    }


HANDLERS: dict[str, Handler] = {
    "BrainEncoder": brain_encoder,
    "BrainNetwork": brain_network,
    "BrainNetworkText": brain_network_text,
    "ExpertRouter": expert_router,
    "BrainMoE": brain_moe,
    "BrainMoEHier": brain_moe_hier,
    "BrainMoEMulti": brain_moe_multi,
}
