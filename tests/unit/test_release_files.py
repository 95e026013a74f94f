"""What is told of the project in several files is told alike: citation, archive, containers,
workflows.
"""

from __future__ import annotations

import json
import re
import shlex

import pytest
from unit.told_commands import ROOT
import yaml

import braingen
from braingen.commands import all_commands

DOCKER = ROOT / "containers" / "Dockerfile"
APPTAINER = ROOT / "containers" / "braingen.def"
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def of_project(field: str) -> str:
    found = re.search(rf'^{field} = "(.*)"$', PROJECT, re.M)
    assert found is not None
    return found[1]


def test_citation_archive_and_package_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    archive = json.loads((ROOT / ".zenodo.json").read_text(encoding="utf-8"))
    versions = {citation["version"], archive["version"], of_project("version")}
    assert versions == {braingen.__version__}
    assert {citation["license"], archive["license"], of_project("license")} == {"Apache-2.0"}
    assert citation["title"] == archive["title"] and citation["abstract"] == archive["description"]
    authors = [author["name"] for author in citation["authors"]]
    assert authors == [creator["name"] for creator in archive["creators"]]
    assert citation["keywords"] == archive["keywords"]
    paper = citation["references"][0]["identifiers"][0]["value"]
    assert paper == archive["related_identifiers"][0]["identifier"]
    assert paper in (ROOT / "README.md").read_text(encoding="utf-8")
    assert citation["cff-version"] == "1.2.0" and archive["upload_type"] == citation["type"]


def docker_steps() -> list[tuple[str, str]]:
    """Instructions of the Dockerfile and what follows them."""
    text = re.sub(r"\\\n\s*", "", DOCKER.read_text(encoding="utf-8"))
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in lines]


def apptainer_sections() -> dict[str, list[str]]:
    """Sections of the Apptainer recipe and their lines."""
    found: dict[str, list[str]] = {"": []}
    name = ""
    for line in APPTAINER.read_text(encoding="utf-8").splitlines():
        if line.startswith("%"):
            name = line[1:].strip()
            found[name] = []
        elif line.strip() and not line.startswith("#"):
            found[name].append(line.strip())
    return found


def test_recipes_copy_files_that_exist():
    copied = [
        words.split()[:-1]
        for step, words in docker_steps()
        if step == "COPY" and not words.startswith("--from")
    ]
    of_docker = {name for names in copied for name in names}
    of_apptainer = {line.split()[0] for line in apptainer_sections()["files"]}
    assert of_docker == of_apptainer and all((ROOT / name).exists() for name in of_docker)
    # what the build of the wheel reads
    assert {"pyproject.toml", of_project("readme"), "LICENSE", "src"} <= of_docker
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert not of_docker & set(ignored)


def test_recipes_install_the_same():
    def installs(lines: list[str]) -> list[list[str]]:
        typed = [line.removeprefix("RUN ") for line in lines if " install " in line]
        neutral = [
            re.sub(r'"(\$TORCH_INDEX|\{\{ TORCH_INDEX \}\})"', "INDEX", line) for line in typed
        ]
        return [shlex.split(line) for line in neutral]

    steps = docker_steps()
    of_docker = installs([f"{step} {words}" for step, words in steps])
    assert of_docker == installs(apptainer_sections()["post"]) and len(of_docker) == 2
    pinned = re.search(r"^TORCH := *(torch==\S+)$", MAKEFILE, re.M)
    assert pinned, "the recipes read the pin of torch from the Makefile with sed"
    extras = re.search(r"\.\[(.*)\]", " ".join(of_docker[1]))
    assert extras and all(
        re.search(rf"^{name} = \[", PROJECT, re.M) for name in extras[1].split(",")
    )
    cpu = "https://download.pytorch.org/whl/cpu"
    assert ("ARG", f"TORCH_INDEX={cpu}") in steps
    assert f"TORCH_INDEX={cpu}" in apptainer_sections()["arguments"]
    image = {words.split()[0] for step, words in steps if step == "FROM"}
    assert image == {apptainer_sections()[""][1].removeprefix("From: ")}


@pytest.mark.parametrize("path", [DOCKER, APPTAINER, ROOT / "docs" / "containers.md"])
def test_recipes_type_commands_and_arguments_that_exist(path):
    text = re.sub(r"\\\n\s*", "", path.read_text(encoding="utf-8"))
    run = re.findall(r"(?:docker|apptainer) run .*?braingen\S* ([a-z-]+)", text)
    assert set(run) <= set(all_commands())
    if path.suffix == ".md":
        assert {"quickstart", "doctor", "train"} <= set(run)
    assert set(re.findall(r"--build-arg (\w+)=", text)) <= {"TORCH_INDEX"}
    assert all((ROOT / name).is_file() for name in re.findall(r"containers/[\w.]+", text))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_run_what_exists(path):
    text = path.read_text(encoding="utf-8")
    workflow = yaml.safe_load(text)
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert all("uses" in step or "run" in step for step in steps)
    for target in re.findall(r"\bmake ([a-z][a-z-]*)", text):
        assert re.search(rf"^(?:.* )?{target}(?: .*)?:", MAKEFILE, re.M), target
    for name in re.findall(r"(?<![\w/])\.ci/(\w+)", text):
        assert (ROOT / ".ci" / name).is_file()
    given = set(re.findall(r"\b(TORCH_INDEX|BRAINGEN_\w+):", text))
    read = MAKEFILE + (ROOT / "docs" / "conf.py").read_text(encoding="utf-8")
    assert all(name in read for name in given)


def test_a_tag_becomes_a_release_with_wheel_and_site():
    text = (ROOT / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8")
    workflow = yaml.safe_load(text)
    assert workflow[True] == {"push": {"tags": ["v*"]}}  # YAML reads `on` as true
    assert workflow["jobs"]["site"]["needs"] == "wheel"
    assert "gh release create" in text and "deploy-pages" in text and "path: build/site" in text
