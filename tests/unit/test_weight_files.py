"""Which files are a model's weights: the rule, the loaders and `braingen doctor` agree; hub names
fetch only what is used and share the keys of local copies.
"""

from __future__ import annotations

import json
from pathlib import Path
import shutil
from types import SimpleNamespace

from huggingface_hub import constants
import pytest
from safetensors.torch import load_file, save_file
import torch
from unit.fake_backbone import plain_unet, write_fake_backbone, write_fake_refiner
from unit.tiny_finetuning import text_encoder, tiny_embedding_decoder

from braingen.config import load_config
from braingen.config.shipped import TINY
from braingen.diagnostics.needs import generating
from braingen.encoders.embedding_decoder import EmbeddingDecoder
from braingen.generation.compatibility import form_of_files
from braingen.pretrained import hub, loading, sdxl
from braingen.pretrained.files import backbone_findings, download_line, needed_models
from braingen.pretrained.hub import backbone_key, is_hub_name, local_copy, located, model_key, quiet
from braingen.pretrained.loading import load_config as transformers_config
from braingen.pretrained.loading import load_frozen
from braingen.pretrained.sdxl import (
    load_backbone,
    load_plain,
    own_size,
    pixels_per_latent,
    unet_config,
)
from braingen.pretrained.weight_files import chosen_files, key_of, model_files, numbers_in
from braingen.runtime import console
from braingen.runtime.console import reported
from braingen.runtime.errors import UserError
from braingen.targets.clip_image import CLIPImageEncoder
from braingen.targets.clip_text import CLIPTextEncoderDual

D = "diffusion_pytorch_model"


@pytest.mark.parametrize(
    ("names", "library", "half", "expected"),
    [
        ([f"{D}.safetensors", f"{D}.fp16.safetensors"], "diffusers", False, f"{D}.safetensors"),
        ([f"{D}.safetensors", f"{D}.fp16.safetensors"], "diffusers", True, f"{D}.fp16.safetensors"),
        ([f"{D}.fp16.safetensors"], "diffusers", False, f"{D}.fp16.safetensors"),
        ([f"{D}.safetensors"], "diffusers", True, f"{D}.safetensors"),
        ([f"{D}.bin", f"{D}.safetensors"], "diffusers", False, f"{D}.safetensors"),
        ([f"{D}.bin"], "diffusers", False, f"{D}.bin"),
        (["model.safetensors"], "diffusers", False, None),
        ([f"{D}.safetensors"], "transformers", False, None),
        (["pytorch_model.bin", "open_clip_pytorch_model.bin"], "transformers", False, "pytorch_"),
        (
            [
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "model.safetensors.index.json",
            ],
            "transformers",
            False,
            "model-00001",
        ),
        (
            ["model-00001-of-00002.safetensors", "model.safetensors.index.json"],
            "transformers",
            False,
            None,  # a shard is missing
        ),
        (
            ["model-00001-of-00001.safetensors"],
            "transformers",
            False,
            None,  # its index is missing
        ),
        (
            [
                f"{D}.fp16-00001-of-00002.safetensors",
                f"{D}.fp16-00002-of-00002.safetensors",
                f"{D}.safetensors.index.fp16.json",
            ],
            "diffusers",
            True,
            f"{D}.fp16-00001",
        ),
        ([], "diffusers", False, None),
    ],
)
def test_the_rule(names, library, half, expected):
    chosen = chosen_files(names, library, half)
    if expected is None:
        assert chosen is None
        return
    assert chosen.names[0].startswith(expected)
    assert chosen.variant == ("fp16" if "fp16" in expected else None)
    assert chosen.use_safetensors == expected.endswith("safetensors") or "-0" in chosen.names[0]


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    folder = write_fake_backbone(tmp_path_factory.mktemp("weights") / "sound", with_clip=True)
    return folder


def _half(part: Path) -> None:
    file = next(part.glob("*.safetensors"))
    half = {key: value.half() for key, value in load_file(file).items()}
    save_file(half, file.with_name(f"{file.stem}.fp16.safetensors"), {"format": "pt"})
    file.unlink()


def _pickled(part: Path) -> None:
    file = next(part.glob("*.safetensors"))
    name = "pytorch_model" if file.stem == "model" else file.stem
    torch.save(load_file(file), file.with_name(f"{name}.bin"))
    file.unlink()


def _shards(part: Path) -> None:
    plain_unet().save_pretrained(part, max_shard_size="100KB")
    assert len(list(part.glob("*-of-*.safetensors"))) > 1
    (part / f"{D}.safetensors").unlink(missing_ok=True)


def _lost_shard(part: Path) -> None:
    _shards(part)
    next(part.glob("*-of-*.safetensors")).unlink()


def _open_clip(part: Path) -> None:
    next(part.glob("*.safetensors")).rename(part / "open_clip_model.safetensors")


def _nothing(part: Path) -> None:
    next(part.glob("*.safetensors")).unlink()


def _cut(part: Path) -> None:
    file = next(part.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-40])


KINDS = [
    ("unet", lambda part: None, True),
    ("unet", _half, True),
    ("unet", _pickled, True),
    ("unet", _shards, True),
    ("unet", _lost_shard, False),
    ("unet", _open_clip, False),
    ("unet", _nothing, False),
    ("unet", _cut, False),
    ("text_encoder_2", _half, True),
    ("text_encoder_2", _pickled, True),
    ("text_encoder_2", _open_clip, False),
    ("text_encoder_2", _nothing, False),
    ("text_encoder_2", _cut, False),
]


@pytest.mark.parametrize(
    ("part", "change", "loads"), KINDS, ids=[f"{p} {c.__name__}" for p, c, _ in KINDS]
)
def test_loader_and_doctor_take_and_refuse_the_same_files(sound, tmp_path, part, change, loads):
    folder = shutil.copytree(sound, tmp_path / "backbone")
    change(folder / part)
    config = load_config(None, {"backbone.path": str(folder), "run.device": "cpu"})
    finding = {each.part: each.level for each in backbone_findings(config)}[part]
    assert finding == ("ok" if loads else "error")

    def load():
        if part == "unet":
            return load_plain(str(folder)).unet
        return CLIPTextEncoderDual.from_pretrained(folder, dtype=torch.float32)

    if loads:
        model = load()
        assert {p.dtype for p in model.parameters()} == {torch.float32}
    else:
        with pytest.raises(UserError):
            load()


@pytest.mark.slow
def test_a_unet_in_half_precision_is_read_from_its_half_precision_copy(sound, tmp_path):
    """The copies differ here, so that the one that was read shows."""
    folder = shutil.copytree(sound, tmp_path / "backbone")
    file = folder / "unet" / f"{D}.safetensors"
    other = {key: torch.zeros_like(value).half() for key, value in load_file(file).items()}
    save_file(other, file.with_name(f"{D}.fp16.safetensors"), {"format": "pt"})
    zero = {
        dtype: float(load_plain(str(folder), dtype).unet.conv_in.weight.abs().max()) == 0
        for dtype in (torch.float32, torch.float16)
    }
    assert zero == {torch.float32: False, torch.float16: True}


def test_only_what_is_used_is_demanded(sound, tmp_path):
    """SDXL's first text encoder and its tokenizer: not for bigG's columns without a prompt."""
    folder = shutil.copytree(sound, tmp_path / "backbone")
    for name in ("text_encoder", "tokenizer"):
        shutil.rmtree(folder / name)
    fixed = {"backbone.path": str(folder), "run.device": "cpu"}

    def faults(**more: str) -> list[str]:
        settings = {key.replace("__", "."): value for key, value in more.items()}
        config = load_config(None, fixed | settings)
        return [each.part for each in backbone_findings(config) if each.level == "error"]

    assert faults() == []
    assert faults(backbone__text_output="joint") == ["text_encoder", "tokenizer"]
    assert faults(generation__negative_prompt="a blur") == ["text_encoder", "tokenizer"]
    refiner = write_fake_refiner(tmp_path / "refiner")
    assert faults(backbone__refiner=str(refiner)) == []
    shutil.rmtree(refiner / "vae")
    assert faults(backbone__refiner=str(refiner)) == ["refiner vae"]


def test_the_size_of_a_model_is_counted_in_its_files(sound, tmp_path):
    wanted = sum(p.numel() for p in plain_unet().parameters())
    assert numbers_in(model_files(sound / "unet", "diffusers")) == wanted
    for number, change in enumerate((_half, _pickled, _shards)):
        part = shutil.copytree(sound / "unet", tmp_path / str(number))
        change(part)
        # a pickle is counted by its size, which has names too
        assert numbers_in(model_files(part, "diffusers")) == pytest.approx(wanted, rel=0.1)


# --- the hub ------------------------------------------------------------------


@pytest.fixture
def repository(monkeypatch, sound, tmp_path):
    """A hub with one repository: that of a backbone in several copies, with a README."""
    remote = shutil.copytree(sound, tmp_path / "remote")
    for part in ("unet", "vae", "text_encoder_2"):
        file = next((remote / part).glob("*.safetensors"))
        half = {key: value.half() for key, value in load_file(file).items()}
        save_file(half, file.with_name(f"{file.stem}.fp16.safetensors"), {"format": "pt"})
    (remote / "README.md").write_text("about it")
    cache = tmp_path / "cache"
    names = [path.relative_to(remote).as_posix() for path in remote.rglob("*") if path.is_file()]
    fetched: list[str] = []

    asked: list[str | None] = []

    def snapshot_download(name, *, allow_patterns=(), local_files_only=False, revision=None):
        asked.append(revision)
        if name != "someone/model" or (local_files_only and not cache.exists()):
            raise FileNotFoundError(name)
        patterns = [allow_patterns] if isinstance(allow_patterns, str) else allow_patterns
        for each in names:
            if any(Path(each).match(pattern) for pattern in patterns):
                fetched.append(each)
                (cache / each).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(remote / each, cache / each)
        return str(cache)

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    api = SimpleNamespace(
        list_repo_files=lambda source, revision=None: asked.append(revision) or names
    )
    monkeypatch.setattr(hub, "HfApi", lambda: api)
    return SimpleNamespace(
        name="someone/model", remote=remote, cache=cache, fetched=fetched, asked=asked
    )


@pytest.mark.parametrize("half", [False, True])
def test_a_hub_name_fetches_the_copy_that_is_loaded_and_nothing_else(repository, half):
    assert local_copy(repository.name, "unet", "diffusers", half) == str(repository.cache)
    weights = f"unet/{D}.fp16.safetensors" if half else f"unet/{D}.safetensors"
    assert sorted(repository.fetched) == ["unet/config.json", weights]
    repository.fetched.clear()
    local_copy(repository.name, "unet", "diffusers", half)
    assert repository.fetched == []  # it is there
    dtype = torch.float16 if half else torch.float32
    assert load_plain(repository.name, dtype).unet.dtype == dtype
    assert not any(name.startswith(("text", "README", "image")) for name in repository.fetched)


def test_a_hub_name_and_its_local_copy_have_one_key_and_another_revision_another(repository):
    parts = [("unet", "diffusers"), ("vae", "diffusers"), ("text_encoder_2", "transformers")]
    local = [model_key(str(repository.remote), *part) for part in parts]
    assert [model_key(repository.name, *part) for part in parts] == local
    assert len(set(local)) == 3
    (repository.remote / "unet" / "README.md").write_text("more")
    assert model_key(str(repository.remote), *parts[0]) == local[0]
    for file in repository.cache.glob("unet/*.safetensors"):  # a new revision
        weights = load_file(file)
        weights["conv_in.bias"] += 1
        save_file(weights, file, {"format": "pt"})
    assert model_key(repository.name, *parts[0]) != local[0]
    assert key_of(repository.cache / "nowhere", "diffusers") == ""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_runs_know_a_backbone_by_what_generates_images(repository, dtype):
    # the IP-Adapter lies beside the local copy alone: for a hub name it is another setting
    shutil.rmtree(repository.remote / "ip_adapter")
    local = backbone_key(str(repository.remote), dtype)
    assert backbone_key(repository.name, dtype) == local
    shutil.rmtree(repository.remote / "text_encoder_2")
    assert backbone_key(str(repository.remote), dtype) == local
    (repository.remote / "scheduler" / "scheduler_config.json").write_text("{}")
    assert backbone_key(str(repository.remote), dtype) != local


def test_a_name_that_cannot_be_reached_is_left_to_the_loader(repository):
    assert local_copy("someone/else", "unet", "diffusers") == "someone/else"
    assert model_key("someone/else", "unet", "diffusers") != model_key("no/one", "", "diffusers")


def test_download_lines_name_what_is_loaded(repository):
    config = load_config(
        None, {"backbone.path": repository.name, "generation.precision": "float16"}
    )
    lines = [download_line(each) for each in needed_models(config) if each.source.count("/") == 1]
    assert len(lines) >= 3 and all(line.startswith("hf download someone/model") for line in lines)
    for name in (f'"unet/{D}*.fp16.safetensors"', '"scheduler/*"', '"tokenizer_2/*"'):
        assert any(name in line for line in lines), name
    assert not any('"*.safetensors"' in line or "onnx" in line for line in lines)


# --- what is printed ------------------------------------------------------------


def test_large_models_are_reported_and_small_ones_are_not(monkeypatch, tmp_path, capsys):
    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"0" * 1000)
    with reported("unet", [file]):
        pass
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(console, "LARGE", 500)
    with reported("unet", [file]):
        pass
    printed = capsys.readouterr().err
    assert "Loading unet: 0.0 GB in" in printed and "Loaded unet in 0 s." in printed


def test_every_kind_of_model_is_reported(monkeypatch, tmp_path, capsys):
    """Backbone, IP-Adapter, CLIP, and what was trained: what, how large, how long."""
    backbone = write_fake_backbone(tmp_path / "backbone", with_clip=True)
    tiny_embedding_decoder("image").save_pretrained(tmp_path / "decoder")
    monkeypatch.setattr(console, "LARGE", 1)
    load_backbone(str(backbone))
    CLIPImageEncoder.from_pretrained(backbone)
    CLIPTextEncoderDual.from_pretrained(backbone)
    EmbeddingDecoder.from_pretrained(tmp_path / "decoder")
    printed = capsys.readouterr().err
    parts = ("unet", "vae", "IP-Adapter", "image_encoder", "text_encoder_2", "EmbeddingDecoder")
    for part in parts:
        assert f"Loading {part}: 0.0 GB in" in printed and f"Loaded {part} in" in printed, part


@pytest.mark.slow
def test_nothing_is_remarked_where_a_configuration_is_asked_for(monkeypatch, recwarn):
    """Of a name whose files are not here, as `braingen doctor` asks."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    name = "someone/model"
    assert unet_config(name) == {}
    for look in (own_size, pixels_per_latent):
        with pytest.raises(UserError):
            look(name, local_files_only=True)
    config = load_config(None, {"backbone.path": name, "run.device": "cpu"})
    generating(config, 0)
    form_of_files(config, text_encoder())
    assert not [str(each.message) for each in recwarn if "huggingface_hub" in each.filename]


def test_libraries_are_silent_while_they_load_and_not_after():
    loggings = (hub.diffusers_logging, hub.transformers_logging, hub.hub_logging)
    before = [each.get_verbosity() for each in loggings]
    with quiet():
        assert {each.get_verbosity() for each in loggings} == {40}
    assert [each.get_verbosity() for each in loggings] == before


def test_a_model_that_transformers_loads_is_read_by_the_same_rule(tmp_path):
    part = shutil.copytree(TINY / "text_encoder_2", tmp_path / "text_encoder_2")
    before = json.loads((part / "config.json").read_text())
    _pickled(part)
    encoder = load_frozen(
        type(CLIPTextEncoderDual.from_pretrained(TINY).models["bigG"]),
        tmp_path,
        subfolder="text_encoder_2",
        dtype=torch.float32,
    )
    assert encoder.config.hidden_size == before["hidden_size"]


# --- revisions ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "name", "revision"),
    [
        ("someone/model", "someone/model", None),
        ("someone/model@main", "someone/model", "main"),
        ("someone/model@refs/pr/1", "someone/model", "refs/pr/1"),
        ("someone/model@0123abc", "someone/model", "0123abc"),
    ],
)
def test_a_hub_name_may_have_a_revision(source, name, revision):
    assert is_hub_name(source)
    assert located(source) == (name, {"revision": revision} if revision else {})


@pytest.mark.parametrize("source", ["tiny", "/a/b", "a/b/c", "a/b@", "a b/c", "@a/b", "a@b/c", ""])
def test_what_is_no_hub_name(source):
    assert not is_hub_name(source) and located(source) == (source, {})


def test_a_folder_of_that_name_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "someone" / "model@main").mkdir(parents=True)
    assert not is_hub_name("someone/model@main")
    assert located("someone/model@main") == ("someone/model@main", {})


def test_every_file_of_a_model_comes_from_its_revision(repository):
    name = f"{repository.name}@v2"
    load_plain(name)
    CLIPTextEncoderDual.from_pretrained(name, dtype=torch.float32)
    assert set(repository.asked) == {"v2"}
    assert backbone_key(name) == backbone_key(repository.name)  # the same content
    config = load_config(None, {"backbone.path": name})
    lines = [download_line(each) for each in needed_models(config) if is_hub_name(each.source)]
    assert lines and all(
        line.startswith("hf download someone/model --revision v2 ") for line in lines
    )


@pytest.mark.parametrize(
    ("look", "result"),
    [
        (lambda name: unet_config(name), "from v2"),
        (lambda name: own_size(name), None),
        (lambda name: pixels_per_latent(name), None),
        (lambda name: transformers_config(name), "from v2"),
    ],
)
def test_configurations_are_read_at_the_revision(monkeypatch, look, result):
    asked = []

    def load(source, *_, revision=None, **__):
        asked.append((source, revision))
        return "from v2" if result else {"sample_size": 8, "block_out_channels": (1, 1)}

    for owner in (sdxl.UNet2DConditionModel, sdxl.AutoencoderKL):
        monkeypatch.setattr(owner, "load_config", load)
    monkeypatch.setattr(loading.AutoConfig, "from_pretrained", load)
    found = look("someone/model@v2")
    assert result is None or found == result
    assert set(asked) == {("someone/model", "v2")}


def test_an_adapter_is_fetched_at_its_revision(monkeypatch, tmp_path):
    asked = []
    file = write_fake_backbone(tmp_path / "b") / "ip_adapter" / "ip-adapter.safetensors"

    def download(name, inside, revision=None):
        asked.append((name, revision))
        return str(file)

    monkeypatch.setattr(sdxl, "hf_hub_download", download)
    assert sdxl.load_ip_adapter_file("h94/IP-Adapter@v2")
    assert asked == [("h94/IP-Adapter", "v2")]
