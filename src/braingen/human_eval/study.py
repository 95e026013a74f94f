"""`braingen human-eval`: build, check and analyse a human evaluation; simulate answers it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from braingen.config import Config
from braingen.data.stimuli import Stimuli
from braingen.evaluation.human_ratings import STUDY, fingerprint, read_study
from braingen.evaluation.image_files import LoadedImages, load_images
from braingen.evaluation.image_pairs import ImageSource
from braingen.human_eval import analysis as analyses
from braingen.human_eval import consent, rater, site
from braingen.human_eval.answers import RaterCheck, as_csv, check_raters, read_result
from braingen.human_eval.plan import (
    NOISE,
    SEEN,
    Plan,
    choose_images,
    identity_of,
    make_trials,
    pictures_needed,
    plan_as_json,
    plan_from_json,
)
from braingen.runtime.console import add_row
from braingen.runtime.console import console as new_console
from braingen.runtime.data_layout import Layout
from braingen.runtime.errors import UserError
from braingen.runtime.files import write_json, write_text
from braingen.runtime.paths import SOURCES, generated_in, one_subject, typed_run
from braingen.runtime.text_files import read_json
from braingen.runtime.untrusted import csv_text, one_line

PLAN, RESULTS, ANALYSIS = "plan.json", "results", "analysis.json"
LARGEST = 512
"""Largest side of an image in pixels, where none is set."""


class Method(NamedTuple):
    """One set of reconstructions."""

    name: str
    path: Path
    baseline: str
    """brain for the run's reconstructions, random or oracle for its controls, else empty."""
    pictures: LoadedImages


def study_folder(config: Config) -> Path:
    """The folder of the study."""
    return (
        Path(config.human_eval.study_folder).expanduser()
        if config.human_eval.study_folder
        else config.run.folder / "study"
    )


def study(config: Config, action: str) -> Path:
    """Build, check, analyse or simulate.

    Returns
    -------
    path : Path
        The page to open, the folder that was checked, the analysis, or the folder of result files.
    """
    actions = {"build": build, "check": check, "analyse": analyse, "simulate": simulate}
    return actions[action](one_subject(config, "braingen human-eval"))


# --- build ----------------------------------------------------------------------------------------


def _methods(config: Config) -> list[Method]:
    settings = config.human_eval
    generated = {source: generated_in(config.run.folder, source) for source in SOURCES}
    own = {path.absolute(): source for source, path in generated.items()}
    found: list[Method] = []
    for path_text, name in (
        (settings.method_a, settings.name_a),
        (settings.method_b, settings.name_b),
    ):
        if not path_text and found:
            continue
        path = Path(path_text).expanduser() if path_text else generated["brain"]
        if not path.exists():
            hint = (
                ""
                if path_text
                else (
                    f"; run `braingen reconstruct {typed_run(config.run.folder)}` first, or give"
                    " --method_a"
                )
            )
            raise UserError(f"{path} does not exist{hint}.")
        found.append(
            Method(name or path.stem, path, own.get(path.absolute(), ""), load_images(path))
        )
    names = [method.name for method in found]
    wrong = next(
        (
            name
            for name in names
            if name in (SEEN, NOISE, "other", "check") or "," in name or ";" in name
        ),
        None,
    )
    if wrong is not None:
        raise UserError(
            f"A method cannot be called {wrong!r}: choose another name with --name_a or --name_b."
        )
    if len(set(names)) < len(names):
        raise UserError(
            f"Both methods are called {names[0]!r}: rename one with --name_a or --name_b."
        )
    return found


def _tasks(config: Config, methods: Sequence[Method], console: Console) -> tuple[str, ...]:
    tasks = tuple(dict.fromkeys(config.human_eval.tasks))
    if len(methods) == 1 and "preference" in tasks:
        tasks = tuple(task for task in tasks if task != "preference")
        if not tasks:
            raise UserError(
                "The preference task compares two methods, but only one is given: add --method_b."
            )
        console.print("One method: no preference task (--method_b gives a second).")
    return tasks


def _seen(config: Config, ids: np.ndarray) -> tuple[LoadedImages, bool]:
    """Seen images by id, and whether they are simulated."""
    if config.human_eval.seen:
        loaded = load_images(Path(config.human_eval.seen).expanduser())
        row = {int(image): k for k, image in enumerate(loaded.image_N)}
        lost = [int(image) for image in ids if int(image) not in row]
        if lost:
            raise UserError(
                f"{config.human_eval.seen} has no image {lost[0]} ({len(lost)} of {len(ids)}"
                " missing), which was reconstructed."
            )
        return LoadedImages([loaded.images[row[int(image)]] for image in ids], ids), False
    stimuli = Stimuli(Layout.of(config.data.root))
    outside = [int(image) for image in ids if image >= len(stimuli)]
    if outside:
        raise UserError(
            f"There is a reconstruction of image {outside[0]}, but {stimuli.path} has"
            f" {len(stimuli)} images: give the seen images with --data_path or --seen."
        )
    return LoadedImages(stimuli.images(ids), ids), stimuli.simulated


def _some(loaded: LoadedImages, ids: Sequence[int], what: str) -> dict[int, np.ndarray]:
    """Validated images by id, float32 in [0, 1]."""
    row = {int(image): k for k, image in enumerate(loaded.image_N)}
    chosen = np.asarray(ids, dtype=np.int64)
    pictures = ImageSource(
        [np.asarray(loaded.images[row[int(image)]]) for image in chosen], chosen, what
    )
    return {int(image): pictures[k : k + 1][0] for k, image in enumerate(chosen)}


def build(config: Config) -> Path:
    """Write the folder for raters.

    Returns
    -------
    Path
        Path of its page.

    Raises
    ------
    UserError
        When the consent text has placeholders (unless ``human_eval.draft``), images are missing or
        invalid, or results of an earlier study exist.
    """
    console, settings, folder = new_console(), config.human_eval, study_folder(config)
    methods = _methods(config)
    tasks = _tasks(config, methods, console)
    ids = sorted(set.intersection(*(set(map(int, method.pictures.image_N)) for method in methods)))
    choice = choose_images(
        ids, settings.study_images, min(settings.checks, len(ids)), config.run.seed
    )
    loaded, simulated = _seen(config, np.array(sorted({*choice.asked, *choice.spare})))
    shown = {SEEN: _some(loaded, loaded.image_N.tolist(), "seen images")}
    shown |= {
        method.name: _some(method.pictures, choice.asked, f"reconstructions in {method.path}")
        for method in methods
    }
    side = settings.image_side or min(
        LARGEST, max(some.shape[-1] for group in shown.values() for some in group.values())
    )
    generator = np.random.default_rng(config.run.seed)
    needed = pictures_needed(choice, [method.name for method in methods], tasks)
    shown[NOISE] = {
        image: generator.random((3, side, side), dtype=np.float32)
        for what, image in needed
        if what == NOISE
    }
    names = {
        key: f"{number:04d}" for number, key in zip(generator.permutation(len(needed)), needed)
    }
    pictures = {
        name: site.encode(shown[what][image], side)
        for (what, image), name in sorted(names.items(), key=lambda pair: pair[1])
    }

    text = consent.read_consent(folder)
    open_gaps = consent.gaps(text)
    if open_gaps and not settings.draft:
        raise UserError(
            f"{folder / consent.CONSENT} still has {len(open_gaps)} places to fill in, the first"
            f" being {open_gaps[0]!r}: edit it and build again, or add --draft for a test version."
        )
    content: dict[str, Any] = {
        "seed": config.run.seed,
        "draft": bool(open_gaps),
        "simulated": simulated,
        "of_run": (
            fingerprint(config.run.folder, choice.asked) if methods[0].baseline == "brain" else ""
        ),
        "tasks": tasks,
        "methods": tuple(method.name for method in methods),
        "baselines": tuple(
            method.baseline if method.baseline in ("random", "oracle") else "" for method in methods
        ),
        "per_rater": settings.per_rater,
        "failed_checks": settings.failed_checks,
        "pictures": {name: site.digest(encoded) for name, encoded in pictures.items()},
        "trials": make_trials(choice, [method.name for method in methods], tasks, names),
    }
    plan = Plan(study=identity_of({**content, "consent": text}), **content)
    _refuse_orphans(folder, plan)
    hashes = site.write_site(folder / site.SITE, plan, pictures, consent.as_html(text))
    write_json(folder / PLAN, {**plan_as_json(plan), "files": hashes})
    (folder / RESULTS).mkdir(exist_ok=True)
    page = folder / site.SITE / site.PAGE
    if plan.draft:
        unfilled = f"{len(open_gaps)} places in {folder / consent.CONSENT} are not filled in"
        console.print(f"A draft, not for participants: {unfilled}.", style="yellow", soft_wrap=True)
    console.print(
        f"Study {plan.study}: {len(choice.asked)} images; {', '.join(tasks)};"
        f" {' and '.join(plan.methods)}.",
        soft_wrap=True,
    )
    console.print(f"Open in a browser: {page.absolute()}", soft_wrap=True)
    console.print(
        f"For phones, all in one file: {page.with_name(site.ONE_FILE).absolute()}", soft_wrap=True
    )
    console.print(f"Put result files into {(folder / RESULTS).absolute()}", soft_wrap=True)
    return page


def _refuse_orphans(folder: Path, plan: Plan) -> None:
    """Raise when a study that has result files would be replaced."""
    results = _result_files(folder)
    if not results or not (folder / PLAN).exists():
        return
    old = _plan(folder).study
    if old != plan.study:
        raise UserError(
            f"{folder / RESULTS} holds {len(results)} result files of study {old}, and this would"
            f" be another study ({plan.study}): choose another --study_folder, or move the files"
            " away."
        )


# --- check ----------------------------------------------------------------------------------------


def _plan_content(folder: Path) -> dict[str, Any]:
    path = folder / PLAN
    if not path.is_file():
        raise UserError(
            f"{path} is missing: there is no study in {folder}; `braingen human-eval build` writes"
            " one."
        )
    return read_json(path, "build the study again")


def _plan(folder: Path) -> Plan:
    return plan_from_json(_plan_content(folder))


def _result_files(folder: Path) -> list[Path]:
    return sorted(
        path for path in (folder / RESULTS).glob("*.csv") if not path.name.startswith(".")
    )


def check(config: Config) -> Path:
    """Check site and result files, and print a table of raters.

    Raises
    ------
    UserError
        When a file of the study is changed or missing, or a result file is damaged, edited or of
        another study.
    """
    console, folder = new_console(), study_folder(config)
    content = _plan_content(folder)
    plan = plan_from_json(content)
    problems = site.check_site(folder / site.SITE, content.get("files", {}))
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(
            f"In {folder / site.SITE} {problems[0]}{more}: build the study again before raters"
            " answer it."
        )
    tests = sum(trial.kind == "test" for trial in plan.trials)
    draft = " (draft)" if plan.draft else ""
    console.print(
        f"Study {plan.study}{draft}: the site is complete; {tests} trials and"
        f" {len(plan.trials) - tests} attention checks."
    )
    found = check_raters([read_result(path, plan) for path in _result_files(folder)], plan)
    _print_files(console, found)
    broken = [each for each in found if each.result.problems]
    for each in broken:
        for problem in each.result.problems[:5]:
            console.print(one_line(f"{each.result.path.name}: {problem}"), soft_wrap=True)
    if broken:
        raise UserError(
            f"{len(broken)} of {len(found)} result files cannot be used, the first being"
            f" {broken[0].result.path}."
        )
    return folder


def _print_files(console: Console, found: Sequence[RaterCheck]) -> None:
    if not found:
        console.print("There are no result files yet.")
        return
    table = Table("file", "rater", "trials", "checks failed", "counts")
    for checked in found:
        result = checked.result
        who = f"{result.rater}{' (simulated)' if result.simulated else ''}"
        trials = f"{len(result.answers)} of {result.expected}"
        add_row(
            table,
            result.path.name,
            who,
            trials,
            f"{result.failed} of {result.checks}",
            checked.reason or "yes",
        )
    console.print(table)


# --- analyse --------------------------------------------------------------------------------------


def analyse(config: Config) -> Path:
    """Write analysis.json, analysis.md and CSV tables; the run folder gets what its report needs.

    Returns
    -------
    Path
        Path of analysis.json.
    """
    folder = study_folder(config)
    plan = _plan(folder)
    files = _result_files(folder)
    if not files:
        raise UserError(
            f"There are no result files in {folder / RESULTS}: copy the CSV files that raters"
            " saved into it."
        )
    found = check_raters([read_result(path, plan) for path in files], plan)
    result = analyses.analyse(plan, found, config.evaluation.bootstrap, config.run.seed)
    content = analyses.as_json(plan, result)
    write_text(folder / "raters.csv", csv_text(result.raters, index=False, float_format="%.6g"))
    write_text(folder / "images.csv", csv_text(result.images, index=False, float_format="%.6g"))
    write_text(folder / "files.csv", csv_text(result.files, index=False, float_format="%.6g"))
    write_text(folder / "analysis.md", analyses.markdown(result))
    write_json(folder / ANALYSIS, content)
    console = new_console()
    _print_files(console, found)
    console.print(analyses.markdown(result), markup=False, highlight=False, soft_wrap=True)
    if plan.of_run:
        write_json(config.run.folder / STUDY, content)
        stale = read_study(config.run.folder)["stale"]
        effect = (
            "leave it out: the reconstructions were generated again after it was built"
            if stale
            else "include it from now on"
        )
        console.print(f"`braingen evaluate` and `braingen report` {effect}.", soft_wrap=True)
    else:
        console.print(
            f"The reconstructions are not those of {config.run.folder}: its tables and report leave"
            " the study out.",
            soft_wrap=True,
        )
    return folder / ANALYSIS


# --- simulate -------------------------------------------------------------------------------------


def _scene_classifier() -> rater.Features:
    """Late features of the scene classifier; for simulated images only."""
    import torch

    from braingen.evaluation.scene_observers import (
        CachedSceneClassifier,
        classifier_networks,
        load_scene_classifier,
    )

    late = next(
        network
        for network in classifier_networks(CachedSceneClassifier(load_scene_classifier()))
        if network.name == "classifier_late"
    )
    return lambda images: late.features(torch.from_numpy(images)).flatten(1).numpy()


def simulate(config: Config) -> Path:
    """Answer the study with simulated raters; every row of their CSV files is marked as simulated.

    Returns
    -------
    Path
        Folder of the result files.
    """
    folder = study_folder(config)
    plan = _plan(folder)
    if config.human_eval.rater_features == "scene_classifier" and not plan.simulated:
        raise UserError(
            "--rater_features scene_classifier needs simulated images: use --rater_features pixels."
        )
    pictures = {}
    for name in plan.pictures:
        with Image.open(
            io.BytesIO((folder / site.SITE / "pictures" / f"{name}.webp").read_bytes())
        ) as picture:
            pictures[name] = (
                np.asarray(picture.convert("RGB"), dtype=np.float32).transpose(2, 0, 1) / 255
            )
    features = rater.load_rater_features(
        plan,
        pictures,
        _scene_classifier()
        if config.human_eval.rater_features == "scene_classifier"
        else rater.pixels,
    )
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    for number in range(1, config.human_eval.raters + 1):
        rows = rater.rate(plan, number, features, config.human_eval.lapse, now, config.run.seed)
        write_text(folder / RESULTS / f"{rater.CODE.format(number=number)}.csv", as_csv(rows))
    summary = (
        f"{config.human_eval.raters} simulated raters have answered (features"
        f" {config.human_eval.rater_features}, lapse {config.human_eval.lapse:g})"
    )
    new_console().print(f"{summary}; `braingen human-eval analyse` is next.", soft_wrap=True)
    return folder / RESULTS
