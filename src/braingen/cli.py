"""The command line: one subcommand per stage, settings from a YAML file and overrides.

Stages are imported when they run, so help is quick.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import difflib
from importlib import import_module
import io
import os
from pathlib import Path
import shlex
import sys
from typing import NamedTuple

from braingen.config import Config, load_config
from braingen.config.describe import allowed, condition
from braingen.config.names import ALIASES, ALL, OWN_ALIASES, fields_of, resolve
from braingen.config.shipped import FOLDER, shipped_configs
from braingen.errors import UserError
from braingen.files import disk_trouble
from braingen.scores.metrics import METRICS, Metric
from braingen.stopping import REQUEUE, Stopped, stoppable
from braingen.untrusted import without_controls


class Command(NamedTuple):
    """A subcommand."""

    summary: str
    module: str
    """Where its stage is."""
    function: str
    sections: tuple[str, ...]
    """Settings that matter to it, for its help."""
    choices: tuple[str, ...] = ()
    """What may follow the command's name, where something must."""
    own: str = ""
    """The section whose names win where several sections have a setting of that name."""
    words: str = ""
    """The setting that words after the command's name go into, where it takes any."""
    config: str = ""
    """The configuration that ships with the package and is taken without --config; none: the defaults."""


COMMANDS: dict[str, Command] = {
    "quickstart": Command("decode a dozen simulated test brains with the decoder that is installed with the package; seconds",
                          "braingen.stages.quickstart", "quickstart", ("quickstart",), own="quickstart"),
    "demo": Command("the whole flow on a simulated subject, ending in a page of pictures", "braingen.stages.demo", "demo",
                    ("run", "data", "simulation", "encoder", "optim", "sampler"), config="simulated"),
    "simulate": Command("write a simulated NSD, with known truth, in the layout of the real one", "braingen.stages.simulate", "simulate",
                        ("data", "simulation"), own="simulation"),
    "prepare": Command("raw NSD, or your own scans, to the layout that is trained on", "braingen.stages.prepare", "prepare",
                       ("prepare", "data"), own="prepare"),
    "doctor": Command("look at data, backbones and machine: what is ready, what is missing, what to type", "braingen.stages.doctor",
                      "doctor", ("doctor", "run", "data", "backbone"), own="doctor"),
    "cache": Command("compute CLIP targets and VAE latents once, in any number of processes", "braingen.stages.cache", "cache",
                     ("cache", "data", "backbone", "finetune"), own="cache"),
    "train": Command("stage 1: learn to read CLIP embeddings out of voxels", "braingen.stages.train", "train",
                     ("run", "data", "backbone", "encoder", "prior", "loss_image", "loss_text", "optim"), ("image", "text"), "optim"),
    "adapt-curve": Command("how well a new person is read from few sessions, after training on others or not",
                           "braingen.stages.adapt_curve", "adapt_curve", ("run", "data", "curve", "optim"), own="curve"),
    "bottleneck": Command("scores against the width of a bottleneck between brain and experts", "braingen.stages.bottleneck", "bottleneck",
                          ("run", "data", "bottleneck", "optim"), own="bottleneck"),
    "cross-validate": Command("own scans too few for a test set: leave every picture out once, decode and score it",
                              "braingen.stages.cross_validate", "cross_validate",
                              ("run", "data", "prepare", "cross_validation", "encoder", "optim"), own="cross_validation",
                              config="own_scans"),
    "finetune": Command("stage 2: teach the diffusion model to listen (image=RUN text=RUN)", "braingen.stages.finetune", "finetune",
                        ("run", "data", "backbone", "router", "lora", "finetune"), own="finetune"),
    "reconstruct": Command("stage 3: draw the test images from brain activity", "braingen.stages.reconstruct", "reconstruct",
                           ("run", "data", "backbone", "sampler"), own="sampler"),
    "decode": Command("embeddings and pictures of a file of voxels", "braingen.stages.decode", "decode",
                      ("run", "data", "backbone", "sampler", "decode"), own="decode"),
    "refine": Command("stage 4: refine finished reconstructions, image to image", "braingen.stages.refine", "refine",
                      ("run", "backbone", "refiner"), own="refiner"),
    "evaluate": Command("score the reconstructions, with intervals, random voxels and a ceiling", "braingen.stages.evaluate", "evaluate",
                        ("run", "data", "scores"), own="scores"),
    "compare": Command("evaluated runs beside each other: differences with intervals and tests, subjects and seeds summarised",
                       "braingen.stages.compare", "compare_runs", ("run", "scores", "compare"), own="compare", words="compare.runs"),
    "study": Command("people as judges: build a study for any browser, check and analyse its results", "braingen.stages.study", "study",
                     ("run", "data", "study"), ("build", "check", "analyse", "simulate")),
    "ablate": Command("the paper's table 2: what text, image, time and space routing each add", "braingen.stages.ablate", "ablate",
                      ("run", "data", "router", "lora", "finetune", "sampler")),
    "explain": Command("look inside: which voxels, through which expert, for what; maps, tables and a page", "braingen.stages.explain",
                       "explain", ("run", "data", "explain"), own="explain"),
    "report": Command("one HTML page of pictures, scores and curves", "braingen.stages.report", "report", ("run", "data")),
    "import": Command("published checkpoints (MindEye2, MoRE-Brain) as run folders that later stages read",
                      "braingen.stages.import_checkpoint", "import_checkpoint", ("run", "published", "data", "encoder", "prior"),
                      ("image", "text", "finetune"), own="published"),
    "models": Command("every encoder, prior and router with its parameters by part, at the configured sizes", "braingen.stages.models",
                      "models", ("data", "backbone", "encoder", "prior", "router")),
    "settings": Command("list every setting with its default and meaning", "braingen.cli", "print_settings", ()),
}  # fmt: skip
TAKE_TEST_SETS = ("prepare", "reconstruct", "evaluate")
"""Commands that take a sealed test set (data.test_set)."""
PUBLISHED = "nsd_subj01"
"""Configuration of the published scripts, which name none."""
ENVIRONMENT = "BRAINGEN_SET"
"""Environment variable with settings for every command, such as ``backbone.path=/models/sdxl``."""
SHORTHANDS = {
    "json": ("doctor.output", "json"),
    "random_fmri": ("sampler.source", "random"),
    "ceiling": ("sampler.source", "ceiling"),
    "train_router_only": ("optim.trained", "routers"),
}
"""Flags that set a setting to one value."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : words after the program's name; None for the process's own

    Returns
    -------
    exit code : 0; 2 when something a person can put right stopped it; 75 when it was told to stop (SIGTERM) and can go on; 130 after Ctrl-C
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a letter that the terminal has not is shown as an escape, and stops nothing
            stream.reconfigure(errors="backslashreplace")
    try:
        with stoppable():
            return _run(words)
    except Stopped:
        print("\nbraingen: told to stop; what was done is saved, the same command continues where it was.", file=sys.stderr)
        return REQUEUE
    except UserError as error:
        print(f"braingen: {without_controls(error)}", file=sys.stderr)
        return 2
    except UnicodeEncodeError as error:
        name = ascii(error.object[max(0, error.start - 20) : error.end + 20])
        print(
            f"braingen: {name} cannot be written in this locale's encoding ({sys.getfilesystemencoding()}): set PYTHONUTF8=1, or a UTF-8 "
            "locale such as LC_ALL=C.UTF-8, or give files and folders plain names.",
            file=sys.stderr,
        )
        return 2
    except Exception as error:
        sentence = _sentence_of(error)
        if sentence is None:  # a fault of the program: its traceback is wanted
            raise
        print(f"braingen: {sentence}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nbraingen: stopped; the same command continues where it was.", file=sys.stderr)
        return 130


def _sentence_of(error: Exception) -> str | None:
    """A sentence for troubles of the machine that may come at any line: a full disk, missing permission, too little memory."""
    trouble = disk_trouble(error)
    if trouble is not None:
        name = getattr(error, "filename", None)
        return f"{name or 'A file'} cannot be read or written: {trouble}."
    if isinstance(error, MemoryError):
        return f"There is not enough memory ({error or 'an array was too large'}): use smaller batches, or another machine."
    return None


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        _show(_overview())
        return 0
    if words[0] == "--version":
        from braingen import __version__

        print(__version__)
        return 0
    name, *rest = words
    command = COMMANDS.get(name)
    if command is None:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        raise UserError(f"There is no command '{name}'. " + (f"Did you mean {near[0]}?" if near else f"Commands: {', '.join(COMMANDS)}."))
    if any(word in ("-h", "--help") for word in rest):
        _show(_help(name, command))
        return 0
    choice: list[str] = []
    if command.choices:
        if not rest or rest[0] not in command.choices:
            given = f"'{rest[0]}'" if rest else "nothing"
            wanted = " or ".join(command.choices)
            raise UserError(f"braingen {name} wants {wanted} next, not {given}: braingen {name} {command.choices[0]} ...")
        choice = [rest.pop(0)]
    own = (command.own, f"loss_{choice[0]}") if name == "train" else (command.own,)
    file, overrides = parse_overrides(rest, own, command.words)
    # before the stage: its libraries take seconds to load, and a typo is reported at once
    environment = _from_environment(own)
    overrides = _numbered(file or command.config or None, overrides, environment)
    config = load_config(file or command.config or None, overrides, environment)
    if config.data.test_set != "default" and name not in TAKE_TEST_SETS:
        from braingen.stages.test_sets import refuse_test_set

        refuse_test_set(config, name)
    stage: Callable[..., Path | None] = getattr(import_module(command.module), command.function)
    try:
        result = stage(config, *choice)
    except UserError as error:
        from braingen.data.nsd import fitting_advice

        raise UserError(fitting_advice(str(error), config.data.root)) from error
    if result is not None:
        print(result)
    return 0


def _numbered(file: Path | str | None, overrides: dict[str, str], given: dict[str, str]) -> dict[str, str]:
    """`--subj AB` of scans of one's own, as the number that the label has."""
    key = next((name for name in overrides if resolve(name) == "data.subjects"), "")
    words = [word.strip() for word in overrides.get(key, "").strip("[]() ").split(",") if word.strip()]
    if not key or words == [ALL] or all(word.lstrip("-").isdecimal() for word in words):
        return overrides
    from braingen.data.ingest.subject_numbers import numbers_of_labels

    config = load_config(file, {name: value for name, value in overrides.items() if name != key}, given)
    return {**overrides, key: ",".join(map(str, numbers_of_labels(words, config.prepare, config.data.root)))}


def script(*command: str) -> int:
    """Run a command under the name of a published script, with the process's own words.

    The published commands name no configuration: they are for NSD, subject 1, at full size.
    """
    given = sys.argv[1:]
    named = any(word == "--config" or word.startswith("--config=") for word in given)
    return main([*command, *([] if named else ["--config", PUBLISHED]), *given])


def _from_environment(own: Sequence[str]) -> dict[str, str]:
    """Settings of every command of a job, from the environment variable BRAINGEN_SET; what is typed wins."""
    text = os.environ.get(ENVIRONMENT, "")
    if not text.strip():
        return {}
    try:
        file, overrides = parse_overrides(shlex.split(text), own)
    except (UserError, ValueError) as error:
        raise UserError(f"The environment variable {ENVIRONMENT} is not understood: {error}") from error
    if file is not None:
        raise UserError(f"The environment variable {ENVIRONMENT} takes settings, not --config {file}.")
    print(f"Settings from {ENVIRONMENT}: {text}", file=sys.stderr)
    return overrides


def parse_overrides(words: Sequence[str], own: str | Sequence[str] = "", listed: str = "") -> tuple[Path | None, dict[str, str]]:
    """Read ``--config NAME`` or ``--config FILE`` and overrides.

    Overrides are ``section.field=value``, ``--flag value``, ``--flag=value``, ``--flag`` and ``--no-flag``.

    Parameters
    ----------
    own : section or sections whose names win where several sections have a setting of that name
    listed : setting that plain words at the beginning are collected in; without it they are refused

    Returns
    -------
    configuration (file or name) or None, setting -> text
    """
    own = (own,) if isinstance(own, str) else own
    file: Path | None = None
    given = Given()
    remaining, single = list(words), False
    named: list[str] = []
    while listed and remaining and not remaining[0].startswith("--") and "=" not in remaining[0]:
        named.append(remaining.pop(0))
    if named:
        given.put(listed, ",".join(named), listed)
    while remaining:
        word = remaining.pop(0)
        if not word.startswith("--"):
            name, equals, value = word.partition("=")
            if not equals:
                raise UserError(f"'{word}' is not understood: write settings as section.field=value or --name value.")
            given.put(_setting(name, own), value, name)
            continue
        name, equals, value = word[2:].partition("=")
        if name in SHORTHANDS and not equals:
            given.put(*SHORTHANDS[name], f"--{name}")
            continue
        has_value = bool(equals) or bool(remaining and not remaining[0].startswith("--") and "=" not in remaining[0])
        if name == "config":
            if not has_value:
                raise UserError("--config needs a name or a file, for instance --config simulated.")
            file = Path(value if equals else remaining.pop(0))
        elif not has_value and name == "multi_subject":
            given.put("data.subjects", ALL, f"--{name}")
        elif not has_value and name == "no-multi_subject":
            single = True
        elif has_value:
            given.put(_setting(name, own), value if equals else remaining.pop(0), f"--{name}")
        elif name.startswith("no-") or name.startswith("no_"):
            given.put(_switch(name[3:], own), "false", f"--{name}")
        else:
            given.put(_switch(name, own), "true", f"--{name}")
    if single:  # the published scripts' subject, unless --subj names one
        given.settings.setdefault("data.subjects", "1")
    return file, given.settings


class Given:
    """Settings as they are typed; the same one under two names is an error where the values differ."""

    def __init__(self) -> None:
        self.settings: dict[str, str] = {}
        self._names: dict[str, str] = {}

    def put(self, setting: str, text: str, name: str) -> None:
        """Take a value; of one name the last counts, so that a script's own can be changed.

        Raises
        ------
        UserError
            When another name has set it to another value.
        """
        before, other = self.settings.get(setting), self._names.get(setting)
        if before is not None and other != name and before != text:
            shown = " and ".join(f"{flag} {value}" for flag, value in ((other, before), (name, text)))
            raise UserError(f"{shown} both set {setting}, to different values: leave one of them out.")
        self.settings[setting], self._names[setting] = text, name


def _setting(name: str, own: Sequence[str]) -> str:
    """The setting that a name means to a command with sections of its own."""
    name = name.replace("-", "_")
    for section in filter(None, own):
        fields = fields_of(section)
        known = OWN_ALIASES.get(section, {}).get(name) or ALIASES.get(name, "").partition(".")[2]  # a flag people know
        field = name if name in fields else known
        if field in fields:
            return f"{section}.{field}"
    return resolve(name)


def _switch(name: str, own: Sequence[str]) -> str:
    path = _setting(name, own)
    section, field = path.split(".")
    info = fields_of(section)[field]
    if info.annotation is not bool:
        now = getattr(getattr(Config(), section), field, info.default)
        raise UserError(f"--{name} needs a value: --{name} VALUE (now {now!r}).")
    return path


def _overview() -> str:
    lines = ["BrainGen: pictures of what a person saw, from their fMRI.", ""]
    lines += ["usage: braingen COMMAND [--config NAME|FILE] [--name value ...]", ""]
    lines += [f"configurations that ship: {', '.join(shipped_configs())}", ""]
    lines += [f"  {name:<12} {command.summary}" for name, command in COMMANDS.items()]
    lines += ["", "braingen COMMAND --help lists the settings of a command. Start with: braingen demo"]
    return "\n".join(lines)


def _help(name: str, command: Command) -> str:
    choice = f" {{{','.join(command.choices)}}}" if command.choices else ""
    choice += f" {command.words.partition('.')[2].upper()} ..." if command.words else ""
    lines = [f"usage: braingen {name}{choice} [--config NAME|FILE] [--name value ...]", "", command.summary, ""]
    for section in command.sections:
        lines += _section_help(section, command.own)
    if "sampler" in command.sections:
        lines += ["shorthands", "  --random_fmri: sampler.source=random", "  --ceiling: sampler.source=ceiling", ""]
    if name in ("evaluate", "compare"):
        lines += ["scores", *(_score_line(key, each) for key, each in METRICS.items()), ""]
    lines.append("Settings can also be written section.name=value. Lists: 2,2,2. Switches: --use_prior, --no-use_prior.")
    return "\n".join(lines)


def _score_line(name: str, each: Metric) -> str:
    better = "" if each.higher_is_better else "; lower is better"
    return f"  {name}: {each.meaning.format(pool='scores.retrieval_pool images')}{better}"


def _show(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # who reads it (head, less) has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _shortest_name(section: str, field: str, own: str) -> str:
    """What has to be typed for a setting: the field's name, or with its section where that alone means another one, or several."""
    try:
        alone = _setting(field, (own,)) == f"{section}.{field}"
    except UserError:
        alone = False
    return field if alone else f"{section}.{field}"


def _section_help(section: str, own: str = "") -> list[str]:
    defaults = getattr(Config(), section)
    lines = [f"{section}: {(type(defaults).__doc__ or '').strip()}"]
    for field, info in fields_of(section).items():
        default = getattr(defaults, field, info.default)
        text = ",".join(map(str, default)) if isinstance(default, tuple) else default
        value = "" if text in ("", None) else f"({text}) "
        meaning = " ".join((info.description or "").split())
        where = condition(section, field)
        lines.append(f"  --{_shortest_name(section, field, own)} {value} {allowed(section, field)}\n      {meaning}")
        lines += [f"      [{where}]"] if where else []
    return [*lines, ""]


def print_settings(_: Config) -> None:
    """Print every setting with its default and meaning."""
    lines = [line for section in Config.model_fields for line in _section_help(section)]
    lines += [f"configurations in {FOLDER}", f"  --config NAME: {', '.join(shipped_configs())}"]
    lines += ["  accelerate launch --config_file FILE, for several GPUs:"]
    lines += [f"      {file}" for file in sorted(FOLDER.glob("accelerate/*.yaml"))]
    _show("\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
