"""Settings that have no effect beside other settings: where each one counts, and the refusal of one
that does not.

A field says on what it depends with :class:`Needs` in its annotation; a setting of a variant (an
encoder) that the chosen variant lacks is a field of another class of the union. Both are errors
when given explicitly: a value that nothing reads is a mistake, never dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from braingen.runtime.errors import UserError

if TYPE_CHECKING:
    from braingen.config.tree import Config


class Rule(NamedTuple):
    """A test of another setting's value."""

    holds: Callable[[Any], bool]
    words: str
    """What follows the setting's name in a sentence."""


def above(limit: float) -> Rule:
    """A number above a limit."""
    return Rule(lambda value: value is not None and value > limit, f" above {limit:g}")


def given() -> Rule:
    """A text, path or list that is not empty."""
    return Rule(lambda value: str(value or "") not in ("", ".") and value != (), " given")


def other_than(*values: Any) -> Rule:
    """None of these values."""
    return Rule(
        lambda value: value not in values,
        " other than " + " or ".join(shown(value) for value in values),
    )


def one_of(*values: Any) -> Rule:
    """One of these values."""
    return Rule(lambda value: value in values, "=" + " or ".join(shown(value) for value in values))


def shown(value: Any) -> str:
    """A value as it is typed."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple | list):
        return ",".join(map(shown, value)) or "nothing"
    return str(value) if value not in (None, "") else "nothing"


class Needs:
    """Annotation of a field: it has an effect only beside certain values of another setting.

    Several in one annotation must all be met; ``Needs(...) | Needs(...)`` asks for one of them.

    Parameters
    ----------
    setting : str
        ``section.field``, or a field of the same section.
    values : Any
        Values, one of which it must have; or a single :class:`Rule`.
    """

    def __init__(self, setting: str, *values: Any) -> None:
        rule = values[0] if len(values) == 1 and isinstance(values[0], Rule) else one_of(*values)
        self.alternatives: tuple[tuple[str, Rule], ...] = ((setting, rule),)

    def __or__(self, other: Needs) -> Needs:
        both = Needs.__new__(Needs)
        both.alternatives = self.alternatives + other.alternatives
        return both

    def paths(self, section: str) -> list[str]:
        """The settings it looks at, as ``section.field``."""
        return [name if "." in name else f"{section}.{name}" for name, _ in self.alternatives]

    def met(self, section: str, config: Config) -> bool:
        """Whether the configuration meets it; a setting that the chosen variant lacks meets
        nothing.
        """
        for path, (_, rule) in zip(self.paths(section), self.alternatives):
            place, _, field = path.partition(".")
            part = getattr(config, place)
            if hasattr(part, field) and rule.holds(getattr(part, field)):
                return True
        return False

    def words(self, section: str) -> str:
        """As a sentence's part, for instance ``prior.use=sample``."""
        return " or ".join(
            path + rule.words for path, (_, rule) in zip(self.paths(section), self.alternatives)
        )


def asks_nothing(value: Any, default: Any) -> bool:
    """Whether a value switches something off, and so may be given where the setting has no effect;
    0 beside None is a number.
    """
    return value in (None, False, 0, "", (), "none", "off") and not (value == 0 and default is None)


def unmet(section: str, field: str, config: Config) -> list[Needs]:
    """What a setting lacks in order to have an effect."""
    info = type(getattr(config, section)).model_fields[field]
    return [
        need for need in info.metadata if isinstance(need, Needs) and not need.met(section, config)
    ]


def refuse_idle(config: Config, paths: Iterable[str], origin: str = "") -> None:
    """Refuse settings that were given and that nothing reads beside the others.

    Parameters
    ----------
    paths : Iterable[str]
        Settings that were given, as ``section.field``.
    origin : str, optional
        Where from, for the sentence.

    Raises
    ------
    UserError
        For the first of them that is neither needed nor off.
    """
    for path in paths:
        section, _, field = path.partition(".")
        fields, value = (
            type(getattr(config, section)).model_fields,
            getattr(getattr(config, section), field, None),
        )
        if (
            field in fields
            and not asks_nothing(value, fields[field].default)
            and (lacking := unmet(section, field, config))
        ):
            raise UserError(sentence(path, value, lacking[0], config, origin))


def sentence(path: str, value: Any, need: Needs, config: Config, origin: str = "") -> str:
    """Why a setting is refused, and what to type."""
    section = path.partition(".")[0]
    now = []
    for other in need.paths(section):
        place, _, field = other.partition(".")
        if hasattr(getattr(config, place), field):
            now.append(f"{other}={shown(getattr(getattr(config, place), field))}")
        else:
            now.append(f"encoder.model={config.encoder.model}")
    return (
        f"{path} = {shown(value)}{origin} has no effect with {' and '.join(dict.fromkeys(now))}: it"
        f" needs {need.words(section)}. Leave it out ({path}=default), or change the other."
    )
