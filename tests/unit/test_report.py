"""The report: everything there is is shown, what is absent is left out, nothing is fetched, and
what is damaged is named.
"""

from __future__ import annotations

import base64
from html.parser import HTMLParser
import io
import json
from pathlib import Path
import re
import shutil

import numpy as np
from PIL import Image
import pytest
from unit.fake_report_inputs import write_fake_run

from braingen.config import Config
from braingen.data import image_grid as pictures
from braingen.evaluation.metrics import metric
from braingen.report import compared, figures, parts, refinement, tables
from braingen.report.inputs import ReportInputs, read_inputs
from braingen.report.page import SECTIONS, render
from braingen.report.write import report
from braingen.runtime.errors import UserError

pytestmark = pytest.mark.slow  # left out of `make quick`

IMAGES = 26


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return write_fake_run(tmp_path_factory.mktemp("report"), IMAGES)


@pytest.fixture(scope="module")
def page(config: Config) -> str:
    return report(config).read_text(encoding="utf-8")


@pytest.fixture
def copy(config: Config, tmp_path: Path) -> Config:
    """A run folder of its own, to break."""
    shutil.copytree(config.run.folder, tmp_path / "run")
    return config.model_copy(
        update={"run": config.run.model_copy(update={"folder": tmp_path / "run"})}
    )


def inputs_of(config: Config) -> ReportInputs:
    return read_inputs(config.run.folder, config.data.root)


class Elements(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self._inside = tag
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


# --- the page -------------------------------------------------------------------------------------


def test_the_page_asks_for_nothing(page: str) -> None:
    for tag, attributes in Elements(page).found:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            address = attributes.get(name)
            # a page beside it, or the explorer on this machine; asked for by a click only
            clicked = ("interpret/", "http://127.0.0.1:8765/")
            link = tag == "a" and name == "href" and (address or "").startswith(clicked)
            assert address is None or link or address.startswith(("data:", "#")), (
                tag,
                name,
                address[:80],
            )
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style and "@import" not in style
    assert "default-src 'none'" in page


def test_every_picture_is_there_and_is_described(page: str, config: Config) -> None:
    elements = Elements(page).found
    cards = [attributes for tag, attributes in elements if tag == "article"]
    assert len(cards) == IMAGES
    shown = [
        attributes
        for tag, attributes in elements
        if tag == "img" and len(attributes["src"] or "") > 100
    ]
    # seen, brain, random, oracle; four pairs at the top; seen, before and after refinement; levels
    # of three images
    assert len(shown) == 4 * IMAGES + 8 + 3 * min(IMAGES, refinement.SHOWN) + 12
    assert all(attributes["alt"] for attributes in shown)
    captions = json.loads((config.data.root / "coco_captions.json").read_text())
    text = Elements(page).text
    assert all(captions[str(2 * number + 1)][0] in text for number in range(IMAGES))


def test_what_others_wrote_is_escaped(page: str) -> None:
    assert "decoded caption &lt;1&gt;" in page and "decoded caption <1>" not in page


def test_it_says_simulated_wherever_figures_are(page: str) -> None:
    text = Elements(page).text
    assert "Left: the image that a simulated person saw" in text
    title = page[page.index("<title>") : page.index("</title>")]
    assert "imulated" in title
    for section in SECTIONS:
        start = page.index(f'<section id="{section.key}"')
        assert "imulated" in Elements(page[start : page.index("</section>", start)]).text, (
            section.key
        )


def test_real_data_are_not_called_simulated(tmp_path: Path) -> None:
    config = write_fake_run(tmp_path, 3, simulated=False, epochs=2)
    text = Elements(report(config).read_text(encoding="utf-8")).text
    assert "Left: the image that a person saw" in text
    assert "imulated" not in text.replace("--config simulated", "")


def test_every_score_is_shown_with_its_baselines(page: str, config: Config) -> None:
    text = Elements(page).text
    for name, score in json.loads((config.run.folder / "scores.json").read_text()).items():
        assert metric(name).words in text, name
        for key in ("value", "low", "high", "random", "oracle", "ridge", "chance"):
            assert tables.number(score[key]) in text, (name, key)


def test_routers_are_shown_over_time_by_expert_and_by_level(page: str) -> None:
    start = page.index('<section id="routers"')
    section = page[start : page.index("</section>", start)]
    text = Elements(section).text
    means = re.search(
        r"Mean level, weighted by the router: ([\d.]+) at the first step, ([\d.]+) at the last,"
        r" from coarse to fine",
        text,
    )
    assert (
        means
        and float(means[1]) < 1
        and float(means[2]) > 2
        and "t = 980" in text
        and "t = 20" in text
    )
    assert section.count('class="bar"') == 2 * 30
    assert section.count("<img") == 3 * 4  # three images: seen, two levels, all


def test_a_page_of_120_images_stays_below_8_megabytes(page: str) -> None:
    assert len(page) * 120 / IMAGES < 8e6


def test_the_same_inputs_give_the_same_page(config: Config, page: str) -> None:
    assert render(inputs_of(config)) == page


def test_absent_inputs_leave_their_section_out(copy: Config) -> None:
    run = copy.run.folder
    absent = ("random", "brain_level0", "brain_level1", "brain/routing.safetensors")
    for name in (
        "scores.json",
        "scores_per_image.csv",
        "scores_by_part.csv",
        "comparisons.json",
        "certainty.json",
        "comparison",
        "timings.json",
        "study.json",
        "refinement.json",
        "interpret",
        "image",
        "text",
        *(f"reconstructions/{each}" for each in absent),
    ):
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    page = render(inputs_of(copy)._replace(reliability=None))
    assert re.findall(r'<section id="(\w+)"', page) == ["gallery", "game"]
    assert "random voxels" not in Elements(page).text and "oracle" in Elements(page).text


def test_how_sure_the_decoder_is_has_a_section(page: str) -> None:
    text = Elements(page).text
    assert "0.334 (0.160 to 0.490" in text and "92.5%" in text and "86.2% to 96.5%" in text
    table = text[text.index("Least certain") :]
    assert 0 < table.index("0.100") < table.index("0.200")  # the lowest expectation first


def test_random_voxels_are_told_with_their_own_intervals(copy: Config) -> None:
    score = {"value": 0.5123, "low": 0.48, "high": 0.54}
    controls = {"random": {"draws": 3, "scores": {"two_way_clip": score, "pixcorr": score}}}
    (copy.run.folder / "controls.json").write_text(json.dumps(controls))
    text = Elements(render(inputs_of(copy))).text
    title = metric("two_way_clip").words
    assert (
        f"Random voxels (the mean of 3 draws) with their own 95 % intervals: {title} 0.512 (0.480"
        " to 0.540); chance is 0.5." in text
    )


def test_one_image_without_captions_makes_a_page(copy: Config) -> None:
    index = copy.run.folder / "reconstructions" / "brain" / "index.json"
    index.write_text(json.dumps({"images": [5]}))
    inputs = inputs_of(copy)._replace(captions=None, per_image={})
    order = [
        "gallery",
        "scores",
        "reliability",
        "certainty",
        "parts",
        "compared",
        "refinement",
        "people",
        "routers",
        "explained",
        "curves",
        "explorer",
        "run",
    ]
    assert re.findall(r'<section id="(\w+)"', render(inputs)) == order


def test_a_large_test_set_shows_the_first_and_the_extremes() -> None:
    images = list(range(1000))
    rank = {image: image / 1000 for image in images}
    chosen = tables.choose(images, rank, limit=120)
    assert chosen == [*range(96), *range(96, 108), *range(988, 1000)]
    assert tables.choose(images, {}, limit=120) == list(range(120))
    assert tables.choose(images[:120], rank, limit=120) == list(range(120))


# --- what is wrong is named -----------------------------------------------------------------------


def test_without_reconstructions_the_command_is_named(copy: Config) -> None:
    shutil.rmtree(copy.run.folder / "reconstructions")
    with pytest.raises(UserError, match="braingen reconstruct"):
        report(copy)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("scores.json", '{"pixcorr": ', "scores.json is not JSON or cut short.*braingen evaluate"),
        ("scores.json", "[1, 2]", "holds a list"),
        ("scores_per_image.csv", "picture,pixcorr\n1,0.5\n", "no column `image`"),
        ("scores_by_part.csv", "level,score\n0,pixcorr\n", "no column `part`.*braingen evaluate"),
        (
            "comparison/summary.csv",
            "run,score\na,pixcorr\n",
            "no column `method`.*braingen compare",
        ),
        ("reconstructions/brain/index.json", '{"images": []}', "names no images"),
        ("reconstructions/brain/index.json", '{"images": [1, 4000]}', "no 004000.png"),
        ("reconstructions/brain/000001.png", "not a picture", "000001.png is not a picture"),
        ("image/config.yaml", "a: [1", "not valid YAML"),
    ],
)
def test_damaged_inputs_are_named(copy: Config, name: str, content: str, message: str) -> None:
    (copy.run.folder / name).write_text(content)
    with pytest.raises(UserError, match=message):
        report(copy)


def test_pictures_of_another_data_folder_are_refused(copy: Config) -> None:
    brain = copy.run.folder / "reconstructions" / "brain"
    (brain / "000001.png").rename(brain / "004000.png")
    (brain / "index.json").write_text(json.dumps({"images": [4000]}))
    with pytest.raises(UserError, match="not the images of this run"):
        report(copy)


# --- tables ---------------------------------------------------------------------------------------


def test_overall_is_the_mean_rank_with_errors_turned_round() -> None:
    per_image = {
        1: {"pixcorr": "0.9", "mse": "0.01"},
        2: {"pixcorr": "0.5", "mse": "0.02"},
        3: {"pixcorr": "0.1", "mse": "", "object_true": "7"},
    }
    assert tables.overall(per_image) == pytest.approx({1: 1.0, 2: 0.25, 3: 0.0})
    assert tables.overall({}) == {}
    with pytest.raises(UserError, match="There is no score 'unheard_of'"):
        tables.overall({1: {"unheard_of": "1"}})


def test_attributes_are_told_by_name_or_by_accuracy() -> None:
    row = {
        "object_true": "dog",
        "object_predicted": "cup",
        "colour_accuracy": "1.0",
        "background_accuracy": "",
        "object_accuracy": "0",
    }
    found = tables.image_attributes(row)
    assert [(each.name, each.right) for each in found] == [("object", False), ("colour", True)]
    assert found[0].predicted == "cup"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (0.0, "0.000"),
        (0.5, "0.500"),
        (-0.25, "−0.250"),
        (14.612, "14.6"),
        (0.00123, "0.0012"),
    ],
)
def test_numbers_have_as_many_digits_as_are_worth_reading(value: float | None, text: str) -> None:
    assert tables.number(value) == text


@pytest.mark.parametrize(
    ("share", "text"), [(0.742, "74"), (0.998, "99.8"), (0.003, "0.3"), (1.0, "100"), (0.0, "0")]
)
def test_percent_never_claims_all_or_nothing(share: float, text: str) -> None:
    assert tables.percent(share) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(2.14, "2.1 s"), (41.4, "41 s"), (152.9, "2 min 33 s"), (7325.0, "2 h 2 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert tables.duration(seconds) == text


def test_only_settings_that_differ_are_listed() -> None:
    settings = Config().model_dump(mode="json")
    assert tables.changed_settings(settings) == []
    settings["training"]["num_epochs"] = 3
    settings["new"] = {"thing": True}
    assert tables.changed_settings(settings) == [
        ("training.num_epochs", "3", "50"),
        ("new.thing", "yes", "–"),
    ]


def test_free_form_provenance_is_told() -> None:
    facts = dict(
        tables.provenance_facts(
            {"seed": 3, "versions": {"torch": "2.13"}, "argv": ["a", "b"], "nothing": None}
        )
    )
    assert facts == {"seed": "3", "versions": "torch 2.13", "argv": "a, b"}


# --- figures and pictures -------------------------------------------------------------------------


def test_marks_lie_where_their_values_are() -> None:
    score = {
        "value": 0.5,
        "low": 0.25,
        "high": 0.75,
        "random": 0.0,
        "oracle": 1.0,
        "ridge": None,
        "chance": 0.5,
        "n": 9,
        "pool": None,
    }
    ((_, (row,)),) = tables.score_rows({"object_accuracy": score})
    chart = figures.interval_chart(row)
    assert (
        'cx="50.00%"' in chart
        and 'x1="26.00%" x2="74.00%"' in chart
        and chart.count("<svg x=") == 2
    )
    assert "random 0.000" in chart and "ridge" not in chart.split("aria-label")[1].split(">")[0]


@pytest.mark.parametrize(
    "values", [(0.0, 1.0), (-0.31, 0.92), (1e-5, 3e-5), (120.0, 9000.0), (0.8, 0.81)]
)
def test_ticks_are_round_and_cover_the_values(values: tuple[float, float]) -> None:
    marks = figures.ticks(*values)
    steps = np.diff(marks)
    assert marks[0] <= values[0] and marks[-1] >= values[1]
    assert 2 <= len(marks) <= 8 and np.allclose(steps, steps[0])


def test_curves_mark_the_best_of_what_is_held_out_and_skip_what_is_no_number() -> None:
    records = [
        {
            "epoch": e,
            "validation/loss": abs(e - 3),
            "train/clip": float("nan") if e == 1 else 1.0,
            "note": "x",
        }
        for e in range(6)
    ]
    panels = figures.curve_panels({"image": records})
    assert [(panel.title, panel.group) for panel in panels] == [
        ("loss", "held-out"),
        ("clip", "training"),
    ]
    assert "best 0.00 at epoch 3" in panels[0].chart
    assert "nan" not in panels[1].chart and panels[1].chart.count(" L") == 4
    assert figures.curve_panels({"image": []}) == []


def test_embedded_pictures_look_like_what_they_were() -> None:
    ramp = np.linspace(0, 255, 224).astype(np.uint8)
    picture = Image.fromarray(
        np.stack(
            [
                np.tile(ramp, (224, 1)),
                np.tile(ramp[:, None], (1, 224)),
                np.full((224, 224), 90, np.uint8),
            ],
            -1,
        )
    )
    uri = pictures.data_uri(picture)
    back = Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/webp;base64,"))))
    assert back.size == (pictures.SIDE, pictures.SIDE)
    assert np.abs(np.asarray(back, float) - np.asarray(picture.resize(back.size), float)).mean() < 4


def test_the_sheet_has_seen_above_drawn(tmp_path: Path) -> None:
    colours = [("red", "blue"), ("green", "black"), ("white", "yellow")]
    pairs = [
        (Image.new("RGB", (20, 20), seen), Image.new("RGB", (9, 9), drawn))
        for seen, drawn in colours
    ]
    pictures.write_sheet(tmp_path / "sheet.png", pairs, "title", columns=2, side=10)
    sheet = Image.open(tmp_path / "sheet.png").convert("RGB")
    left, top = 16 + 92, 16 + 34
    assert [sheet.getpixel((left + 5, top + y)) for y in (5, 19)] == [(255, 0, 0), (0, 0, 255)]
    assert [sheet.getpixel((left + 19, top + y)) for y in (5, 19)] == [(0, 128, 0), (0, 0, 0)]
    assert sheet.getpixel((left + 5, top + 24 + 18 + 19)) == (255, 255, 0)


def test_the_sheet_is_left_beside_the_page(page: str, config: Config) -> None:
    with Image.open(config.run.folder / "pictures.png") as sheet:
        assert sheet.width > 1000 and sheet.height > 400


def test_before_and_after_refinement_says_what_is_better_and_what_is_worse(config: Config) -> None:
    inputs = read_inputs(config.run.folder, config.data.root)
    context = refinement.context(inputs)
    assert context is not None
    rows = {row["title"]: row for row in context["rows"]}
    assert {title: row["conclusion"] for title, row in rows.items()} == {
        "Colour": "–", "PixCorr": "no difference", "SSIM": "worse", "MSE": "better",
    }  # fmt: skip
    assert (context["better"], context["worse"], context["compared"]) == (1, 1, 3)
    assert rows["MSE"]["difference"] == "−0.009" and context["amount"] == "strength 0.3"
    assert [card["image"] for card in context["cards"]] == list(inputs.images[: refinement.SHOWN])
    assert refinement.context(inputs._replace(refined={})) is None
    started = {
        **inputs.refinement,
        "settings": {**inputs.refinement["settings"], "denoising_start": 0.6},
    }
    told = refinement.context(inputs._replace(refinement=started))
    assert told is not None and told["amount"] == "from 0.6 of the denoising on"


def test_levels_and_experts_have_a_table_each(config: Config, page: str) -> None:
    told = parts.context(inputs_of(config))
    assert told is not None and told["heads"] == ["CLIP cosine", "Retrieval, brain to image"]
    assert [part for part, _ in told["levels"]] == ["level 0", "level 1"] and len(
        told["experts"]
    ) == 6
    assert told["levels"][1][1][0] == {
        "label": "CLIP cosine",
        "value": "0.700",
        "interval": "0.660 to 0.750",
    }
    assert told["chances"] == [("Retrieval, brain to image", "0.038")]
    assert "level 1, expert 3" in Elements(page).text


def test_what_compare_found_is_told_by_pair_and_by_method(config: Config, page: str) -> None:
    told = compared.context(inputs_of(config))
    assert told is not None
    ((first, _, rows),) = told["pairs"]
    assert first == "runs/<ours>" and [(row["title"], row["conclusion"]) for row in rows] == [
        ("PixCorr", "better"), ("CLIP cosine", "not different"),
    ]  # fmt: skip
    assert rows[0]["p"] == "< 0.001" and rows[1]["interval"] == "−0.003 to 0.005"
    assert told["methods"] == [
        (
            "BrainGen",
            [
                {
                    "title": "PixCorr",
                    "value": "0.512",
                    "interval": "0.490 to 0.530",
                    "seeds": "0.004",
                    "subjects": "–",
                    "runs": "1, 3",
                }
            ],
        )
    ]
    assert "runs/<ours> minus runs/a_run" in Elements(page).text


def test_the_explorer_of_the_run_is_linked_with_the_command_that_starts_it(
    page: str, config: Config
) -> None:
    assert '<a href="http://127.0.0.1:8765/">' in page
    assert f'<pre tabindex="0">braingen explore {config.run.folder}</pre>' in page


def test_pages_that_look_inside_are_linked_with_what_they_found(page: str) -> None:
    assert '<a href="interpret/image-target-integrated_gradients/interpret.html">' in page
    assert "Completeness error of the maps: &lt;2&gt; %." in page
