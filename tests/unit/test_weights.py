"""Files of weights from anywhere: read whole and finite, or refused in a sentence that says what
they are; full disks told alike.
"""

from __future__ import annotations

import errno
from pathlib import Path
import pickle
import re
import shutil

import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
import torch
from torch import Tensor
from unit.fake_backbone import fake_backbone, random_adapter, write_fake_backbone
from unit.test_decoder import decoder_of, embedding_decoder, voxels

from braingen.config.shipped import TINY
from braingen.generation.lora import add_lora, load_lora, lora_parameters, save_lora
from braingen.generation.pipeline import BrainDecoder
from braingen.generation.refiner import Refinement, load_refiner, refine_images
from braingen.generation.sampling import decode_latents
from braingen.pretrained.sdxl import (
    add_ip_adapter,
    load_backbone,
    load_ip_adapter_file,
    load_plain,
    load_vae,
)
from braingen.routing.diffuse_router import DiffuseRouter
from braingen.runtime.errors import UserError
from braingen.runtime.files import (
    disk_errors_as_sentences,
    disk_trouble,
    replaced_file,
    replaced_path,
)
from braingen.runtime.state import save_tree
from braingen.runtime.weights import read_tensors
from braingen.targets.clip_image import CLIPImageEncoder
from braingen.targets.clip_text import CLIPTextEncoderDual

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:__array__ implementation:DeprecationWarning", "ignore:Detected pickle protocol"
    ),
    pytest.mark.slow,
]
GET_IT = "get it again"


def small_router() -> DiffuseRouter:
    torch.manual_seed(0)
    return DiffuseRouter(
        num_experts=(2, 4),
        clip_emb_dim=16,
        clip_seq_dim=1,
        time="mlp",
        time_hidden_dim=8,
        space="gate_softmax",
    )


# --- what is in a file ---


def test_tensors_are_read_from_every_form(tmp_path):
    wanted = {"a.weight": torch.arange(3.0), "b": torch.ones(2, 2)}
    save_file(wanted, tmp_path / "a.safetensors")
    torch.save(wanted, tmp_path / "b.bin")
    torch.save(
        {"a": {"weight": wanted["a.weight"]}, "b": wanted["b"], "epoch": 3}, tmp_path / "c.pt"
    )
    torch.save(wanted, tmp_path / "d.pth", _use_new_zipfile_serialization=False)
    torch.save(wanted, tmp_path / "e.safetensors")  # a pickle under a wrong name
    for path in sorted(tmp_path.iterdir()):
        found = read_tensors(path, GET_IT)
        assert found.keys() == wanted.keys() and all(
            torch.equal(found[name], value) for name, value in wanted.items()
        ), path


class Dangerous:
    def __reduce__(self):
        return (print, ("run",))


UNREADABLE = {
    "numpy scalars": (
        lambda p: torch.save({"a": torch.zeros(1), "losses": [np.float64(0.5), np.int32(3)]}, p),
        r"numpy\.float64, numpy",
    ),
    "a path": (
        lambda p: torch.save({"a": torch.zeros(1), "from": Path("x")}, p),
        r"pathlib\.\w*Path.*torch\.save",
    ),
    "code": (lambda p: torch.save({"a": Dangerous()}, p), r"builtins\.print.*weights_only=False"),
    "a bare pickle": (lambda p: p.write_bytes(pickle.dumps({"a": 1})), "no checkpoint|no tensors"),
    "text": (
        lambda p: p.write_text("hello, this is no file of weights"),
        "no checkpoint|not a safetensors file",
    ),
    "cut short": (
        lambda p: (torch.save({"a": torch.zeros(99)}, p), p.write_bytes(p.read_bytes()[:300])),
        "cannot be read|safetensors",
    ),
    "no tensors": (lambda p: torch.save({"epoch": 3}, p), "holds no tensors"),
    "one tensor": (lambda p: torch.save(torch.zeros(3), p), "holds a Tensor"),
    "nothing": (lambda p: p.write_bytes(b""), "is empty"),
    "NaN": (
        lambda p: torch.save({"x": torch.zeros(2), "y.z": torch.tensor([0.0, np.nan])}, p),
        r"1 of 2 weights hold NaN.*y\.z",
    ),
    "infinity": (
        lambda p: torch.save({"x": torch.full((2,), -np.inf).half()}, p),
        "1 of 1 weights hold NaN or infinite",
    ),
}


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".safetensors"])
@pytest.mark.parametrize("name", UNREADABLE)
def test_what_is_no_file_of_weights_is_named(tmp_path, capsys, name, suffix):
    write, words = UNREADABLE[name]
    path = tmp_path / f"w{suffix}"
    write(path)
    with pytest.raises(UserError) as caught:
        read_tensors(path, GET_IT)
    assert re.search(words, str(caught.value)) and str(path) in str(caught.value)
    assert "\033" not in str(caught.value) and "\n" not in str(caught.value)
    assert not capsys.readouterr().out  # nothing of it was run


# --- NaN in whatever is loaded ---


def spoil(path: Path, value: float = np.nan) -> None:
    """Make one number of one tensor of a file NaN."""
    weights = {name: tensor.clone() for name, tensor in load_file(path).items()}
    name = next(
        name
        for name, tensor in sorted(weights.items())
        if tensor.is_floating_point() and tensor.ndim >= 1
    )
    weights[name].view(-1)[0] = value
    save_file(weights, path)


def only(folder: Path) -> Path:
    (path,) = folder.glob("*.safetensors")
    return path


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    """One of everything that is loaded."""
    folder = tmp_path_factory.mktemp("sound")
    write_fake_backbone(folder / "backbone", with_clip=True)
    embedding_decoder(128, 1).save_pretrained(folder / "embedding_decoder")
    small_router().save_pretrained(folder / "router")
    unet = fake_backbone().unet
    add_lora(unet, 2)
    save_lora(unet, folder / "lora")
    return folder


LOADED = {
    "embedding_decoder": lambda f: type(embedding_decoder(128, 1)).from_pretrained(
        f / "embedding_decoder"
    ),
    "router": lambda f: DiffuseRouter.from_pretrained(f / "router"),
    "lora": lambda f: load_lora(fake_backbone().unet, f / "lora"),
    "backbone/unet": lambda f: load_plain(str(f / "backbone")),
    "backbone/vae": lambda f: load_vae(str(f / "backbone")),
    "backbone/ip_adapter": lambda f: load_backbone(str(f / "backbone")),
    "backbone/image_encoder": lambda f: CLIPImageEncoder.from_pretrained(f / "backbone"),
    "backbone/text_encoder_2": lambda f: CLIPTextEncoderDual.from_pretrained(f / "backbone"),
    "backbone/text_encoder": lambda f: CLIPTextEncoderDual.from_pretrained(
        f / "backbone", output="L"
    ),
}


@pytest.mark.parametrize("name", LOADED)
def test_everything_that_is_loaded_is_looked_at(sound, tmp_path, name):
    LOADED[name](sound)
    for damage, words in (
        (spoil, "NaN or infinite"),
        (lambda p: p.write_bytes(p.read_bytes()[:-50]), "."),
    ):
        folder = shutil.copytree(sound, tmp_path / f"copy{len(words)}")
        damage(only(folder / name))
        with pytest.raises(UserError, match=words):
            LOADED[name](folder)


@pytest.mark.parametrize("kind", ["embedding_decoder", "router"])
def test_a_model_that_lacks_weights_is_not_filled_with_random_ones(sound, tmp_path, kind):
    folder = shutil.copytree(sound, tmp_path / "copy")
    path = only(folder / kind)
    weights = load_file(path)
    weights.pop(sorted(weights)[-1])
    save_file(weights, path)
    with pytest.raises(UserError, match="1 weights are missing"):
        LOADED[kind](folder)


def test_an_adapter_in_the_older_form_is_taken(tmp_path):
    unet = fake_backbone().unet
    flat = random_adapter(unet)
    nested: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for key, value in flat.items():
        group, _, name = key.partition(".")
        nested[group][name] = value
    torch.save(nested, tmp_path / "ip-adapter.bin")
    found = load_ip_adapter_file(str(tmp_path / "ip-adapter.bin"))
    assert found.keys() == flat.keys() and all(torch.equal(found[key], flat[key]) for key in flat)
    flat["image_proj.norm.weight"][0] = torch.inf
    with pytest.raises(UserError, match="NaN or infinite"):
        add_ip_adapter(unet, flat)


# --- NaN in what is computed ---


def test_a_drawing_that_becomes_nan_names_its_picture():
    decoder = decoder_of()
    found = decoder.decode_embeddings(torch.from_numpy(voxels(3))[:, None], 1, [5, 6, 7])
    image = found.image._replace(output_BTD=found.image.output_BTD.clone())
    image.output_BTD[1] = torch.nan
    with pytest.raises(UserError, match=r"At step 1 of 2 the latents of image 6 became NaN"):
        decoder.generate(image, found.text, [5, 6, 7], steps=2, guidance_scale=1)
    with pytest.raises(UserError, match=r"decoded image embedding of image 8, 9 became NaN"):
        decoder.decode_embeddings(torch.full((2, 1, 30), 1e38), 1, [8, 9])
    with torch.no_grad():
        decoder.vae.decoder.conv_out.weight.fill_(torch.inf)
    with pytest.raises(UserError, match="autoencoder's output of image 4 became NaN"):
        decode_latents(decoder.vae, torch.ones(1, 4, 8, 8), [4])


def test_a_refinement_that_becomes_nan_names_its_picture(tmp_path):
    folder = write_fake_backbone(tmp_path / "b", with_clip=True)
    refiner = load_refiner(str(folder))
    text = torch.zeros(2, 1, 128)
    text[1] = torch.nan
    with pytest.raises(UserError, match="latents of image 31 became NaN"):
        refine_images(refiner, torch.rand(2, 3, 32, 32), text, [30, 31], Refinement(4, 0.5, 1.0))


# --- a decoder saved over another ---


def test_nothing_of_an_earlier_save_is_loaded(tmp_path):
    full, plain = decoder_of(), decoder_of()
    add_lora(full.unet, 2)
    with torch.no_grad():
        for parameter in lora_parameters(full.unet).values():
            parameter.fill_(0.3)
    full.register_modules(router_image=small_router(), router_text=small_router())
    full.save_pretrained(tmp_path, max_shard_size="100KB")
    (tmp_path / "README.md").write_text("mine")
    assert (tmp_path / "lora").is_dir() and len(list((tmp_path / "unet").glob("*.safetensors"))) > 1
    plain.save_pretrained(tmp_path)
    assert (
        not (tmp_path / "lora").exists()
        and not list(tmp_path.glob("router_*"))
        and not list(tmp_path.rglob("*.index.json"))
    )
    assert (tmp_path / "README.md").read_text() == "mine" and not list(tmp_path.glob(".*"))
    loaded = BrainDecoder.from_pretrained(tmp_path)
    assert loaded.router_image is None and not lora_parameters(loaded.unet)
    for name, value in plain.unet.state_dict().items():
        assert torch.equal(value, loaded.unet.state_dict()[name]), name
    full.save_pretrained(tmp_path)
    assert lora_parameters(BrainDecoder.from_pretrained(tmp_path).unet)


@pytest.mark.parametrize("when", ["writing", "exchanging"])
def test_an_interrupted_save_is_the_old_decoder_or_none(tmp_path, monkeypatch, when):
    first, second = decoder_of(), decoder_of()
    first.save_pretrained(tmp_path)
    old = load_file(only(tmp_path / "unet"))
    with torch.no_grad():
        next(second.unet.parameters()).add_(1)
    calls = {
        "writing": "braingen.generation.storage.save_file",
        "exchanging": "braingen.runtime.files.os.replace",
    }

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(calls[when], killed)
        with pytest.raises(KeyboardInterrupt):
            second.save_pretrained(tmp_path)
    if when == "writing":
        assert all(
            torch.equal(value, old[name])
            for name, value in load_file(only(tmp_path / "unet")).items()
        )
        BrainDecoder.from_pretrained(tmp_path)
    else:  # a moment between two renames: the old one or none, not mixed
        try:
            found = BrainDecoder.from_pretrained(tmp_path)
        except UserError as error:
            assert "not a saved decoder" in str(error)
        else:
            for one, kept in zip(found.unet.parameters(), first.unet.parameters(), strict=True):
                torch.testing.assert_close(one, kept)
    second.save_pretrained(tmp_path)
    BrainDecoder.from_pretrained(tmp_path)


def test_a_damaged_decoder_is_told(tmp_path):
    decoder_of().save_pretrained(tmp_path)
    for name in ("unet", "vae", "brain_text"):
        path = only(tmp_path / name)
        sound = path.read_bytes()
        spoil(path)
        with pytest.raises(UserError, match="NaN or infinite"):
            BrainDecoder.from_pretrained(tmp_path)
        path.write_bytes(sound[:-9])
        with pytest.raises(UserError, match="again"):
            BrainDecoder.from_pretrained(tmp_path)
        path.write_bytes(sound)
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(UserError):
        BrainDecoder.from_pretrained(tmp_path)


# --- a full disk, in every library's words ---


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        ),
        OSError(
            "Can't synchronously write data (file write failed: errno = 28, error message = 'No"
            " space left on device')"
        ),
        OSError("1000 requested and 17 written"),
        RuntimeError(
            "[enforce fail at inline_container.cc:603] . PytorchStreamWriter failed writing file"
            " data/0: file write failed"
        ),
        SafetensorError("I/O error: Disk quota exceeded (os error 122)"),
    ],
)
def test_a_full_disk_is_one_sentence_whoever_writes(tmp_path, error):
    with (
        pytest.raises(UserError, match=r"Cannot write .*thing: (the disk is full|your disk quota)"),
        replaced_path(tmp_path / "thing"),
    ):
        raise error
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_real_writers_at_a_full_device(tmp_path):
    many = {"x": torch.zeros(200_000)}

    def told(write) -> None:
        with pytest.raises(UserError, match=r"the disk is full"), disk_errors_as_sentences("place"):
            write()

    def numpy_save() -> None:
        with open("/dev/full", "wb") as handle:
            np.save(handle, many["x"].numpy())

    told(lambda: torch.save(many, "/dev/full"))
    told(numpy_save)
    told(lambda: Path("/dev/full").write_text("x"))


def test_other_errors_pass_unchanged(tmp_path):
    for error in (
        ValueError("5 requested"),
        KeyError("x"),
        UserError("os error 28"),
        SafetensorError("header too large"),
    ):
        assert disk_trouble(error) is None
        with pytest.raises(type(error)), replaced_file(tmp_path / "x"):
            raise error


def test_the_command_line_tells_troubles_of_the_machine(monkeypatch, capsys):
    from braingen import cli

    for error, words in (
        (
            OSError(errno.ENOSPC, "No space left on device", "some/file"),
            "some/file cannot be read or written: the disk is full",
        ),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "the disk is full"),
        (MemoryError("Unable to allocate 8 TiB"), "not enough memory .Unable to allocate"),
    ):

        def broken(*_, error=error):
            raise error

        monkeypatch.setattr(cli, "_run", broken)
        assert cli.main(["doctor"]) == 2
        assert re.search(words, capsys.readouterr().err)

    def fault(*_):
        raise ValueError("a fault of the program")

    monkeypatch.setattr(cli, "_run", fault)
    with pytest.raises(ValueError, match="a fault"):
        cli.main(["doctor"])


def test_a_state_on_a_full_disk(tmp_path, monkeypatch):
    def full(*_, **__):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("braingen.runtime.state.save_file", full)
    with pytest.raises(UserError, match=r"Cannot write .*the disk is full"):
        save_tree(tmp_path / "state.safetensors", {"a": torch.zeros(2)})


assert TINY.is_dir()
