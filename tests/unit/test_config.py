"""Settings: nothing is lost between file, tree and file; whatever is mistyped is named with what
was probably meant.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError
import pytest

from braingen.config import Config, load_config
from braingen.config.names import ALIASES, field_paths, fields_of, resolve
from braingen.config.shipped import FOLDER, shipped_configs
from braingen.runtime.errors import UserError
from braingen.runtime.run_folder import config_text

CONFIGS = sorted(FOLDER.glob("*.yaml"))


def refusal(tmp_path: Path, text: str, overrides: dict[str, str] | None = None) -> str:
    """The sentence with which a file of this content is refused."""
    file = tmp_path / "given.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        load_config(file, overrides)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_a_config_survives_being_saved(file, tmp_path):
    config = load_config(file)
    (tmp_path / "saved.yaml").write_text(config_text(config.model_dump(mode="json")))
    assert load_config(tmp_path / "saved.yaml") == config


def test_no_file_means_the_defaults():
    assert load_config() == Config()


def test_an_override_wins_over_the_file(tmp_path):
    file = tmp_path / "some.yaml"
    file.write_text("encoder:\n  hidden_dim: 64\n  n_blocks: 3\n")
    config = load_config(file, {"hidden_dim": "128"})
    assert (config.encoder.hidden_dim, config.encoder.n_blocks) == (128, 3)


@pytest.mark.parametrize(
    ("setting", "text", "value"),
    [
        ("training.max_lr", "3e-4", 3e-4),
        ("encoder.exp_factor_list", "2,2,2", (2, 2, 2)),
        ("encoder.exp_factor_list", "[2, 3]", (2, 3)),
        ("encoder.exp_factor_list", "", ()),
        ("data.subjects", "1,2,5,7", (1, 2, 5, 7)),
        ("prior.use_prior", "false", False),
        ("run.mixed_precision", "no", "no"),
        ("run.folder", "2024", Path("2024")),
        ("data.root", "~/nsd", Path.home() / "nsd"),
        ("backbone.path", "null", "null"),
    ],
)
def test_text_becomes_a_value_of_the_fields_type(setting, text, value):
    section, field = setting.split(".")
    assert getattr(getattr(load_config(None, {setting: text}), section), field) == value


def test_a_bare_no_in_yaml_is_the_precision(tmp_path):
    (tmp_path / "some.yaml").write_text("run:\n  mixed_precision: no\n")
    assert load_config(tmp_path / "some.yaml").run.mixed_precision == "no"


def test_one_setting_of_a_section_leaves_its_other_defaults_alone():
    changed = load_config(None, {"loss_text.mse_scale": "1"}).loss_text
    assert changed == Config().loss_text.model_copy(update={"mse_scale": 1.0})


def test_sections_may_be_empty(tmp_path):
    (tmp_path / "some.yaml").write_text("encoder:\n  # hidden_dim: 64\ngeneration:\n")
    assert load_config(tmp_path / "some.yaml") == Config()


def test_every_setting_is_documented_and_found_by_its_path():
    for path in field_paths():
        section, field = path.split(".")
        assert fields_of(section)[field].description, path
        assert resolve(path) == path


def test_a_config_cannot_be_changed_behind_a_stages_back():
    with pytest.raises(ValidationError):
        Config().encoder.hidden_dim = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("flag", "setting"),
    [
        *ALIASES.items(),
        ("hidden_dim", "encoder.hidden_dim"),
        ("n_blocks", "encoder.n_blocks"),
        ("use_prior", "prior.use_prior"),
        ("num_exp_0", "encoder.num_exp_0"),
        ("exp_factor_list", "encoder.exp_factor_list"),
        ("capacity_factor_0", "encoder.capacity_factor_0"),
        ("bottleneck_dim", "encoder.bottleneck_dim"),
        ("max_lr", "training.max_lr"),
        ("num_epochs", "training.num_epochs"),
        ("hidden-dim", "encoder.hidden_dim"),
    ],
)
def test_flags_people_know_are_settings(flag, setting):
    assert resolve(flag) == setting
    assert setting in field_paths()


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("hiden_dim", "hidden_dim"),
        ("encoder.hiden_dim", "encoder.hidden_dim"),
        ("num_epoch", "num_epochs"),
        ("subjs", "subj"),
    ],
)
def test_a_typo_names_the_nearest_setting(typed, meant):
    with pytest.raises(UserError, match=f"There is no setting '{typed}'.*Did you mean {meant}\\?"):
        resolve(typed)


def test_a_name_of_several_sections_asks_which():
    with pytest.raises(
        UserError, match=r"--clip_scale could mean loss_image\.clip_scale or loss_text\.clip_scale"
    ):
        resolve("clip_scale")


def test_a_name_like_nothing_points_to_the_list():
    with pytest.raises(UserError, match="`braingen config` lists all settings"):
        resolve("xyzzyxyzzy")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "encoder:\n  hiden_dim: 3\n",
            "There is no setting 'encoder.hiden_dim' (in {file}). Did you mean encoder.hidden_dim?",
        ),
        (
            "encodr:\n  hidden_dim: 3\n",
            "There is no setting 'encodr' (in {file}). Did you mean encoder?",
        ),
        ("encodr:\n", "There is no setting 'encodr' (in {file}). Did you mean encoder?"),
        (
            "encoder:\n  hidden_dim: many\n",
            "encoder.hidden_dim = many (in {file}) is not allowed: input should be a valid integer",
        ),
        (
            "generation:\n  steps: 0\n",
            "generation.steps = 0 (in {file}) is not allowed: input should be greater than 0.",
        ),
        ("encoder: [1\n", "{file} is not valid YAML: "),
        ("- encoder\n", "{file} is not of the form 'section:'"),
        ("encoder: 3\n", "{file} is not of the form 'section:'"),
        ("data:\n  subjects: []\n", "data.subjects = [] (in {file}) is not allowed"),
    ],
)
def test_a_mistake_in_a_file_is_told_with_the_files_name(tmp_path, text, words):
    assert refusal(tmp_path, text).startswith(words.format(file=tmp_path / "given.yaml"))


def test_a_mistake_on_the_command_line_is_not_blamed_on_the_file(tmp_path):
    sentence = refusal(tmp_path, "generation:\n  steps: 5\n", {"generation.steps": "-1"})
    assert sentence == "generation.steps = -1 is not allowed: input should be greater than 0."


def test_a_missing_file_names_those_that_are_there(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mine.yaml").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        load_config(Path("configs/mne.yaml"))
    shipped = ", ".join(shipped_configs())
    assert (
        str(caught.value)
        == "There is no configuration configs/mne.yaml. Configurations that ship with braingen: "
        f"{shipped}. Files here: configs/mine.yaml."
    )


@pytest.mark.parametrize(
    "asked", ["nsd_multi", "nsd_multi.yaml", "configs/nsd_multi.yaml", Path("nsd_multi")]
)
def test_a_shipped_configuration_is_found_by_name(tmp_path, monkeypatch, asked):
    monkeypatch.chdir(tmp_path)
    assert load_config(asked).data.subjects == tuple(range(1, 9))


def test_a_file_comes_before_a_shipped_configuration_of_the_same_name(tmp_path, monkeypatch):
    (tmp_path / "nsd_multi.yaml").write_text("data:\n  subjects: [3]\n")
    monkeypatch.chdir(tmp_path)
    assert load_config("nsd_multi.yaml").data.subjects == (3,)
    assert load_config("nsd_multi").data.subjects == tuple(range(1, 9))


@pytest.mark.parametrize("asked", ["nsd_subj1", "elsewhere/nsd_subj01.yaml"])
def test_an_unknown_name_lists_what_there_is(tmp_path, monkeypatch, asked):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError,
        match=(
            r"Did you mean nsd_subj01\?.*nsd_multi, nsd_published, nsd_subj01, nsd_subj01_small,"
            r" own_scans, simulated"
        ),
    ):
        load_config(asked)


def test_all_subjects_are_those_of_the_data_folder(tmp_path):
    for name in ("subj02", "subj05", "subj101", "others"):
        (tmp_path / "wds" / name).mkdir(parents=True)
    chosen = {"data.subjects": "all", "data.root": str(tmp_path)}
    assert load_config(None, chosen).data.subjects == (2, 5, 101)
    assert load_config(
        None, {**chosen, "data.root": str(tmp_path / "none")}
    ).data.subjects == tuple(range(1, 9))
