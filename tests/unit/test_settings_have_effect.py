"""Every setting is read by something, in every variant that accepts it, and refused where nothing
reads it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
import inspect
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from braingen.config import Config, load_config, with_settings
from braingen.config.describe import condition
from braingen.config.effect import Needs, asks_nothing
from braingen.config.encoders import ENCODER_CONFIGS
from braingen.config.names import field_paths, fields_of, having, variants_of
from braingen.data.prepare_scans import scans_of
from braingen.encoders.latent_encoder import LatentEncoder
from braingen.experiments.bottleneck import bottleneck
from braingen.generation import reconstruct
from braingen.generation.refiner import Refinement
from braingen.runtime.errors import UserError
from braingen.simulation.folder import Arguments
from braingen.training.diffusion import router_of
from braingen.training.encoder_setup import build_embedding_decoder

SOURCE = Path(__file__).parents[2] / "src/braingen"
SMALL = {
    "encoder.hidden_dim": "72",
    "encoder.n_blocks": "2",
    "prior.depth": "1",
    "prior.dim_head": "8",
}
LEVELS = {"encoder.exp_factor_list": "2", "encoder.num_exp_0": "3"}
"""Other than the defaults, so that a setting that is dropped is seen."""
VALUES = {
    "encoder.exp_factor_list": "3",
    "encoder.hidden_dim": "144",
    "encoder.bottleneck_dim": "24",
    "encoder.num_exp": "4",
    "encoder.num_exps": "2,3",
    "encoder.capacity_factors": "2,1",
    "encoder.capacity_factor_0": "2",
    "encoder.cap_fac_list": "2",
    "encoder.fusion": "late",
    "encoder.dropout": "0.9",
    "prior.timesteps": "7",
    "router.time": "fixed",
    "router.space": "self",
    "adaptation_curve.ways": "all",
    "precompute.what": "text",
    "human_eval.tasks": "similarity",
    "interpret.steps": "page",
}
"""Where the next value that the type allows would not do."""


def schema_of(section: str, field: str) -> dict[str, Any]:
    owner = next(each for each in variants_of(section).values() if field in each.model_fields)
    return owner.model_json_schema()["properties"][field]


def texts(section: str, field: str) -> list[str]:
    """Some values of a setting, as they are typed; the first is not the default."""
    default = getattr(getattr(Config(), section), field, fields_of(section)[field].default)
    if (section, field) == ("encoder", "model"):
        return list(ENCODER_CONFIGS)
    schema = schema_of(section, field)
    schema = next(
        (part for part in schema.get("anyOf", [schema]) if part.get("type") != "null"), schema
    )
    if "enum" in schema:
        found = [str(value) for value in schema["enum"]]
    elif schema.get("type") == "boolean":
        found = ["true", "false"]
    elif schema.get("type") == "array":
        inner = schema["items"].get("type")
        found = (
            ["3,2", "", "2"]
            if inner in ("integer", "number")
            else [*schema["items"].get("enum", ["some/place"]), ""]
        )
    elif schema["type"] in ("integer", "number"):
        low, high = (
            schema.get("minimum", schema.get("exclusiveMinimum", 0)),
            schema.get("maximum", schema.get("exclusiveMaximum", 9)),
        )
        third = (high - low) / 3
        around = (
            [low + 1, low + 2, 0] if schema["type"] == "integer" else [low + third, low + third / 2]
        )
        around += [low] if "minimum" in schema else []
        found = [f"{value:g}" for value in around]
    else:
        found = ["some", ""]
    found = [text for path, text in VALUES.items() if path == f"{section}.{field}"] + found
    usual = (
        str(default).lower() if isinstance(default, bool) else str(default),
        str(default).strip("(,)").replace(" ", ""),
    )
    return (
        [text for text in found if text not in usual]
        + [text for text in found if text in usual]
        + ["default"]
    )


def whole(path: str) -> tuple[str, str]:
    section, _, field = path.partition(".")
    return section, field


CONDITIONAL = [
    (variant, path)
    for path in field_paths()
    for variant in (having(*whole(path)) if path.startswith("encoder.") else [""])
    if any(
        isinstance(m, Needs)
        for m in variants_of(whole(path)[0])[variant].model_fields[whole(path)[1]].metadata
    )
]


def needs_of(variant: str, path: str) -> list[Needs]:
    section, field = whole(path)
    return [
        m
        for m in variants_of(section)[variant].model_fields[field].metadata
        if isinstance(m, Needs)
    ]


def assignments(variant: str, path: str, meeting: bool) -> dict[str, str]:
    """Settings beside which a setting has an effect (all needs met), or has none (the last one not
    met).
    """
    section = whole(path)[0]
    chosen: dict[str, str] = {"encoder.model": variant} if variant else {}
    needs = needs_of(variant, path)
    for number, need in enumerate(needs):
        wanted = meeting or number < len(needs) - 1
        others = [other for other in dict.fromkeys(need.paths(section)) if other not in chosen]
        for combination in product(*(texts(*whole(other)) for other in others)):
            tried = chosen | dict(zip(others, combination))
            try:
                config = load_config(None, tried)
            except UserError:
                continue
            if need.met(section, config) == wanted:
                chosen = tried
                break
        else:
            raise AssertionError(
                f"{path}: {need.words(section)} cannot be {'met' if wanted else 'missed'}"
            )
    return chosen


@pytest.mark.parametrize(("variant", "path"), CONDITIONAL, ids=lambda value: value)
def test_a_setting_with_a_condition_is_taken_where_it_is_met_and_refused_elsewhere(
    variant: str, path: str
) -> None:
    section, field = whole(path)
    text = texts(section, field)[0]
    with_effect, without = (assignments(variant, path, meeting) for meeting in (True, False))
    config = load_config(None, with_effect | {path: text})
    assert not asks_nothing(
        getattr(getattr(config, section), field), fields_of(section)[field].default
    )
    with pytest.raises(UserError) as caught:
        load_config(None, without | {path: text})
    said = str(caught.value)
    assert (
        said.startswith(f"{path} = ")
        and "has no effect with" in said
        and needs_of(variant, path)[-1].words(section) in said
    )
    assert needs_of(variant, path)[-1].words(section) in condition(
        section, field
    ) or variant not in ("", having(section, field)[0])
    load_config(None, without | {path: "default"})  # what the sentence proposes


@pytest.mark.parametrize("model", ENCODER_CONFIGS)
def test_what_an_encoder_has_not_is_refused_by_name(model: str, tmp_path: Path) -> None:
    lacking = [
        field for field in fields_of("encoder") if field not in ENCODER_CONFIGS[model].model_fields
    ]
    assert lacking
    for field in lacking:
        text = texts("encoder", field)[0]
        said = f"encoder.{field} = {text}"
        with pytest.raises(UserError) as caught:
            load_config(None, {"encoder.model": model, f"encoder.{field}": text})
        assert str(caught.value).startswith(
            f"{said} has no effect with encoder.model={model}, which has no such setting;"
        )
        assert all(name in str(caught.value) for name in having("encoder", field))
        file = tmp_path / "given.yaml"
        file.write_text(
            f"encoder:\n  model: {model}\n  {field}:"
            f" {'[' + text + ']' if ',' in text or field.endswith('list') else text}\n"
        )
        with pytest.raises(
            UserError,
            match=f"encoder.{field} = .* \\(in {file}\\) has no effect with encoder.model={model}",
        ):
            load_config(file)
        with pytest.raises(UserError, match="has no effect"):
            with_settings(load_config(None, {"encoder.model": model}), "encoder", {field: 1})


def test_a_file_gives_way_to_another_encoder_on_the_command_line_with_a_remark(
    tmp_path: Path, capsys
) -> None:
    file = tmp_path / "given.yaml"
    file.write_text("encoder:\n  bottleneck_dim: 16\n  capacity_factor_0: 1.0\n")
    assert load_config(file, {"encoder.model": "BrainMoEVoxel"}).encoder.model == "BrainMoEVoxel"
    assert (
        capsys.readouterr().err
        == f"braingen: encoder.bottleneck_dim = 16 (in {file}) is left out, since"
        " encoder.model=BrainMoEVoxel has no such setting.\n"
    )
    file.write_text("prior:\n  depth: 3\n")
    assert not load_config(file, {"use_prior": "false"}).prior.use_prior


def test_nothing_is_lost_of_runs_that_list_the_settings_of_all_encoders(tmp_path: Path) -> None:
    """Run folders made before the encoders had settings of their own."""
    every = {field: info.default for field, info in fields_of("encoder").items()}
    every |= {"model": "BrainMoEVoxel", "bottleneck_dim": 16, "hidden_dim": 64}
    lines = [
        f"  {name}: {list(value) if isinstance(value, tuple) else value}"
        for name, value in every.items()
    ]
    (tmp_path / "config.yaml").write_text("\n".join(["encoder:", *lines, ""]))
    taken = load_config(None, {"training.init_from": str(tmp_path)}).encoder
    assert (taken.model, taken.hidden_dim) == ("BrainMoEVoxel", 64)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"router": {"time": "fixed", "kl_scale": 1.0}},
            "router.kl_scale = 1 has no effect with router.time=fixed",
        ),
        ({"encoder": {"model": "BrainMoEVoxel", "bottleneck_dim": 16}}, "bottleneck_dim"),
        ({"lora": {"rank": 0}, "finetune": {"learning_rate": 1.0}}, "finetune.learning_rate"),
    ],
)
def test_a_configuration_made_in_python_is_checked_as_well(
    settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        Config.model_validate(settings)


def test_the_bottleneck_of_an_encoder_without_one_is_refused_before_anything_is_trained(
    tmp_path: Path,
) -> None:
    given = {"encoder.model": "BrainMoEVoxel", "run.folder": str(tmp_path / "run")}
    with pytest.raises(
        UserError,
        match=r"encoder\.bottleneck_dim = 16 has no effect with encoder\.model=BrainMoEVoxel",
    ):
        bottleneck(load_config(None, given))
    with pytest.raises(UserError, match=r"bottleneck\.seeds = 0,1 with bottleneck\.generate=true"):
        bottleneck(load_config(None, {"bottleneck.seeds": "0,1", "bottleneck.generate": "true"}))
    assert not (tmp_path / "run").exists()


def test_what_the_scans_turn_out_to_be_decides_about_their_settings(tmp_path: Path) -> None:
    given = {"prepare.scans": str(tmp_path), "prepare.test_share": "0.3", "prepare.betas": "mine"}
    (tmp_path / "nsddata").mkdir()
    with pytest.raises(
        UserError, match=r"prepare\.test_share = 0\.3 has no effect with prepare\.kind=nsd"
    ):
        scans_of(load_config(None, given))
    (tmp_path / "nsddata").rmdir()
    with pytest.raises(
        UserError, match=r"prepare\.betas = mine has no effect with prepare\.kind=own"
    ):
        scans_of(load_config(None, given))


@pytest.mark.parametrize(
    ("counts", "flags", "words"),
    [
        (
            {"image": (1,), "text": (2, 4)},
            {},
            "generation.level = 1 has no effect: the image encoder has no levels",
        ),
        (
            {"image": (2, 4), "text": (1,)},
            {},
            "generation.level = 1 has no effect: the text encoder has no levels",
        ),
        (
            {"image": (2, 4, 8), "text": (2, 4)},
            {"generation.level": "2"},
            "the text encoder has levels 0 to 1",
        ),
    ],
)
def test_a_level_that_an_encoder_has_not_is_refused(counts, flags, words, monkeypatch) -> None:
    monkeypatch.setattr(
        reconstruct, "expert_counts", lambda embedding_decoder: counts[embedding_decoder]
    )
    decoder = SimpleNamespace(brain_image="image", brain_text="text")
    read = reconstruct.Embeddings(
        torch.zeros(1, 1, 2), torch.zeros(1, 1, 2), [0], {"image": torch.zeros(1, 6, 1, 2)}
    )
    with pytest.raises(UserError, match=words):
        reconstruct.image_generator(
            load_config(None, {"generation.level": "1", **flags}), decoder, None, read
        )  # type: ignore[arg-type]


# --- every accepted setting of encoder, prior and routers changes what is built -------------------


def built(settings: dict[str, str]) -> tuple[Any, ...]:
    """An embedding decoder by its parts, its weights and what it does in training and
    afterwards.
    """
    config = load_config(None, settings)
    target, widths = ((1, 24), (8, 16)) if config.backbone.text_output == "joint" else ((1, 12), ())
    torch.manual_seed(0)
    embedding_decoder = build_embedding_decoder(config, {1: 20}, target, widths)
    voxels = torch.randn(3, 20)
    torch.manual_seed(0)
    trained = embedding_decoder.train()(voxels, 1)
    plain = embedding_decoder.eval()(voxels, 1)
    return (
        repr(embedding_decoder),
        {**embedding_decoder.config, "encoder_config": None, "prior_config": None},
        {name: weight.sum().item() for name, weight in embedding_decoder.state_dict().items()},
        [out.backbone_BTD.sum().item() for out in (trained, plain)]
        + [trained.clip_BTD.sum().item(), trained.balance_loss.item()],
        (
            {name: embedding_decoder.prior.config[name] for name in ("timesteps",)}
            if embedding_decoder.prior is not None
            else None
        ),
    )


ENCODER_FIELDS = [
    (model, field) for model, settings in ENCODER_CONFIGS.items() for field in settings.model_fields
]
OUTSIDE = {
    "model": "another encoder",
    "parcel_init": "decides whether training/encoder_setup.setup calls init_from, shown below",
}


@pytest.mark.parametrize(
    ("model", "field"),
    [each for each in ENCODER_FIELDS if each[1] not in OUTSIDE],
    ids=lambda value: value,
)
@pytest.mark.slow
def test_every_setting_of_an_encoder_changes_it(model: str, field: str) -> None:
    own = ENCODER_CONFIGS[model].model_fields
    common = {"encoder.model": model}
    for path, text in (SMALL | LEVELS).items():
        section, _, name = path.partition(".")
        common |= {path: text} if section != "encoder" or name in own else {}
    path = f"encoder.{field}"
    needs = assignments(model, path, True) if (model, path) in CONDITIONAL else {}
    if field in ("fusion", "train_pool"):
        needs |= {"backbone.text_output": "joint"}
    if field in ("num_exp", "num_exps"):  # they replace the levels
        common = {key: text for key, text in common.items() if key not in LEVELS}
    text = {"bottleneck_dim": "24", "num_exps": "2,3"}.get(field, texts("encoder", field)[0])
    if field == "capacity_factors":
        text = "2,1"
    if field == "token_order":
        text = "value"
    before = {**common, **needs}
    assert built(before) != built({**before, path: text}), (path, text)


@pytest.mark.parametrize("field", list(fields_of("prior")))
def test_every_setting_of_the_prior_changes_the_embedding_decoder(field: str) -> None:
    path = f"prior.{field}"
    before = SMALL | (assignments("", path, True) if ("", path) in CONDITIONAL else {})
    changed = {**before, path: "false" if field == "use_prior" else texts("prior", field)[0]}
    if field == "use_prior":
        changed = {
            key: text
            for key, text in changed.items()
            if not key.startswith("prior.") or key == path
        }
    elif field in ("depth", "dim_head"):
        changed[path] = "2"
    assert built(before) != built(changed)


TIMES, SPACES = ([str(v) for v in schema_of("router", name)["enum"]] for name in ("time", "space"))
IN_THE_LOSS = {"kl_scale", "kl_sigma"}
ELSEWHERE = {"route_image", "route_text", "prior_order"}


def router_fingerprint(settings: dict[str, str]) -> tuple[Any, ...]:
    torch.manual_seed(0)
    router = router_of(load_config(None, settings), (2, 3), (1, 8), 8, 1000)
    torch.manual_seed(0)
    experts = [torch.randn(2, 2, 1, 8), torch.randn(2, 3, 1, 8)]
    for parameter in router.parameters():  # they start without effect
        torch.nn.init.normal_(parameter)
    routed = router(experts, torch.tensor([10.0, 900.0]), torch.randn(2, 4, 8, 8))
    return (
        repr(router),
        {n: tuple(p.shape) for n, p in router.named_parameters()},
        routed.embedding_BTD.sum().item(),
    )


@pytest.mark.parametrize(("time", "space"), list(product(TIMES, SPACES)), ids=lambda value: value)
def test_every_setting_that_a_router_accepts_changes_it(time: str, space: str) -> None:
    base = {"router.time": time, "router.space": space, "router.time_hidden_dim": "16"}
    if "router.time_hidden_dim" in refused(base):
        del base["router.time_hidden_dim"]
    for field in fields_of("router"):
        if field in IN_THE_LOSS | ELSEWHERE | {"time", "space"}:
            continue
        for text in texts("router", field)[:1]:
            if refused({**base, f"router.{field}": text}):
                continue
            assert router_fingerprint(base) != router_fingerprint(
                {**base, f"router.{field}": text}
            ), (field, text)


def refused(settings: dict[str, str]) -> str:
    """The setting that is refused, or nothing."""
    try:
        load_config(None, settings)
    except UserError as error:
        return str(error).partition(" ")[0]
    return ""


# --- every other setting is read somewhere --------------------------------------------------------


def test_parcels_start_from_responses_or_at_random() -> None:
    voxel = ENCODER_CONFIGS["BrainMoEVoxel"]
    assert voxel(parcel_init="responses").starts_from_responses
    assert not voxel(parcel_init="random").starts_from_responses


HANDED_OVER: dict[str, tuple[str, set[str]]] = {
    "simulation": ("Arguments(**simulation) in simulation/dataset", set(Arguments._fields)),
    "refinement": ("Refinement(**refiner) in generation/refine", set(Refinement._fields)),
    "encoder": (
        "AnyEncoder.arguments and starts_from_responses, shown above",
        {field for _, field in ENCODER_FIELDS},
    ),
    "prior": ("DiffusionPrior(**prior), shown above", {"depth", "dim_head", "timesteps"}),
    "low_level": (
        "LatentEncoder(**low_level) in training/low_level, the others read there",
        set(inspect.signature(LatentEncoder.__init__).parameters),
    ),
}
"""Sections that are passed on whole, with the names that the receiver takes."""
NAMED = {"weights": ("loss_image", "loss_text")}
"""Local names of sections that are not taken from a configuration directly: `parts.loss` in
training/encoder.
"""


def reads_of(tree: ast.AST) -> Iterator[str]:
    """Settings that a module reads: ``config.section.field``, or ``name.field`` where ``name`` was
    set to ``config.section``.
    """
    sections = set(Config.model_fields)
    local: dict[str, set[str]] = {name: set(places) for name, places in NAMED.items()}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                pairs = (
                    zip(target.elts, node.value.elts)
                    if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
                    else ()
                )
                for left, right in pairs or ((target, node.value),):
                    if (
                        isinstance(left, ast.Name)
                        and isinstance(right, ast.Attribute)
                        and right.attr in sections
                    ):
                        local.setdefault(left.id, set()).add(right.attr)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            if isinstance(node.value, ast.Attribute) and node.value.attr in sections:
                yield f"{node.value.attr}.{node.attr}"
            elif isinstance(node.value, ast.Name):
                yield from (f"{section}.{node.attr}" for section in local.get(node.value.id, ()))


@pytest.mark.slow
def test_every_setting_is_read_by_code() -> None:
    read = {
        path
        for section, (_, names) in HANDED_OVER.items()
        for path in (f"{section}.{name}" for name in names)
    }
    for file in SOURCE.rglob("*.py"):
        if "config" not in file.relative_to(SOURCE).parts[0]:
            read |= set(reads_of(ast.parse(file.read_text())))
    assert sorted(set(field_paths()) - read) == []
