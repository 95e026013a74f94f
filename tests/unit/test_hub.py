"""Models go to the hub whole, with a card, and come back by name; a local stand-in is the hub."""

from __future__ import annotations

from collections.abc import Iterator
import json
import os
from pathlib import Path
import subprocess
import sys

import huggingface_hub
from huggingface_hub import constants
import numpy as np
import pytest
import torch
from unit.fake_hub import TOKEN, FakeHub, fake_hub
from unit.test_decoder import FEW, decoder_of, embedding_decoder, pixels, voxels
from unit.test_encoding_model import World

from braingen.encoders.embedding_decoder import EmbeddingDecoder
from braingen.encoders.latent_encoder import LatentEncoder
from braingen.encoding_model.model import EncodingModel
from braingen.generation.captions import CaptionLibrary
from braingen.generation.lora import add_lora
from braingen.generation.pipeline import BrainDecoder
from braingen.generation.storage import CAPTIONS, IP_ADAPTER
from braingen.runtime.errors import UserError
from braingen.runtime.model_card import CARD, FACTS, ModelFacts, ScoreFacts, SubjectFacts

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
FACTS_OF = ModelFacts(
    "decoder",
    "BrainMoEMulti",
    (SubjectFacts(1, 30, "voxels of nsdgeneral.nii.gz, C order", "0123456789abcdef", "ab" * 32),),
    data="simulated data",
    sessions=0,
    seed=3,
    backbone="tiny",
    settings={"training.num_epochs": 2},
    scores=(ScoreFacts("pixcorr", "PixCorr", 0.7, 0.6, 0.8, 120, None, None, 0.1),),
    protocol="simulated data, subject 1, all sessions",
)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """The stand-in as the hub of this process, with an empty cache."""
    with fake_hub() as made:
        for name, value in made.environment(tmp_path / "home").items():
            monkeypatch.setenv(name, value)
        template = made.address + "/{repo_id}/resolve/{revision}/{filename}"
        for name, value in {
            "ENDPOINT": made.address,
            "HUGGINGFACE_CO_URL_TEMPLATE": template,
            "HF_HUB_CACHE": str(tmp_path / "home" / "hub"),
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_OFFLINE": False,
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", made.address)
        yield made


@pytest.fixture(scope="module")
def decoder() -> BrainDecoder:
    """A decoder with LoRA, captions and facts."""
    made = decoder_of()
    add_lora(made.unet, 2)
    for name, weight in made.unet.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    width = made.brain_text.config.encoder_config["clip_emb_dim"]
    texts = ["a red car", "a <b>cat</b>", "a tree"]
    library = torch.randn(3, 1, width, generator=torch.Generator().manual_seed(5))
    made.caption_library = CaptionLibrary(library, texts, "simulated data")
    made.facts = FACTS_OF
    return made


@pytest.mark.slow
def test_an_upload_is_whole_and_loads_the_same(hub, decoder, tmp_path):
    address = decoder.push_to_hub("someone/demo")
    files = hub.files("someone/demo")
    assert address == f"{hub.address}/someone/demo/commit/{hub.commit_of('someone/demo', 'main')}"
    for name in (str(IP_ADAPTER), "lora/pytorch_lora_weights.safetensors", CARD, FACTS):
        assert name in files, sorted(files)
    decoder.save_pretrained(tmp_path / "saved")
    saved = {
        path.relative_to(tmp_path / "saved").as_posix()
        for path in (tmp_path / "saved").rglob("*")
        if path.is_file()
    }
    assert saved == set(files) - {".gitattributes"}
    commits = [path for verb, path in hub.log if verb == "POST" and "/commit/" in path]
    assert len(commits) == 1, "a reader would see half of an upload"
    loaded = BrainDecoder.from_pretrained("someone/demo")
    expected = BrainDecoder.from_pretrained(tmp_path / "saved").decode(voxels(2), subject=1, **FEW)
    found = loaded.decode(voxels(2), subject=1, **FEW)
    np.testing.assert_array_equal(pixels(found.images), pixels(expected.images))
    assert found.captions == expected.captions and loaded.facts.scores == FACTS_OF.scores


@pytest.mark.slow
def test_no_path_of_this_machine_is_uploaded(hub, decoder, tmp_path):
    decoder.save_pretrained(tmp_path / "of-alice")
    BrainDecoder.from_pretrained(tmp_path / "of-alice").push_to_hub("someone/paths")
    for name, content in hub.files("someone/paths").items():
        assert b"of-alice" not in content and str(tmp_path).encode() not in content, name


@pytest.mark.slow
def test_a_later_upload_removes_what_the_decoder_has_not(hub, decoder):
    decoder.push_to_hub("someone/twice")
    hub.files("someone/twice")["notes.txt"] = b"mine"
    plain = decoder_of()
    plain.push_to_hub("someone/twice")
    files = hub.files("someone/twice")
    assert not any(name.startswith(("lora/", CAPTIONS)) for name in files)
    assert files["notes.txt"] == b"mine"


@pytest.mark.slow
def test_revisions_are_branches_and_commits(hub, decoder):
    decoder.push_to_hub("someone/branches", revision="first")
    assert "model_index.json" not in hub.files("someone/branches")
    commit = hub.commit_of("someone/branches", "first")
    for revision in ("first", commit):
        assert BrainDecoder.from_pretrained("someone/branches", revision=revision).facts
    with pytest.raises(UserError, match=r"has no revision 'second': give a branch, a tag"):
        BrainDecoder.from_pretrained("someone/branches", revision="second")
    with pytest.raises(UserError, match=r"holds no decoder \(it has no model_index\.json\)"):
        BrainDecoder.from_pretrained("someone/branches")


@pytest.mark.slow
def test_what_cannot_be_read_or_written_is_a_sentence(hub, decoder, monkeypatch, tmp_path):
    with pytest.raises(UserError, match="no repository someone/none that you may read"):
        BrainDecoder.from_pretrained("someone/none")
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(UserError, match=r"log in with `hf auth login`, or pass token="):
        decoder.push_to_hub("someone/demo", token="hf_other")
    with pytest.raises(UserError, match="repo_id = 'a/b/c' is not allowed"):
        decoder.push_to_hub("a/b/c")
    with pytest.raises(UserError, match="repo_id has no effect without push_to_hub=True"):
        decoder.save_pretrained(tmp_path / "x", repo_id="someone/demo")
    decoder.save_pretrained(tmp_path / "y")
    with pytest.raises(UserError, match="revision='main' has no effect with the folder"):
        BrainDecoder.from_pretrained(tmp_path / "y", revision="main")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"not on this machine, and the hub .* cannot be reached"):
        BrainDecoder.from_pretrained("someone/offline")


@pytest.mark.slow
def test_nothing_is_uploaded_of_a_damaged_folder(hub, decoder, monkeypatch):
    from braingen.generation import storage

    def cut(library: CaptionLibrary, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "captions.safetensors").write_bytes(b"\x10")

    monkeypatch.setattr(CaptionLibrary, "save", cut)
    with pytest.raises(UserError, match=r"captions\.safetensors is not a safetensors file or cut"):
        decoder.push_to_hub("someone/damaged")
    assert hub.log == [] and storage.PARTS


@pytest.mark.slow
def test_captions_of_ones_own_data_are_uploaded_only_when_allowed(hub):
    made = decoder_of()
    width = made.brain_text.config.encoder_config["clip_emb_dim"]
    made.caption_library = CaptionLibrary(torch.randn(2, 1, width), ["my flat", "a b"], "own scans")
    with pytest.raises(UserError, match=r"2 captions of own scans .*captions=True"):
        made.push_to_hub("someone/own")
    assert not hub.repositories
    made.push_to_hub("someone/own", captions=False)
    assert not any(b"my flat" in content for content in hub.files("someone/own").values())
    made.push_to_hub("someone/own", captions=True)
    assert any(b"my flat" in content for content in hub.files("someone/own").values())


@pytest.mark.slow
def test_the_card_says_what_it_is(hub, decoder):
    decoder.push_to_hub("someone/card")
    card = hub.files("someone/card")[CARD].decode()
    told = huggingface_hub.ModelCard(card).data
    assert told.license == "apache-2.0" and told.library_name == "braingen"
    (score,) = told.eval_results
    assert score.metric_value == 0.7 and score.metric_name == "PixCorr"
    for text in (
        'BrainDecoder.from_pretrained("someone/card")',
        "Simulated by `braingen simulate`",
        "| 1 | 30 | voxels of nsdgeneral.nii.gz, C order | 0123456789abcdef |",
        "| PixCorr | 0.700 | 0.600 to 0.800 | 120 |",
        "## Limits",
        "## Intended use",
        "arXiv:2505.15946",
        "captions of 3 training images",
    ):
        assert text in card, text


@pytest.mark.slow
def test_an_edited_card_stays(decoder, tmp_path):
    decoder.save_pretrained(tmp_path)
    decoder.save_pretrained(tmp_path)
    assert (tmp_path / CARD).read_text(encoding="utf-8").startswith("---")
    (tmp_path / CARD).write_text("my own words", encoding="utf-8")
    decoder.save_pretrained(tmp_path)
    assert (tmp_path / CARD).read_text(encoding="utf-8") == "my own words"
    assert json.loads((tmp_path / FACTS).read_text(encoding="utf-8"))["seed"] == 3


@pytest.mark.slow
def test_encoders_come_back_by_name(hub):
    encoder = embedding_decoder(16, 1)
    encoder.push_to_hub("someone/encoder")
    assert set(hub.files("someone/encoder")) >= {CARD, FACTS, "config.json"}
    loaded = EmbeddingDecoder.from_pretrained("someone/encoder").eval()
    given = torch.from_numpy(voxels(3))
    with torch.no_grad():
        first, again = (each(given, 1).backbone_BTD for each in (encoder, loaded))
    torch.testing.assert_close(first, again, rtol=0, atol=1e-5)
    low_level = LatentEncoder({"1": 30}, side=8, hidden_dim=16, n_blocks=1, features=4)
    low_level.push_to_hub("someone/low", private=True)
    assert hub.private == {"someone/low"}
    assert LatentEncoder.from_pretrained("someone/low", token=TOKEN).config.side == 8
    with pytest.raises(UserError, match=r"holds no EmbeddingDecoder|cannot be loaded|weights are"):
        EmbeddingDecoder.from_pretrained("someone/low", token=TOKEN)


@pytest.mark.slow
def test_an_encoding_model_comes_back_by_name(hub):
    world = World()
    features = world.pictures(40)
    model = EncodingModel.fit(features, world.responses(features, world.person(12)))
    model.push_to_hub("someone/encoding", subject=1)
    loaded = EncodingModel.from_pretrained("someone/encoding")
    np.testing.assert_array_equal(loaded.explained_V, model.explained_V)
    assert "explained variance" in hub.files("someone/encoding")[CARD].decode()


@pytest.mark.long
@pytest.mark.slow
def test_a_fresh_process_draws_the_same_pictures_from_the_hub(hub, decoder, tmp_path):
    decoder.push_to_hub("someone/fresh")
    np.save(tmp_path / "voxels.npy", voxels(2))
    code = (
        "import numpy as np; from braingen import BrainDecoder;"
        "d = BrainDecoder.from_pretrained('someone/fresh');"
        "o = d.decode('voxels.npy', subject=1, num_inference_steps=2, guidance_scale=2.0);"
        "np.save('out.npy', np.stack([np.asarray(i) for i in o.images]))"
    )
    for home in ("other", "third"):
        environment = {**os.environ, **hub.environment(tmp_path / home)}
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
        drawn = np.load(tmp_path / "out.npy").astype(int)
        if home == "other":
            first = drawn
    np.testing.assert_array_equal(first, drawn)  # bit for bit, two caches and two processes
    here = decoder.decode(voxels(2), subject=1, **FEW)
    assert np.abs(first - pixels(here.images)).max() <= 1
