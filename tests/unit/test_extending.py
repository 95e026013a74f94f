"""The code of docs/extending.md works as it stands there, and what is forgotten is an error."""

from __future__ import annotations

from pathlib import Path
import re
import shutil
import subprocess

import numpy as np
import pytest
from unit.fake_scans import write_fake_scans
from unit.forking import run_with_package

pytestmark = pytest.mark.slow  # starts processes that import the package

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"```python (file|line)=(\S+)(?: after=(\w+))?\n(.*?)```", re.DOTALL)
FILES = {path: text for kind, path, _, text in BLOCK.findall(PAGE) if kind == "file"}
CLASSES = dict(re.findall(r"```python class=(\S+) before=\w+\n(.*?)```", PAGE, re.DOTALL))
LINES = {path: (table, text) for kind, path, table, text in BLOCK.findall(PAGE) if kind == "line"}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package without its weights, with nothing added."""
    source = ROOT / "src" / "braingen"
    ignored = shutil.ignore_patterns("__pycache__", "assets")
    return Path(shutil.copytree(source, tmp_path / "braingen", ignore=ignored))


def add_file(package: Path, path: str) -> None:
    (package / path).write_text(FILES[path], encoding="utf-8")


def add_line(package: Path, path: str) -> None:
    table, line = LINES[path]
    text = (package / path).read_text(encoding="utf-8")
    changed = re.sub(rf"(^{table}\b[^\n]*\{{\n)", rf"\1{line}", text, count=1, flags=re.MULTILINE)
    assert changed != text
    (package / path).write_text(changed, encoding="utf-8")


def run(package: Path, code: str) -> subprocess.CompletedProcess[str]:
    return run_with_package(package.parent, code)


def test_a_time_router_is_a_file_and_a_line(package):
    add_file(package, "routing/time/halves.py")
    add_line(package, "config/kinds.py")
    shown = run(package, "from braingen.cli import main; main(['finetune', '--help'])")
    assert re.search(r"--time \(attention\)\s+\{[^}]*halves[^}]*\}", shown.stdout), shown.stderr
    code = (
        "import torch; from braingen.routing.base import TimeSettings, time_router\n"
        "from braingen.config import load_config\n"
        "assert load_config(None, {'router.time': 'halves'}).router.time == 'halves'\n"
        "router = time_router('halves', TimeSettings(4))\n"
        "print(router(torch.tensor([900, 100])).weights_BL.tolist())"
    )
    done = run(package, code)
    assert done.stdout.strip() == "[[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]]", done.stderr


def test_a_time_router_that_lacks_its_line_or_its_forward_is_refused(package):
    add_file(package, "routing/time/halves.py")
    build = "from braingen.routing.base import *; time_router('halves', TimeSettings(4))"
    assert "time is 'halves'; allowed are" in run(package, build).stderr
    add_line(package, "config/kinds.py")
    path = package / "routing/time/halves.py"
    path.write_text(FILES["routing/time/halves.py"].replace("def forward", "def backward"))
    assert "lacks forward" in run(package, build).stderr
    path.unlink()
    assert "there is no file braingen/routing/time/halves.py" in run(package, build).stderr


def test_a_metric_is_one_file(package):
    add_file(package, "evaluation/pixel_metrics/mean_absolute.py")
    code = (
        "import torch; from braingen.cli import main; main(['evaluate', '--help'])\n"
        "from braingen.evaluation.pixel import all_scores\n"
        "truth = torch.rand(2, 3, 8, 8, generator=torch.manual_seed(0)) / 1000\n"
        "recons = truth + torch.tensor([0.25, 0.5]).view(2, 1, 1, 1)\n"
        "print(all_scores(truth, recons)['mean_absolute'].round(4).tolist())"
    )
    done = run(package, code)
    shown = "mean_absolute: absolute error of the pixels; lower is better"
    assert shown in done.stdout, done.stderr
    assert done.stdout.strip().endswith("[0.25, 0.5]"), done.stderr


def test_a_metric_that_lacks_something_is_refused(package):
    path = package / "evaluation/pixel_metrics/mean_absolute.py"
    path.write_text(FILES["evaluation/pixel_metrics/mean_absolute.py"].replace("SIDE = 256", ""))
    done = run(package, "import braingen.evaluation.metrics")
    assert "mean_absolute.py lacks SIDE: a metric's file has NAME, METRIC" in done.stderr


def add_encoder(package: Path, settings: str) -> None:
    text = (package / "config/encoders.py").read_text(encoding="utf-8")
    changed = text.replace("def splitting(", f"{settings}\n\ndef splitting(")
    assert changed != text
    (package / "config/encoders.py").write_text(changed, encoding="utf-8")


def test_an_encoder_is_a_file_and_its_settings(package):
    settings = CLASSES["config/encoders.py"]
    add_encoder(package, settings)
    lacking = run(package, "from braingen.encoders.base import encoder_class as c; c('BrainWide')")
    assert "there is no file braingen/encoders/wide.py" in lacking.stderr
    add_file(package, "encoders/wide.py")
    shown = run(package, "from braingen.cli import main; main(['train', 'image', '--help'])")
    assert re.search(r"--model \(BrainMoEMulti\)\s+\{[^}]*BrainWide[^}]*\}", shown.stdout)
    assert "--random_features" in shown.stdout
    code = (
        "import torch; from braingen.config import load_config\n"
        "from braingen.training.encoder_setup import build_embedding_decoder\n"
        "given = {'encoder.model': 'BrainWide', 'encoder.random_features': '16',"
        " 'encoder.hidden_dim': '8', 'prior.use_prior': 'false'}\n"
        "decoder = build_embedding_decoder(load_config(None, given), {1: 30}, (1, 12))\n"
        "print(tuple(decoder(torch.zeros(5, 30), 1).clip_BTD.shape))"
    )
    built = run(package, code)
    assert built.stdout.strip() == "(5, 1, 12)", built.stderr


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (
            '    where: ClassVar[str] = "braingen.encoders.wide:BrainWide"\n',
            "",
            "does not say where",
        ),
        (
            'BrainWide"] = "BrainWide',
            'BrainMoE"] = "BrainMoE',
            "two encoders with the name BrainMoE",
        ),
    ],
)
def test_an_encoder_that_lacks_something_is_refused_at_once(package, old, new, problem):
    settings = CLASSES["config/encoders.py"]
    assert old in settings
    add_encoder(package, settings.replace(old, new))
    done = run(package, "import braingen.config")
    assert done.returncode and problem in done.stderr


def test_a_form_of_responses_is_a_file_and_a_line(package):
    scans = write_fake_scans(package.parent / "scans", subjects=("01",), sessions=1)
    path = next(scans.root.rglob("*_betas.nii.gz"))
    path.unlink()
    np.savetxt(path.with_name(path.name.replace(".nii.gz", ".txt")), scans.responses["01"][0])
    code = (
        "from pathlib import Path; from braingen.cli import main\n"
        "done = main(['prepare', '--scans', 'scans', '--data_path', 'data', '--no-captions'])\n"
        "assert done == 0\n"
        "from braingen.data.voxel_file import load_responses\n"
        "from braingen.runtime.data_layout import Layout\n"
        "path = next(Path('scans').rglob('*_betas.txt'))\n"
        f"found = load_responses(path, 1, {int(scans.mask.sum())}, Layout.of('data'))\n"
        "print(found.voxels_NV.shape)"
    )
    assert "is of no form that is read" in run(package, code).stderr
    add_file(package, "data/ingest/forms/text.py")
    assert "is of no form that is read" in run(package, code).stderr
    add_line(package, "data/ingest/forms/__init__.py")
    done = run(package, code)
    assert "label 01, from text" in done.stdout, done.stderr
    assert done.stdout.strip().endswith(f"(12, {int(scans.mask.sum())})"), done.stderr
    (package / "data/ingest/forms/text.py").unlink()
    assert (
        "correct the line, or add braingen/data/ingest/forms/text.py" in run(package, code).stderr
    )
