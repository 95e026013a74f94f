"""Directives that write the pages of commands and of settings from the command line itself."""

from __future__ import annotations

from collections.abc import Iterator

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from braingen.commands import all_commands
from braingen.commands.base import GROUPS, Command
from braingen.commands.help import names_of, shorthands_of
from braingen.config import Config
from braingen.config.describe import allowed, condition
from braingen.config.names import fields_of
from braingen.config.shipped import shipped_configs


def _code(text: object) -> str:
    return f"`{text}`"


def _usage(command: Command) -> str:
    choice = f" {{{','.join(command.choices)}}}" if command.choices else ""
    words = f" {command.words.partition('.')[2].upper()} ..." if command.words else ""
    return f"braingen {command.name}{choice}{words} [--config NAME|FILE] [--name value ...]"


def commands_page() -> Iterator[str]:
    """Lines of Markdown: every command under the headings of `braingen --help`."""
    commands = all_commands().values()
    for group, title in GROUPS.items():
        yield from (f"## {title[:1].upper()}{title[1:]}", "")
        for command in (each for each in commands if each.group == group):
            yield from (f"### {_code(f'braingen {command.name}')}", "", command.summary, "")
            yield from ("```text", _usage(command), "```", "")
            if command.sections:
                links = [f"[{_code(name)}](settings.md#{name})" for name in command.sections]
                yield from (f"Settings: {', '.join(links)}.", "")
            for flag, setting in shorthands_of(command).items():
                yield from (f"- `--{flag}` stands for {_code(setting)}.", "")


def settings_page() -> Iterator[str]:
    """Lines of Markdown: every setting with its default, what is allowed, and its meaning."""
    yield f"Configurations that ship: {', '.join(map(_code, shipped_configs()))}."
    for section in Config.model_fields:
        defaults = getattr(Config(), section)
        yield from ("", f"## {section}", "", (type(defaults).__doc__ or "").strip(), "")
        for field, info in fields_of(section).items():
            default = getattr(defaults, field, info.default)
            text = ",".join(map(str, default)) if isinstance(default, tuple) else default
            shown = f"; default {_code(text)}" if text not in ("", None) else ""
            _, *others = names_of(section, field, section)
            also = f" Also `--{'`, `--'.join(others)}`." if others else ""
            where = condition(section, field)
            only = f" {where[:1].upper()}{where[1:]}." if where else ""
            meaning = " ".join((info.description or "").split())
            yield from (
                _code(f"{section}.{field}"),
                f": {allowed(section, field)}{shown}",
                "",
                f"  {_escaped(meaning)}{_escaped(only)}{also}",
                "",
            )


def _escaped(text: str) -> str:
    """Text in which no letter is markup."""
    return "".join("\\" + letter if letter in r"\`*_{}[]<>#|" else letter for letter in text)


class CommandsDirective(SphinxDirective):
    """``{braingen-commands}``."""

    def run(self) -> list[nodes.Node]:
        """The page's sections."""
        return self.parse_text_to_nodes("\n".join(commands_page()), allow_section_headings=True)


class SettingsDirective(SphinxDirective):
    """``{braingen-settings}``."""

    def run(self) -> list[nodes.Node]:
        """The page's sections."""
        return self.parse_text_to_nodes("\n".join(settings_page()), allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, bool]:
    """Add both directives."""
    app.add_directive("braingen-commands", CommandsDirective)
    app.add_directive("braingen-settings", SettingsDirective)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
