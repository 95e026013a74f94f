"""The explorer: images are those that the decoder generates, ablations remove what they name, maps
add up, and nobody else gets in.
"""

from __future__ import annotations

from collections.abc import Iterator
import io
import re
from typing import Any

import nibabel
import numpy as np
from PIL import Image
import pytest
import torch
from unit.explorer_server import Served, served

from braingen.cli import main
from braingen.config import load_config
from braingen.data.places import ColumnPlaces, SurfacePlaces
from braingen.demo.quickstart import load_shipped
from braingen.explorer import serve
from braingen.explorer.ablating import ablated_voxels, level_sizes, parts_ablated
from braingen.explorer.access import Access
from braingen.explorer.app import ASSETS
from braingen.explorer.explored_run import ExploredRun
from braingen.explorer.generating import generate_image
from braingen.explorer.maps import brain_map, form_of, mesh_bytes, nifti_bytes, texture_bytes
from braingen.explorer.requests import AblationRequest, ImageRequest, MapRequest, SpreadRequest
from braingen.explorer.session import Session
from braingen.explorer.shipped import shipped_run
from braingen.generation.pipeline import to_pil
from braingen.runtime.errors import UserError

pytestmark = pytest.mark.slow  # left out of `make quick`

STEPS = 2


@pytest.fixture(scope="module")
def run() -> ExploredRun:
    return shipped_run(load_config(None, {"run.device": "cpu"}), STEPS)


@pytest.fixture(scope="module")
def session(run: ExploredRun) -> Session:
    return Session([run], 3)


@pytest.fixture(scope="module")
def server(session: Session) -> Iterator[Served]:
    with served(session) as found:
        yield found


def asked(run: ExploredRun, **more: Any) -> ImageRequest:
    return ImageRequest(image=run.images[1].image, **more)


def test_an_image_is_that_of_the_decoder(run):
    shipped = load_shipped()
    result = run.decoder(
        shipped.voxels_BRV[1:2],
        1,
        image_ids=[shipped.ids[1]],
        num_inference_steps=STEPS,
        guidance_scale=run.generation.guidance_scale,
    )
    found = generate_image(run, asked(run, frames=True))
    assert np.array_equal(found.picture_HW3, np.asarray(result.images[0]))
    assert np.array_equal(found.frames[-1], found.picture_HW3)
    assert found.frame_steps == (1, 2) and found.steps == STEPS and len(found.times) == STEPS
    assert found.times == tuple(sorted(found.times, reverse=True))
    assert found.cosine is not None and found.cosine > 0.5  # the right image is decoded


def test_weights_of_levels_sum_to_one(run):
    for more in ({}, {"level": 2}):
        weights = generate_image(run, asked(run, **more)).weights
        assert set(weights) == {"image", "text"}
        for rows in weights.values():
            assert np.allclose(np.sum(rows, axis=1), 1) and np.shape(rows) == (STEPS, 4)
    assert weights["image"] == [[0, 0, 1, 0]] * STEPS


def test_a_level_alone_is_that_of_the_decoder(run):
    shipped = load_shipped()
    read = run.decoder.decode_embeddings(shipped.voxels_BRV[1:2], 1, shipped.ids[1:2])
    image = run.decoder.generate(
        read.image,
        read.text,
        shipped.ids[1:2],
        steps=STEPS,
        guidance_scale=run.generation.guidance_scale,
        level=3,
    )
    found = generate_image(run, asked(run, level=3))
    assert np.array_equal(found.picture_HW3, np.asarray(to_pil(image)[0]))


def test_without_any_expert_the_decoded_embedding_is_the_same_for_all_images(run):
    every = [f"level-{level}" for level in range(len(level_sizes(run, "image")))]
    voxels_BRV = load_shipped().voxels_BRV[:2]
    with torch.no_grad(), parts_ablated(run, "image", every):
        without = run.decoder.decode_embeddings(voxels_BRV, 1, [0, 1]).image.output_BTD
    again = run.decoder.decode_embeddings(
        voxels_BRV, 1, [0, 1]
    ).image.output_BTD  # nothing stays behind
    assert torch.allclose(without[0], without[1], atol=1e-4)
    assert not torch.allclose(again[0], again[1], atol=1e-1)


def test_ablating_all_levels_is_ablating_all_experts(run):
    sizes = level_sizes(run, "image")
    levels = tuple(f"level-{level}" for level in range(len(sizes)))
    experts = tuple(f"level-{k}-expert-{e}" for k, count in enumerate(sizes) for e in range(count))
    pictures = [
        generate_image(run, asked(run, ablate=AblationRequest(image=parts))).picture_HW3
        for parts in (levels, experts)
    ]
    assert np.abs(pictures[0].astype(int) - pictures[1]).max() <= 2  # sums in another order


def test_a_region_is_set_to_zero_and_its_control_is_as_large_and_elsewhere(run):
    name = next(iter(run.regions))
    for random in (False, True):
        request = AblationRequest(regions=(name,), random=random)
        inside_V = ablated_voxels(run, request)
        assert inside_V.sum() == run.regions[name].sum()
        assert np.array_equal(inside_V, run.regions[name]) is not random
        assert not random or not (inside_V & run.regions[name]).any()
        assert np.array_equal(inside_V, ablated_voxels(run, request))
    found = generate_image(run, asked(run, ablate=AblationRequest(regions=(name,))))
    assert found.voxels == run.regions[name].sum()
    zeroed = run.responses(asked(run).image).copy()
    zeroed[:, run.regions[name]] = 0
    same = generate_image(run._replace(responses=lambda _: zeroed), asked(run))
    assert np.array_equal(found.picture_HW3, same.picture_HW3)


def test_responses_are_not_changed(run):
    before = run.responses(asked(run).image).copy()
    generate_image(run, asked(run, ablate=AblationRequest(regions=tuple(run.regions)[:2])))
    assert np.array_equal(before, run.responses(asked(run).image))


def test_the_spread_is_the_standard_deviation_of_the_images(run, session):
    image = run.images[1].image
    found = session.spread(SpreadRequest(image=image))
    assert len(found.pictures) == 3
    stack = np.stack(found.pictures) / 255
    assert np.allclose(found.deviation_HW, np.sqrt(stack.var(axis=0).mean(-1)), atol=1e-6)
    assert found.mean > 0
    assert session.image(ImageRequest(image=image, frames=True)).picture_HW3 is found.pictures[0]
    of_two = session.spread(SpreadRequest(image=image, count=2))
    assert all(a is b for a, b in zip(of_two.pictures, found.pictures[:2], strict=True))
    of_presentations = session.spread(SpreadRequest(image=image, over="presentations"))
    for number, picture in enumerate(of_presentations.pictures):
        alone = generate_image(run, ImageRequest(image=image, presentation=number))
        assert np.array_equal(picture, alone.picture_HW3)
    once = Session([run._replace(responses=lambda _: np.zeros((1, 2000), np.float32))], 2)
    with pytest.raises(UserError, match="presented once"):
        once.spread(SpreadRequest(image=image, over="presentations"))


def test_answers_are_kept(session, run):
    first = session.image(asked(run, sample=5))
    assert session.image(asked(run, sample=5)) is first
    assert session.image(asked(run, sample=6)) is not first


@pytest.mark.parametrize("encoder", ["image", "text"])
def test_experts_are_labels_of_all_voxels_and_shares_sum_to_one(run, encoder):
    labels = brain_map(run, MapRequest(kind="experts", encoder=encoder, part="level-1"))
    assert labels.kind == "labels" and len(labels.labels) == level_sizes(run, encoder)[1]
    assert set(np.unique(labels.value_V)) <= set(range(len(labels.labels) + 1))
    shares = [
        brain_map(
            run, MapRequest(kind="experts", encoder=encoder, part=f"level-1-expert-{expert}")
        ).value_V
        for expert in range(len(labels.labels))
    ]
    total_V = np.sum(shares, axis=0)
    assert np.allclose(total_V[labels.value_V > 0], 1, atol=1e-4)
    assert np.array_equal(np.argmax(shares, axis=0)[labels.value_V > 0] + 1,
                          labels.value_V[labels.value_V > 0])  # fmt: skip


def test_contributions_of_the_experts_of_a_level_sum_to_that_of_the_level(run):
    def contribution(part: str) -> np.ndarray:
        image = run.images[1].image
        return brain_map(run, MapRequest(kind="contribution", part=part, image=image)).value_V

    whole = contribution("level-0")
    parts = sum(contribution(f"level-0-expert-{e}") for e in range(level_sizes(run, "image")[0]))
    assert np.corrcoef(whole, parts)[0, 1] > 0.999


def test_a_map_comes_back_from_its_file_and_tuning_is_to_categories(run):
    category = next(iter(run.tuning))
    found = brain_map(run, MapRequest(kind="tuning", category=category))
    image = nibabel.Nifti1Image.from_bytes(nifti_bytes(run, found.value_V))
    assert np.array_equal(run.places.to_vector(np.asanyarray(image.dataobj)), found.value_V)
    assert np.array_equal(image.affine, run.places.affine)
    assert {name for name, _, _ in found.regions} == set(run.regions)
    assert sum(count for _, count, _ in found.regions) == 2000


def test_maps_on_a_surface_are_textures_of_its_meshes(run):
    vertex_V = np.arange(2000) % 1000
    side_V = np.where(np.arange(2000) < 1000, "L", "R")
    places = SurfacePlaces("fsaverage5", {"L": 10242, "R": 10242}, side_V, vertex_V, "a test")
    on_surface = run._replace(places=places)
    assert form_of(on_surface) == "surface" and form_of(run) == "volume"
    mesh = nibabel.gifti.GiftiImage.from_bytes(mesh_bytes(on_surface, "left"))
    assert mesh.darrays[0].data.shape == (10242, 3)
    value_V = np.arange(2000, dtype=np.float32)
    texture = nibabel.gifti.GiftiImage.from_bytes(texture_bytes(on_surface, "right", value_V))
    assert np.array_equal(texture.darrays[0].data[:1000], value_V[1000:])
    assert form_of(run._replace(places=ColumnPlaces(2000, "a test"))) == "none"
    with pytest.raises(UserError, match="not voxels of a volume"):
        nifti_bytes(on_surface, value_V)


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (ImageRequest(image=999), "has no test image 999"),
        (ImageRequest(image=0, presentation=7), "was presented 3 times"),
        (ImageRequest(image=0, level=9), "has levels 0 to 3"),
        (ImageRequest(image=0, ablate=AblationRequest(regions=("V9",))), "no region 'V9'"),
        (ImageRequest(image=0, ablate=AblationRequest(image=("level-7",))), "has no level-7"),
        (
            ImageRequest(image=0, ablate=AblationRequest(text=("level-0-expert-99",))),
            "has no level-0-expert-99",
        ),
    ],
)
def test_what_is_not_there_is_a_sentence(run, request_, sentence):
    with pytest.raises(UserError, match=sentence):
        generate_image(run, request_)


def test_the_server_answers_as_the_session(server, session, run):
    about = server.ask("/api/runs").json()
    assert [each["image"] for each in about["runs"][0]["images"]] == run.image_ids()
    assert about["runs"][0]["levels"]["image"] == list(level_sizes(run, "image"))
    image = run.images[1].image
    found = server.ask("/api/image", {"image": image, "frames": True}).json()
    assert found["picture"].startswith("data:image/png;base64,") and len(found["frames"]) == STEPS
    assert found["cosine"] == session.image(ImageRequest(image=image, frames=True)).cosine
    seen = Image.open(io.BytesIO(server.ask(f"/api/seen/0/{image}.png").body))
    assert np.array_equal(np.asarray(seen), np.asarray(run.seen(image)))
    volume = server.ask(f"/api/map.nii?kind=contribution&image={image}")
    assert volume.status == 200 and nibabel.Nifti1Image.from_bytes(volume.body).shape
    table = server.ask("/api/map?kind=experts&part=level-1").json()
    assert table["kind"] == "labels" and table["regions"]
    assert server.ask("/api/brain/0.nii").status == 200
    spread = server.ask("/api/spread", {"image": image}).json()
    assert len(spread["candidates"]) == 3 and spread["mean"] > 0


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/image", {"image": 999}),
        ("/api/image", {"image": 0, "run": 3}),
        ("/api/image", {"image": 0, "nothing": 1}),
        ("/api/image", {"image": 0, "steps": 0}),
        ("/api/image", {"image": 0, "ablate": {"image": ["level-0; x"]}}),
        ("/api/map?kind=experts&part=whole", None),
        ("/api/map?kind=tuning&category=x", None),
        ("/api/map?kind=contribution", None),
        ("/api/seen/0/999.png", None),
        ("/api/mesh/0/left.gii", None),
    ],
)
def test_a_wrong_request_is_answered_by_one_sentence(server, path, body):
    reply = server.ask(path, body)
    assert reply.status == 422
    assert re.search(r"\w.*\.$", reply.json()["error"]), reply.body


def test_every_answer_forbids_what_comes_from_elsewhere(server):
    for path in ("/", "/assets/main.js", "/api/runs", "/api/nothing"):
        reply = server.ask(path)
        policy = reply.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["cross-origin-resource-policy"] == "same-origin"
    assert server.ask("/docs").status == server.ask("/openapi.json").status == 404
    assert server.ask("/assets/../app.py").status == 404
    assert server.ask("/assets/%2e%2e/app.py").status == 404


def test_other_names_and_other_sites_are_refused(server):
    port = server.port
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}"):
        assert server.ask("/api/runs", Host=host).status == 200
    for host in (
        "evil.example",
        f"evil.example:{port}",
        "192.168.0.1",
        "",
        "127.0.0.1.evil.example",
    ):
        assert server.ask("/api/runs", Host=host).status == 403
    own = f"http://127.0.0.1:{port}"
    body = {"image": 0}
    assert server.ask("/api/image", body, Origin=own).status == 200
    for origin in ("https://evil.example", "null", f"http://127.0.0.1:{port + 1}"):
        assert server.ask("/api/image", body, Origin=origin).status == 403
    assert server.ask("/api/runs", Sec_Fetch_Site="cross-site").status == 403
    assert server.ask("/", Sec_Fetch_Site="cross-site").status == 200  # a link to the page


def test_an_address_that_others_reach_needs_the_token(session):
    access = Access.of("0.0.0.0", ("workstation.example.org",))
    assert len(access.token) >= 32 and access.token != Access.of("0.0.0.0").token
    with served(session, access) as server:
        for path in ("/", "/api/runs", "/assets/main.js", "/?token=wrong", "/?token="):
            assert server.ask(path).status == 401
        assert server.ask(f"/api/runs?token={access.token}").status == 401  # the page alone
        first = server.ask(f"/?token={access.token}")
        assert first.status == 303 and first.headers["location"] == "/"
        cookie = first.headers["set-cookie"]
        assert "httponly" in cookie.lower() and "samesite=lax" in cookie.lower()
        named = cookie.partition(";")[0]
        assert server.ask("/api/runs", Cookie=named).status == 200
        assert server.ask("/api/runs", Cookie=named[:-1]).status == 401
        host = "workstation.example.org:1"
        assert server.ask("/api/runs", Cookie=named, Host=host).status == 200
        assert server.ask("/api/runs", Cookie=named, Host="192.168.0.1").status == 200
        assert server.ask("/api/runs", Cookie=named, Host="evil.example").status == 403


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.1.2.3", True), ("localhost", True), ("::1", True),
     ("0.0.0.0", False), ("::", False), ("192.168.0.1", False), ("myhost", False)],
)  # fmt: skip
def test_only_a_loopback_address_needs_no_token(host, loopback):
    access = Access.of(host)
    assert access.loopback is loopback and bool(access.token) is not loopback


def test_the_page_has_no_script_style_or_address_inside():
    page = (ASSETS / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\bon\w+=|https?:", page)
    named = set(re.findall(r'(?:src|href)="(/[^"]*)"', page))
    assert named == {"/assets/explorer.css", "/assets/main.js"}
    for script in ASSETS.glob("*.js"):
        text = script.read_text(encoding="utf-8")
        assert "innerHTML" not in text and not re.search(r"https?:", text)
        for other in re.findall(r'from "\./([^"]+)"', text):
            assert (ASSETS / other).is_file()
        for name in re.findall(r'\bone\("([^"]+)"\)', text):
            assert f'id="{name}"' in page, (script.name, name)


def test_the_address_is_printed_before_the_server_waits(monkeypatch, capsys):
    monkeypatch.setattr(serve, "load_runs", lambda config: [])
    monkeypatch.setattr(serve.uvicorn.Server, "run", lambda self, sockets: None)
    assert main(["explore", "--port", "0", "--no-open"]) == 0
    assert re.search(r"^http://127\.0\.0\.1:\d+/$", capsys.readouterr().out, re.MULTILINE)
    assert main(["explore", "--port", "0", "--no-open", "--host", "0.0.0.0"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^http://\S+:\d+/\?token=\S{32,}$", out, re.MULTILINE)
    assert "not encrypted" in out


def test_what_cannot_be_opened_is_a_sentence(tmp_path, capsys):
    assert main(["explore", str(tmp_path), "--port", "0"]) == 2
    assert "holds no trained image encoder" in capsys.readouterr().err
    assert main(["explore", str(tmp_path / "none"), "--port", "0"]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert main(["explore", "a", "b", "c", "--port", "0"]) == 2
    assert "compares two at most" in capsys.readouterr().err
    with serve.bound("127.0.0.1", 0) as taken:
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["explore", "--port", port]) == 2
    assert f"port {port}" in capsys.readouterr().err
    assert main(["explore", "--host", "256.0.0.1"]) == 2
    assert "cannot be served at 256.0.0.1" in capsys.readouterr().err
