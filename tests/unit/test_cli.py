"""The command line: quick help, overrides in every spelling, and a sentence for whatever is
misspelt.
"""

from __future__ import annotations

import json
from pathlib import Path
import resource
import subprocess
import sys
from typing import get_args

import pytest

from braingen import __version__, cli
from braingen.cli import main
from braingen.commands import all_commands
from braingen.config import Config, load_config
from braingen.config.describe import allowed, condition
from braingen.config.names import field_paths, fields_of
from braingen.config.overrides import parse_overrides
from braingen.runtime.errors import UserError

COMMANDS = all_commands()
HEAVY = {"torch", "diffusers", "transformers", "pandas", "numpy", "h5py"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["encoder.hidden_dim=512"], {"encoder.hidden_dim": "512"}),
        (["--hidden_dim", "512"], {"encoder.hidden_dim": "512"}),
        (["--hidden-dim=512"], {"encoder.hidden_dim": "512"}),
        (["--encoder.hidden_dim", "512"], {"encoder.hidden_dim": "512"}),
        (["--subj", "1", "--lr", "3e-4"], {"data.subjects": "1", "training.max_lr": "3e-4"}),
        (["--use_prior"], {"prior.use_prior": "true"}),
        (["--no-use_prior", "--steps", "3"], {"prior.use_prior": "false", "generation.steps": "3"}),
        (
            ["--no_use_prior", "--no-use_text"],
            {"prior.use_prior": "false", "generation.use_text": "false"},
        ),
        (["--use_image", "false"], {"generation.use_image": "false"}),
        (
            ["--use_image", "generation.steps=2"],
            {"generation.use_image": "true", "generation.steps": "2"},
        ),
        (["--random_fmri"], {"generation.source": "random"}),
        (["--oracle"], {"generation.source": "oracle"}),
        (["--steps", "2", "--steps", "3"], {"generation.steps": "3"}),
        (["--num_images", "2"], {"generation.num_images": "2"}),
        ([], {}),
    ],
)
def test_overrides_in_every_spelling(words, expected):
    assert parse_overrides(words) == (None, expected)


@pytest.mark.parametrize("words", [["--config", "a.yaml"], ["--config=a.yaml"]])
def test_the_config_file(words):
    assert parse_overrides([*words, "--steps", "4"]) == (Path("a.yaml"), {"generation.steps": "4"})


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--hiden_dim", "3"], "There is no setting 'hiden_dim'. Did you mean hidden_dim?"),
        (
            ["encoder.hiden_dim=3"],
            "There is no setting 'encoder.hiden_dim'. Did you mean encoder.hidden_dim?",
        ),
        (["--hidden_dim"], "--hidden_dim needs a value: --hidden_dim VALUE (now 4096)."),
        (
            ["--hidden_dim", "--steps", "3"],
            "--hidden_dim needs a value: --hidden_dim VALUE (now 4096).",
        ),
        (["--config"], "--config needs a name or a file, for instance --config simulated."),
        (
            ["hello"],
            "'hello' is not understood: write settings as section.field=value or --name value.",
        ),
        (["=3"], "'=3' is not understood: write settings as section.field=value or --name value."),
        (["--"], "'--' is not understood: a setting's name follows the dashes."),
        (["--=3"], "'--=3' is not understood: a setting's name follows the dashes."),
        (
            ["--random_fmri", "false"],
            "--random_fmri takes no value, but 'false' follows: write it alone, or"
            " generation.source=VALUE.",
        ),
        (
            ["--json=no"],
            "--json takes no value, but 'no' follows: write it alone, or doctor.output=VALUE.",
        ),
        (
            ["--no-use_prior", "false"],
            "--no-use_prior takes no value, but 'false' follows: write it alone, or"
            " prior.use_prior=VALUE.",
        ),
        (
            ["--no-train_router_only"],
            "There is no flag --no-train_router_only: write"
            " training.trained={all,routers,subject}.",
        ),
    ],
)
def test_words_that_are_not_understood(words, sentence):
    with pytest.raises(UserError) as caught:
        parse_overrides(words)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("words", "setting", "value"),
    [
        ("--random-fmri", "generation.source", "random"),
        ("--train-router-only", "training.trained", "routers"),
        ("--multi-subject", "data.subjects", "all"),
        ("--no-multi-subject", "data.subjects", "1"),
        ("--no-use-prior", "prior.use_prior", "false"),
        ("--no_use_prior", "prior.use_prior", "false"),
        ("--hidden-dim 3", "encoder.hidden_dim", "3"),
    ],
)
def test_hyphens_and_underscores_are_alike_in_flags(words, setting, value):
    assert parse_overrides(words.split()) == (None, {setting: value})


def test_a_switch_names_its_two_values():
    with pytest.raises(UserError, match="use_prior = maybe is not allowed: true or false"):
        load_config(None, {"prior.use_prior": "maybe"})


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["simulat"], "There is no command 'simulat'. Did you mean simulate?"),
        (["xyz"], "There is no command 'xyz'. Commands: quickstart, demo, doctor, "),
        (
            ["train"],
            "braingen train: missing argument {image,text,low_level,encoding}; for instance"
            " braingen train image ...",
        ),
        (
            ["train", "images"],
            "braingen train: 'images' is not one of {image,text,low_level,encoding}; for instance",
        ),
        (["evaluate", "--steps", "none"], "generation.steps = none is not allowed: "),
        (["report", "--config", "nowhere.yaml"], "There is no configuration nowhere.yaml."),
    ],
)
def test_a_mistake_ends_in_one_sentence_and_code_2(words, sentence, capsys):
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"braingen: {sentence}") and printed.err.count("\n") == 1


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_help_names_every_command(words, capsys):
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert all(name in printed and command.summary in printed for name, command in COMMANDS.items())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_its_help(name, capsys):
    assert main([name, "--help"]) == 0
    printed = capsys.readouterr().out
    assert COMMANDS[name].summary in printed
    for section in COMMANDS[name].sections:
        for field in fields_of(section):
            shown = [
                flag for flag in (f"--{field}", f"--{section}.{field}") if f"  {flag} " in printed
            ]
            assert f"{section}.{field}" in {
                path
                for flag in shown
                for path in parse_overrides([f"{flag}=1"], COMMANDS[name].own)[1]
            }


def test_every_command_leads_to_a_stage():
    import ast
    import importlib
    import inspect

    for command in COMMANDS.values():
        called = [
            node
            for node in ast.walk(ast.parse(inspect.getsource(command.run)))
            if isinstance(node, ast.ImportFrom)
        ]
        for node in called:
            assert callable(getattr(importlib.import_module(node.module), node.names[0].name))
        assert called or command.name == "config", command.name


def test_settings_are_listed(capsys):
    assert main(["config"]) == 0
    printed = capsys.readouterr().out
    assert all(
        f"  --{path.split('.')[1]} " in printed or f"  --{path} " in printed
        for path in field_paths()
    )


def test_help_prints_what_may_be_given(capsys):
    """Choices, bounds and kinds of every setting, and beside which others it counts."""
    assert main(["config"]) == 0
    printed = capsys.readouterr().out
    lines: dict[str, str] = {}
    section = ""
    for line in printed.splitlines():
        if line.partition(":")[0] in Config.model_fields:
            section = line.partition(":")[0]
        elif line.startswith("  --") and section:
            lines.setdefault(f"{section}.{line.split()[0][2:].removeprefix(f'{section}.')}", line)
    for path in field_paths():
        section, _, field = path.partition(".")
        assert lines[path].endswith(f" {allowed(section, field)}"), path
        for choice in get_args(fields_of(section)[field].annotation):
            assert not isinstance(choice, str) or choice in allowed(section, field), (path, choice)
        assert condition(section, field) in printed
    assert (
        allowed("encoder", "model")
        == "{BrainMoEMulti,BrainMoE,BrainMoEHier,BrainMoEVoxel,BrainMoERegions,BrainEncoder}"
    )
    assert (
        allowed("router", "time_choice") == "{soft,hard}"
        and allowed("prior", "use_prior") == "switch"
    )
    assert allowed("refinement", "strength") == "number above 0, at most 1"
    assert allowed("encoder", "exp_factor_list") == "list of whole numbers above 0"
    assert condition("prior", "depth") == "only with prior.use_prior=true"


@pytest.mark.slow
def test_help_may_be_read_in_part():
    """A program that reads one line only (head) ends the command without a traceback."""
    code = "import sys; from braingen.cli import main; sys.exit(main(['train', '--help']))"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.close()  # before anything is written
        assert process.stderr.read() == ""
    assert process.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "code"), [(["--help"], 0), (["--version"], 0), (["train", "sound"], 2)]
)
def test_python_runs_the_package_as_the_program(words, code, capsys):
    """``python -m braingen`` prints and ends as ``braingen``, and its help loads no heavy library
    either.
    """
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "braingen", *words],
        capture_output=True,
        text=True,
    )
    loads, errors = [], []
    for line in done.stderr.splitlines():
        (loads if line.startswith("import time:") else errors).append(line)
    loaded = {line.rpartition("|")[2].strip() for line in loads}
    assert "braingen.cli" in loaded and not HEAVY & loaded
    assert done.returncode == main(words) == code
    printed = capsys.readouterr()
    assert done.stdout == printed.out and errors == printed.err.splitlines()


def test_the_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{__version__}\n"


def test_a_stage_is_given_the_settings_and_its_path_is_printed(monkeypatch, capsys):
    seen = []

    def stage(config, choice):
        seen.append((config.encoder.hidden_dim, choice))
        return Path("somewhere")

    monkeypatch.setattr("braingen.training.encoder.train", stage)
    assert main(["train", "text", "--hidden_dim", "48"]) == 0
    assert seen == [(48, "text")] and capsys.readouterr().out == "somewhere\n"


def test_being_stopped_is_told_calmly(monkeypatch, capsys):
    def stopped(words):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_run", stopped)
    assert main(["demo"]) == 130
    assert "the same command continues the work" in capsys.readouterr().err


@pytest.mark.slow
def test_help_and_mistakes_take_less_than_a_second_of_work():
    """Seconds of processor, not of the clock: other work on the machine does not count. No heavy
    library is loaded.
    """
    code = (
        "import json, sys; from braingen.cli import main; code = main(sys.argv[1:]);"
        " print(json.dumps([code, sorted(sys.modules)]))"
    )
    for words, expected in ((["--help"], 0), (["train", "image", "--hiden_dim", "3"], 2)):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1
        code_returned, modules = json.loads(done.stdout.splitlines()[-1])
        assert code_returned == expected
        assert not HEAVY & set(modules)


@pytest.mark.parametrize(
    ("typed", "subjects"),
    [
        ("--multi_subject", "all"),
        ("--multi_subject 2,3", "2,3"),
        ("--multi_subject=2,3", "2,3"),
        ("--multi_subject --batch_size 8", "all"),
        ("--no-multi_subject", "1"),
        ("--subj 2 --no-multi_subject", "2"),
        ("--no-multi_subject --subj 2", "2"),
        ("--subj 2 --multi_subject 2", "2"),
    ],
)
def test_several_subjects_are_a_switch_or_a_list(typed, subjects):
    assert parse_overrides(typed.split())[1]["data.subjects"] == subjects


@pytest.mark.parametrize(
    ("typed", "named"),
    [
        ("--subj 1 --multi_subject 2,3", "--subj 1 and --multi_subject 2,3 both set data.subjects"),
        ("--multi_subject 2,3 --subj 1", "--multi_subject 2,3 and --subj 1 both set data.subjects"),
        ("--subj 1 --multi_subject", "--subj 1 and --multi_subject all both set data.subjects"),
        (
            "--batch_size 8 training.batch_size=9",
            "--batch_size 8 and training.batch_size 9 both set training.batch_size",
        ),
        (
            "--random_fmri generation.source=oracle",
            "--random_fmri random and generation.source oracle both set generation.source",
        ),
    ],
)
def test_a_setting_under_two_names_is_told_where_the_values_differ(typed, named):
    with pytest.raises(UserError) as caught:
        parse_overrides(typed.split())
    assert str(caught.value) == f"{named}, to different values: leave one of them out."


def test_of_one_name_the_last_counts():
    assert parse_overrides(["--num_sessions", "40", "--num_sessions", "2"])[1] == {
        "data.num_sessions": "2"
    }


def test_settings_of_a_job_come_from_the_environment_and_what_is_typed_wins(monkeypatch, capsys):
    seen = []
    monkeypatch.setattr("braingen.report.write.report", seen.append)
    monkeypatch.setenv("BRAINGEN_SET", "encoder.hidden_dim=64 --num_epochs 3 run.folder='runs/a b'")
    assert main(["report", "--num_epochs", "4"]) == 0
    assert (seen[0].encoder.hidden_dim, seen[0].training.num_epochs, str(seen[0].run.folder)) == (
        64,
        4,
        "runs/a b",
    )
    assert capsys.readouterr().err.startswith("Settings from BRAINGEN_SET: encoder.hidden_dim=64")
    # to a command on which one of them has no effect it is as if it stood in the file
    monkeypatch.setenv("BRAINGEN_SET", "evaluation.retrieval_draws=3")
    assert main(["report", "--all_recons_path", "here"]) == 0
    monkeypatch.setenv("BRAINGEN_SET", "hiden_dim=64")
    assert main(["report"]) == 2
    assert (
        "BRAINGEN_SET is not understood: There is no setting 'hiden_dim'."
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("flag", "setting", "value"),
    [
        ("--batch_size 5", "train_batch_size", 5),
        ("--lr 0.5", "learning_rate", 0.5),
        ("--weight_decay 0.5", "adam_weight_decay", 0.5),
    ],
)
def test_known_flags_mean_the_fine_tunings_own_settings(flag, setting, value):
    config = load_config(*parse_overrides(flag.split(), "finetune"))
    assert getattr(config.finetune, setting) == value and config.training == Config().training


def test_a_loss_of_a_training_command_is_that_of_its_encoder(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "braingen.training.encoder.train", lambda config, modality: seen.append(config)
    )
    for modality in ("image", "text"):
        assert main(["train", modality, "--prior_scale", "7", "--mixup_pct=0.5"]) == 0
    default = Config()
    assert (seen[0].loss_image.prior_scale, seen[0].loss_image.mixup_pct) == (7, 0.5) and seen[
        0
    ].loss_text == default.loss_text
    assert (seen[1].loss_text.prior_scale, seen[1].loss_text.mixup_pct) == (7, 0.5) and seen[
        1
    ].loss_image == default.loss_image


def test_all_subjects_are_no_label(tmp_path):
    """`--multi_subject` as a switch means all subjects that are there, and no subject of that name
    is looked for.
    """
    given = {"data.subjects": "all", "data.root": str(tmp_path)}
    assert cli._numbered(None, given, {}) == given
