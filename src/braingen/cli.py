"""The command line: it finds the command, reads the settings, and turns errors into sentences and
exit codes.
"""

from __future__ import annotations

from collections.abc import Sequence
import difflib
import io
from pathlib import Path
import sys

from braingen.commands import all_commands
from braingen.commands.completion import complete
from braingen.commands.help import help_of, overview, show
from braingen.config import load_config
from braingen.config.names import ALL, resolve
from braingen.config.overrides import environment_settings, parse_overrides
from braingen.runtime.errors import UserError
from braingen.runtime.files import disk_trouble
from braingen.runtime.memory import out_of_memory
from braingen.runtime.preemption import REQUEUE, Stopped, stoppable
from braingen.runtime.untrusted import without_controls

PUBLISHED = "nsd_subj01"
"""Configuration of the published scripts, which name none."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : Sequence[str] | None, optional
        Words after the program's name; None for the process's own.

    Returns
    -------
    int
        Exit code: 0; 2 for an error that the user can correct; 75 after SIGTERM, when the same
        command continues the work; 130 after Ctrl-C.
    """
    if arguments is None and (code := complete(all_commands())) is not None:
        return code
    words = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # a letter that the terminal lacks is shown as an escape
            stream.reconfigure(errors="backslashreplace")
    try:
        with stoppable():
            return _run(words)
    except Stopped:
        print(
            "\nbraingen: stopped by a signal; the work is saved. The same command continues it.",
            file=sys.stderr,
        )
        return REQUEUE
    except UserError as error:
        print(f"braingen: {without_controls(error)}", file=sys.stderr)
        return 2
    except UnicodeEncodeError as error:
        name = ascii(error.object[max(0, error.start - 20) : error.end + 20])
        print(
            f"braingen: {name} cannot be written in this locale's encoding"
            f" ({sys.getfilesystemencoding()}): set PYTHONUTF8=1, or a UTF-8 locale such as"
            " LC_ALL=C.UTF-8, or give files and folders plain names.",
            file=sys.stderr,
        )
        return 2
    except Exception as error:
        sentence = _sentence_of(error)
        if sentence is None:  # a bug: keep its traceback
            raise
        print(f"braingen: {sentence}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nbraingen: stopped; the same command continues the work.", file=sys.stderr)
        return 130


def _sentence_of(error: Exception) -> str | None:
    """Describe a full disk, a missing permission or too little memory; None for other errors."""
    trouble = disk_trouble(error)
    if trouble is not None:
        name = getattr(error, "filename", None)
        return f"{name or 'A file'} cannot be read or written: {trouble}."
    if isinstance(error, MemoryError):
        return (
            f"There is not enough memory ({error or 'an array was too large'}): use smaller"
            " batches, or another machine."
        )
    return None


def _run(words: list[str]) -> int:
    commands = all_commands()
    if not words or words[0] in ("-h", "--help", "help"):
        show(overview(commands))
        return 0
    if words[0] == "--version":
        from braingen import __version__

        print(__version__)
        return 0
    name, *rest = words
    command = commands.get(name)
    if command is None:
        near = difflib.get_close_matches(name, commands, n=1)
        raise UserError(
            f"There is no command '{name}'. "
            + (f"Did you mean {near[0]}?" if near else f"Commands: {', '.join(commands)}.")
        )
    if any(word in ("-h", "--help") for word in rest):
        show(help_of(command))
        return 0
    choice: list[str] = []
    if command.choices:
        if not rest or rest[0] not in command.choices:
            wrong = f"'{rest[0]}' is not one of" if rest else "missing argument"
            raise UserError(
                f"braingen {name}: {wrong} {{{','.join(command.choices)}}}; for instance braingen"
                f" {name} {command.choices[0]} ..."
            )
        choice = [rest.pop(0)]
    own = command.own_of_choice.get(choice[0] if choice else "", (command.own,))
    file, overrides = parse_overrides(rest, own, command.words)
    # before the command runs: its libraries take seconds to load, and a typo is reported at once
    environment = environment_settings(own)
    overrides = _numbered(file or command.config or None, overrides, environment)
    config = load_config(file or command.config or None, overrides, environment)
    if config.data.test_set != "default" and not command.takes_test_sets:
        from braingen.data.sealed_runs import refuse_test_set

        refuse_test_set(config, name)
    try:
        result = command.run(config, *choice)
    except UserError as error:
        from braingen.data.nsd import fitting_advice

        raise UserError(fitting_advice(str(error), config.data.root)) from error
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        from braingen.diagnostics.memory_advice import sentence

        raise UserError(sentence(config, " ".join([name, *choice]), error)) from error
    if result is not None:
        print(result)
    return 0


def _numbered(
    file: Path | str | None, overrides: dict[str, str], given: dict[str, str]
) -> dict[str, str]:
    """`--subj AB` of scans of one's own, as the number that the label has."""
    key = next((name for name in overrides if resolve(name) == "data.subjects"), "")
    words = [
        word.strip() for word in overrides.get(key, "").strip("[]() ").split(",") if word.strip()
    ]
    if not key or words == [ALL] or all(word.lstrip("-").isdecimal() for word in words):
        return overrides
    from braingen.data.ingest.subject_numbers import numbers_of_labels

    config = load_config(
        file, {name: value for name, value in overrides.items() if name != key}, given
    )
    return {
        **overrides,
        key: ",".join(map(str, numbers_of_labels(words, config.prepare, config.data.root))),
    }


def script(*command: str) -> int:
    """Run a command under the name of a published script, with the process's own words.

    The published commands name no configuration: they are for NSD, subject 1, at full size.
    """
    given = sys.argv[1:]
    named = any(word == "--config" or word.startswith("--config=") for word in given)
    return main([*command, *([] if named else ["--config", PUBLISHED]), *given])


if __name__ == "__main__":
    sys.exit(main())
