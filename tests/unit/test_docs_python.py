"""The Python of docs/python.md, docs/hub.md and README runs: on a small decoder, or on stand-ins
that accept only arguments that exist.
"""

from __future__ import annotations

from pathlib import Path
import re
from unittest.mock import create_autospec

import pytest
import torch
from unit.test_decoder import decoder_of, voxels

import braingen
from braingen import BrainDecoder, EmbeddingDecoder, EncodingModel, LatentEncoder

ROOT = Path(__file__).parents[2]
NAMES = ("decoder", "encoder", "model")


def blocks(file: str) -> list[str]:
    text = (ROOT / file).read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("file", ["docs/python.md", "README.md"])
def test_what_is_written_about_decoding_runs(file, monkeypatch):
    decoder = decoder_of()
    decode = BrainDecoder.decode
    monkeypatch.setattr(BrainDecoder, "from_pretrained", lambda name: decoder)
    monkeypatch.setattr(
        BrainDecoder,
        "decode",
        lambda self, *given, **named: decode(self, *given, num_inference_steps=1, **named),
    )
    known = {"voxels": voxels(2), "voxels_BRV": torch.from_numpy(voxels(2, repeats=3))}
    ran = "\n".join(blocks(file))
    assert "decode(" in ran
    exec(ran, known)
    assert len(known["decoded"].images) == 2


@pytest.mark.slow
def test_what_is_written_about_the_hub_takes_these_arguments(monkeypatch):
    for cls in (BrainDecoder, EmbeddingDecoder, EncodingModel):
        load = cls.from_pretrained

        def loaded(source, cls=cls, load=load, **named):
            assert isinstance(source, str) and set(named) <= {"revision"}
            return create_autospec(cls, instance=True)

        monkeypatch.setattr(cls, "from_pretrained", loaded)
    found: dict = {}
    for block in blocks("docs/hub.md"):
        exec("from braingen import BrainDecoder, EmbeddingDecoder, EncodingModel\n" + block, found)
    for name in NAMES:
        assert found[name].push_to_hub.called


def test_public_names_are_there_and_others_are_not():
    assert {BrainDecoder, EmbeddingDecoder, EncodingModel, LatentEncoder} <= {
        getattr(braingen, name) for name in braingen.__all__
    }
    assert set(braingen.__all__) <= set(dir(braingen))
    with pytest.raises(AttributeError, match="no attribute 'BrainDecodr'"):
        braingen.BrainDecodr  # noqa: B018
