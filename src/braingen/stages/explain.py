"""`braingen explain`: which voxels, through which expert, for what; maps, tables, figures and a page."""

from __future__ import annotations

import json
from pathlib import Path
import re
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import Progress
from safetensors.torch import load_file

from braingen.clip.cache import fingerprint_of_files
from braingen.config import Config
from braingen.data.betas import Betas
from braingen.data.nsd import Layout
from braingen.data.volumes import load_label_vector
from braingen.errors import UserError
from braingen.explain import figures, volumes
from braingen.explain.ablation import ablate_part, ablate_voxels, ablation_table, scores_of
from braingen.explain.agreement import group_agreement
from braingen.explain.attribution import Explainer, Query, completeness
from braingen.explain.components import components_of, expression_table, related_classes
from braingen.explain.experts import evidence, listen, profile, voxel_selectivity
from braingen.explain.maps import MapFile, mean_maps, root_mean_square
from braingen.explain.readout import WHOLE, Part, ReadOut, experts_per_level, parts_of
from braingen.explain.saliency import ReceptiveFields, beyond_usual, gaussians, inside_outside, pointing_game, saliency
from braingen.files import replaced_file, write_json, write_text
from braingen.report.inside import write_page
from braingen.run_layout import INDEX, READER, ROUTING, drawn_folder, run_folder
from braingen.runs import Run
from braingen.scores.uncertainty import mean_interval
from braingen.simulation.pictures import load_scenes
from braingen.simulation.scenes import object_mask
from braingen.stages.explain_inputs import Inputs, Subject, read_inputs, training_responses
from braingen.stages.explain_patterns import write_patterns
from braingen.stages.explain_pictures import draw_silenced, things_to_silence
from braingen.stages.reconstruct import assemble
from braingen.stages.targets import Targets

SIDE = 48
"""Places of a saliency map along one side: 0.18 degrees each, finer than any receptive field."""
MAY_CHANGE = tuple(
    f"explain.{name}"
    for name in (
        *("explain_steps", "parts", "nifti_images", "grouping", "atlases", "surface", "components", "permutations", "draws"),
        "ablation_images",
    )
)


def folder_for(config: Config) -> Path:
    """Where the results of one question lie: encoder, what is explained, and how."""
    about = re.sub(r"[^a-z0-9]+", "-", config.explain.about.lower()).strip("-")
    return config.run.folder / "explain" / f"{config.explain.modality}-{about}-{config.explain.method}"


def chosen_parts(config: Config, experts: list[int]) -> list[Part]:
    """The parts that explain.parts names, the whole decoder first."""
    everything = parts_of(experts)
    groups = {
        "all": everything,
        "whole": [WHOLE],
        "levels": [part for part in everything if part.level is not None and part.expert is None],
        "experts": [part for part in everything if part.expert is not None],
    }
    found = [part for name in config.explain.parts for part in groups.get(name) or [Part.parse(name)]]
    missing = [part.name for part in found if part not in everything]
    if missing:
        raise UserError(f"This encoder has no {missing[0]}; its levels have {', '.join(map(str, experts)) or 'no'} experts.")
    return [part for part in everything if part in found]


class Explanation:
    """The steps of one question; each writes its files and can be run alone.

    Parameters
    ----------
    config : settings
    folder : where results go
    inputs : what is explained
    """

    def __init__(self, config: Config, folder: Path, inputs: Inputs) -> None:
        self.config, self.folder, self.inputs = config, folder, inputs
        self.experts = experts_per_level(inputs.reader, len(inputs.subjects[0].voxels_NV[0]), inputs.subjects[0].number)
        self.parts = chosen_parts(config, self.experts)
        self.layout = Layout.of(config.data.root)
        self.said: list[str] = []

    def say(self, sentence: str) -> None:
        """Something a reader has to know; printed, and kept for the page."""
        self.said.append(sentence)
        Console().print(sentence)

    def of(self, subject: Subject) -> Path:
        """A subject's folder."""
        return self.folder / f"subj{subject.number:02d}"

    def map_file(self, subject: Subject, part: Part) -> MapFile:
        """Where a part's maps lie."""
        return MapFile(self.of(subject) / "maps" / f"{part.name}.npy")

    def regions(self, subject: Subject) -> dict[str, np.ndarray]:
        """Named regions of a subject; of a simulated one the planted areas as well."""
        found = volumes.known_regions(self.layout, subject.number, subject.places, self.config.explain.atlases)
        area_V = self.planted(subject).get("area")
        if area_V is not None:
            found |= {str(area): area_V == area for area in np.unique(area_V) if str(area) not in found}
        return found

    def planted(self, subject: Subject) -> dict[str, np.ndarray]:
        """What is known of a simulated subject's voxels; empty for a real one."""
        path = self.layout.truth(subject.number)
        if not self.inputs.simulated or not path.exists():
            return {}
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in ("area", "hemisphere", "sheet_uv", "sheet_extent_mm")}

    def table(self, path: Path, table: pd.DataFrame) -> None:
        """Write a table as CSV."""
        write_text(path, table.to_csv(index=False, float_format="%.6g"))

    # --- the steps ----------------------------------------------------------------------------------------------------

    def attributions(self) -> None:
        """Maps of every part and image; means, categories, regions, NIfTI, figures."""
        settings = self.config.explain
        rows = []
        with Progress() as progress:
            bar = progress.add_task("attributions", total=len(self.parts) * len(self.inputs.subjects))
            for subject in self.inputs.subjects:
                baseline = training_responses(self.config, subject.number) if settings.method == "gradient_shap" else None
                means: dict[str, np.ndarray] = {}
                for part in self.parts:
                    file = self.map_file(subject, part)
                    self._fill(file, subject, part, baseline)
                    notes, maps_NV = file.notes(), file.maps()
                    value_N, error_N = np.array(notes["value"]), np.array(notes["error"])
                    rows.append(
                        {"subject": subject.number, "part": part.name, "mean": value_N.mean(), "incomplete": completeness(value_N, error_N)}
                    )
                    means[part.name] = mean_maps(maps_NV, np.ones((len(maps_NV), 1)))[0]
                    self._write_maps(subject, part, maps_NV, means[part.name])
                    progress.update(bar, advance=1, description=f"attributions: subject {subject.number}, {part.title}")
                self.table(self.of(subject) / "regions.csv", volumes.region_table(means, self.regions(subject)))
        table = pd.DataFrame(rows)
        self.table(self.folder / "completeness.csv", table)
        worst = table.loc[table["incomplete"].idxmax()]
        self.say(f"Completeness: maps miss {table['incomplete'].median():.1%} of what they explain (median of parts), at most "
                 f"{worst['incomplete']:.1%} ({worst['part']}); more --points bring it down.")  # fmt: skip

    def _fill(self, file: MapFile, subject: Subject, part: Part, baseline) -> None:  # type: ignore[no-untyped-def]
        import torch

        settings, reader = self.config.explain, self.inputs.reader
        readout = ReadOut(reader, subject.number, part, cosine=settings.about == "cosine" and part == WHOLE)
        explainer = Explainer(
            readout, settings.method, None if baseline is None else baseline.to(reader.device), settings.points, seed=self.config.run.seed
        )

        def query(rows: np.ndarray) -> Query:
            voxels_BV = torch.from_numpy(subject.voxels_NV[rows]).to(reader.device)
            return Query(subject.image_N[rows], voxels_BV, self.inputs.direction_NF[rows])

        file.fill(explainer, subject.image_N, subject.voxels_NV.shape[1], query, 32)

    def _write_maps(self, subject: Subject, part: Part, maps_NV: np.ndarray, mean_V: np.ndarray) -> None:
        nifti, drawn = self.of(subject) / "nifti", self.of(subject) / "figures"
        subject.places.write(nifti / f"{part.name}-mean.nii.gz", mean_V)
        subject.places.write(nifti / f"{part.name}-size.nii.gz", root_mean_square(maps_NV))
        if self.inputs.classes is not None:
            by_class_CV = mean_maps(maps_NV, self.inputs.classes.member_NC)
            for name, value_V, member_N in zip(self.inputs.classes.names, by_class_CV, self.inputs.classes.member_NC.T):
                if member_N.any():
                    subject.places.write(nifti / "categories" / f"{part.name}-{name.replace(' ', '_')}.nii.gz", value_V)
        if part == WHOLE:
            for row in range(min(self.config.explain.nifti_images, len(maps_NV))):
                subject.places.write(nifti / "images" / f"whole-{subject.image_N[row]:06d}.nii.gz", np.asarray(maps_NV[row]))
            title = f"subject {subject.number}: mean contribution to the decoded embedding"
            figures.draw_slices(drawn / "whole-slices.png", subject.places, mean_V)
            if self.config.explain.surface:
                figures.draw_surface(drawn / "whole-surface.png", subject.places, mean_V, self.config.explain.surface, title)
        self.draw(drawn / f"{part.name}.png", subject, mean_V, "")

    def draw(self, path: Path, subject: Subject, value_V: np.ndarray, title: str) -> None:
        """A figure of a map: the flat sheet of a simulated subject, views through the voxels of a real one."""
        truth = self.planted(subject)
        if truth:
            place_V2 = truth["sheet_uv"] * truth["sheet_extent_mm"]
            figures.draw_sheet(path, place_V2, truth["hemisphere"], truth["area"], value_V, title)
        else:
            figures.draw_projections(path, subject.places, value_V, title)

    def experts_step(self) -> None:
        """Voxels of every expert by the weights, and what every expert speaks for."""
        if not self.experts:
            self.say("Experts: this encoder has none.")
            return
        import torch

        agreement = []
        for subject in self.inputs.subjects:
            some_BV = torch.from_numpy(subject.voxels_NV[:64]).to(self.inputs.reader.device)
            try:
                levels = voxel_selectivity(self.inputs.reader, subject.number, some_BV)
            except UserError as error:
                self.say(str(error))
                break
            regions = self.regions(subject)
            shares: dict[str, np.ndarray] = {}
            for level, found in enumerate(levels):
                path = self.of(subject) / "nifti" / f"selectivity-level-{level}.nii.gz"
                subject.places.write(path, found.share_EV.T.astype(np.float32))
                shares |= {Part(level, expert).name: share_V for expert, share_V in enumerate(found.share_EV)}
                if regions:
                    names = np.array([*regions, "none"])
                    inside_RV = np.array([*regions.values(), np.ones(subject.places.voxels, dtype=bool)])
                    told = group_agreement(found.chosen_V, names[inside_RV.argmax(axis=0)], seed=self.config.run.seed)
                    agreement.append({"subject": subject.number, "level": level, "exact": found.exact, **told._asdict()})
            self.table(self.of(subject) / "selectivity_regions.csv", volumes.region_table(shares, regions))
        if agreement:
            table = pd.DataFrame(agreement)
            self.table(self.folder / "expert_regions.csv", table)
            finest = table[table["level"] == table["level"].max()].iloc[0]
            self.say(f"Experts as maps: adjusted mutual information of the finest level's voxels with regions {finest['value']:.3f} "
                     f"(permuted voxels: up to {finest['permuted_high']:.3f}).")  # fmt: skip
        self._profiles()

    def _profiles(self) -> None:
        classes = self.inputs.classes
        if classes is None:
            self.say("Categories: nothing is known of what the images show; give a table with --labels (docs/explain.md).")
            return
        tables = []
        for subject in self.inputs.subjects:
            said = listen(self.inputs.reader, subject.voxels_NV, subject.number)
            for level, said_NEF in enumerate(said.experts):
                evidence_NEC = evidence(said_NEF, classes.direction_CF)
                found = profile(evidence_NEC, classes.member_NC, self.config.explain.permutations, self.config.run.seed)
                found.insert(0, "level", level)
                found.insert(0, "subject", subject.number)
                tables.append(found)
        table = pd.concat(tables, ignore_index=True)
        table["class"] = [classes.names[number] for number in table["class"]]
        self.table(self.folder / "profiles.csv", table)
        self.say(f"Expert profiles: {(table['q'] < 0.05).mean():.0%} of expert-{self.config.explain.grouping} pairs differ at FDR 5 %.")

    def components(self) -> None:
        """Independent components of the whole decoder's maps, over images and subjects."""
        maps = [self.map_file(subject, WHOLE).maps() for subject in self.inputs.subjects]
        count = min(self.config.explain.components, max(1, len(maps[0]) // 4))
        found = components_of(maps, count, self.config.run.seed)
        for subject, map_KV in zip(self.inputs.subjects, found.maps):
            subject.places.write(self.of(subject) / "nifti" / "components.nii.gz", map_KV.T)
            regions = self.regions(subject)
            table = volumes.region_table({f"component {k}": value_V for k, value_V in enumerate(map_KV)}, regions)
            self.table(self.of(subject) / "components_regions.csv", table)
            for k, value_V in enumerate(map_KV[:12]):
                self.draw(self.of(subject) / "figures" / f"component-{k}.png", subject, value_V, "")
        loadings = pd.DataFrame(found.loading_NK, columns=[f"component {k}" for k in range(count)])
        loadings.insert(0, "image", self.inputs.subjects[0].image_N)
        self.table(self.folder / "component_loadings.csv", loadings)
        self.table(self.folder / "component_expression.csv", expression_table(found, [each.number for each in self.inputs.subjects]))
        told = f"Components: {count} hold {found.explained:.0%} of the maps" + ("" if found.converged else " (ICA did not converge)")
        if self.inputs.classes is not None:
            table = related_classes(found.loading_NK, self.inputs.classes.member_NC)
            table["class"] = [self.inputs.classes.names[number] for number in table["class"]]
            self.table(self.folder / "component_categories.csv", table)
            told += f"; {table[table['q'] < 0.05]['component'].nunique()} of them go with a {self.config.explain.grouping} (FDR 5 %)"
        self.say(told + ".")

    def saliency(self) -> None:
        """Attributions spread over receptive fields, of the whole decoder and of experts whose maps are there."""
        for subject in self.inputs.subjects:
            try:
                polar = [load_label_vector(self.layout, subject.number, name, subject.places)
                         for name in ("prf_eccentricity", "prf_angle", "prf_size")]  # fmt: skip
            except UserError as error:
                self.say(f"Saliency: left out, receptive fields are needed. {error}")
                return
            gaussian_VP = gaussians(ReceptiveFields.from_polar(*polar), SIDE, self.config.explain.field_of_view)
            finished = [part for part in parts_of(self.experts) if self.map_file(subject, part).finished]
            if not finished:
                raise UserError("There are no maps yet: run `braingen explain` with the step attributions first.")
            for part in finished:
                map_NP = beyond_usual(saliency(self.map_file(subject, part).maps(), gaussian_VP))
                with replaced_file(self.of(subject) / "saliency" / f"{part.name}.npy") as handle:
                    np.save(handle, map_NP.reshape(-1, SIDE, SIDE).astype(np.float16))
                if part == WHOLE and self.inputs.simulated:
                    scenes = load_scenes(self.layout, subject.image_N.tolist())
                    object_NP = np.stack([object_mask(scene, SIDE).ravel() for scene in scenes])
                    told = pointing_game(map_NP, object_NP, seed=self.config.run.seed)
                    inside = mean_interval(inside_outside(map_NP, object_NP), 2000)
                    write_json(self.of(subject) / "pointing.json", {**told._asdict(), "inside": inside._asdict()})
                    self.say(
                        f"Saliency, subject {subject.number}: the peak lies on the object in {told.hits:.0%}, other images' maps in "
                        f"{told.chance:.0%} (gain {told.gain:.2f}, 95 % interval {told.gain_low:.2f} to {told.gain_high:.2f})."
                    )

    def ablation(self) -> None:
        """Silence levels, experts and regions; decode again."""
        import torch

        classes, tables = self.inputs.classes, []
        for subject in self.inputs.subjects:
            count = len(subject.image_N)
            member_NC = classes.member_NC if classes else np.zeros((count, 0), dtype=bool)
            direction_CF = classes.direction_CF if classes else torch.zeros(0, self.inputs.true_NF.shape[1])

            def decoded(voxels_NV: np.ndarray, number: int = subject.number):  # type: ignore[no-untyped-def]
                return listen(self.inputs.reader, voxels_NV, number)

            def score(said, directions=direction_CF, members=member_NC):  # type: ignore[no-untyped-def]
                return scores_of(said, self.inputs.true_NF, directions, members)

            groups = {"all": np.ones(count, dtype=bool)} | dict(zip(classes.names if classes else (), member_NC.T))
            done = [
                ablate_part(self.inputs.reader, part, subject.voxels_NV, subject.number, score)
                for part in parts_of(self.experts)
                if part.level is not None
            ]
            draws, seed = self.config.explain.draws, self.config.run.seed
            for name, inside_V in self.regions(subject).items():
                done.append(ablate_voxels(name, inside_V, subject.voxels_NV, lambda voxels: score(decoded(voxels)), draws, seed))
            table = ablation_table(score(decoded(subject.voxels_NV)), done, groups, self.config.run.seed)
            table.insert(0, "subject", subject.number)
            tables.append(table)
        table = pd.concat(tables, ignore_index=True)
        self.table(self.folder / "ablation.csv", table)
        regional = table[(table["images"] == "all") & (table["score"] == "cosine") & (table["voxels"] > 0)]
        if len(regional):
            most = regional.loc[regional["loss"].idxmax()]
            self.say(f"Ablation: of the regions, {most['silenced']} ({most['voxels']} voxels) costs most cosine, {most['loss']:.3f}"
                     f" (as many random voxels: {most.get('random', float('nan')):.3f}).")  # fmt: skip
        self.silenced_pictures(table)

    def silenced_pictures(self, table: pd.DataFrame) -> None:
        """Pictures of the first images with levels and regions silenced; `table` is ablation.csv."""
        if not (count := self.config.explain.ablation_images):
            return
        targets = Targets(self.config)
        try:
            decoder = assemble(self.config, targets)
        except (UserError, OSError) as error:
            self.say(f"Ablation: no pictures were drawn. {error}")
            return
        for subject in self.inputs.subjects:
            mine = table[table["subject"] == subject.number]
            things = things_to_silence(self.config, self.experts, self.regions(subject), mine)
            betas, own = Betas.of(self.layout, subject.number), self.of(subject)
            drawn = draw_silenced(self.config, decoder, targets, betas, subject, count, things, own / "silenced")
            self.table(own / "silenced_pictures.csv", drawn)

    def routers(self) -> None:
        """Level weights over denoising time, and how much every expert was listened to, where pictures were drawn with routers."""
        path = drawn_folder(self.config, "brain") / ROUTING
        modality = self.config.explain.modality
        mixed = load_file(path) if path.exists() else {}
        if f"{modality}_levels" not in mixed:
            self.say(f"Routers: {path} does not record any for {modality}s: pictures were drawn without; `braingen finetune`, then "
                     "`braingen reconstruct`.")  # fmt: skip
            return
        levels_NSL, experts_NSE = (mixed[f"{modality}_{name}"].numpy() for name in ("levels", "experts"))
        index = json.loads((path.parent / INDEX).read_text(encoding="utf-8"))["images"]
        mean_SL, sd_SL = levels_NSL.mean(axis=0), levels_NSL.std(axis=0)
        steps = [
            {"step": step, "level": level, "weight": mean_SL[step, level], "sd": sd_SL[step, level]}
            for step in range(mean_SL.shape[0])
            for level in range(mean_SL.shape[1])
        ]
        self.table(self.folder / "router_levels.csv", pd.DataFrame(steps))
        names = [part for part in parts_of(self.experts) if part.expert is not None]
        groups = {"all": np.ones(len(index), dtype=bool)}
        if self.inputs.classes is not None:
            row_of = {int(image): row for row, image in enumerate(self.inputs.subjects[0].image_N)}
            rows = np.array([row_of.get(int(image), -1) for image in index])
            classes = zip(self.inputs.classes.names, self.inputs.classes.member_NC.T)
            groups |= {name: (rows >= 0) & member_N[rows] for name, member_N in classes}
        use = [
            {"level": part.level, "expert": part.expert, "images": group, "n": inside_N.sum(), "use": experts_NSE[inside_N, :, k].mean()}
            for group, inside_N in groups.items()
            if inside_N.any()
            for k, part in enumerate(names[: experts_NSE.shape[2]])
        ]
        self.table(self.folder / "router_experts.csv", pd.DataFrame(use))
        first, last = (", ".join(f"{weight:.2f}" for weight in mean_SL[step]) for step in (0, -1))
        self.say(f"Routers: {len(index)} pictures, {mean_SL.shape[0]} steps; weights of the levels go from {first} to {last}.")

    def facts(self) -> dict[str, Any]:
        """What the page is told besides the files."""
        settings = self.config.explain
        return {
            "modality": settings.modality,
            "about": settings.about,
            "method": settings.method,
            "points": settings.points,
            "grouping": settings.grouping,
            "images": len(self.inputs.subjects[0].image_N),
            "subjects": [subject.number for subject in self.inputs.subjects],
            "experts": self.experts,
            "simulated": self.inputs.simulated,
        }


def explain(config: Config) -> Path:
    """Explain a trained encoder's decoding of the test images. Steps that are asked for again use the maps that are there.

    Returns
    -------
    the page, or the folder where none was asked for
    """
    folder = folder_for(config)
    settings = {**config.model_dump(mode="json", include={"data", "explain"}), "seed": config.run.seed}
    reader = run_folder(config, config.explain.modality) / READER
    settings["reader"] = fingerprint_of_files(reader) if reader.exists() else ""
    inputs = read_inputs(config)
    with Run.start(folder, settings, {"run": config.run.seed}, may_change=MAY_CHANGE) as run:
        work = Explanation(config, folder, inputs)
        sentences_path = folder / "findings.json"
        findings: dict[str, list[str]] = json.loads(sentences_path.read_text(encoding="utf-8")) if sentences_path.exists() else {}
        steps = {
            "attributions": work.attributions,
            "patterns": lambda: write_patterns(work),
            "experts": work.experts_step,
            "components": work.components,
            "saliency": work.saliency,
            "ablation": work.ablation,
            "routers": work.routers,
        }
        for name, step in steps.items():
            if name in config.explain.explain_steps:
                work.said = []
                step()
                findings[name] = work.said
                write_json(sentences_path, findings)
        write_json(folder / "facts.json", work.facts())
        if "page" not in config.explain.explain_steps:
            return folder
        page = write_page(folder, config.run.folder, config.data.root)
        run.mark_finished({"page": page.name})
    return page
