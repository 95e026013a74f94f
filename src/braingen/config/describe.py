"""What may be given for a setting, in words: choices, bounds, and beside which other settings it
has an effect.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from braingen.config.effect import Needs
from braingen.config.names import fields_of, having, variants_of

_BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
}
_KINDS = {"integer": "whole number", "number": "number", "string": "text"}


@cache
def _schemas(section: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for variant in variants_of(section).values():
        for field, schema in variant.model_json_schema()["properties"].items():
            found.setdefault(field, schema)
    return found


def allowed(section: str, field: str) -> str:
    """The values that a setting may have, for instance ``{soft,hard}`` or ``number above 0, at most
    1``.
    """
    if len(variants := variants_of(section)) > 1 and field == "model":
        return "{" + ",".join(variants) + "}"
    return _words(_schemas(section)[field])


def choices(section: str, field: str) -> tuple[str, ...]:
    """The values of a setting that has a few only, also as items of a list; else nothing."""
    if len(variants := variants_of(section)) > 1 and field == "model":
        return tuple(variants)
    schema = _schemas(section)[field]
    values = schema.get("items", schema).get("enum", ())
    return tuple(map(str, values))


def _words(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_words(part) for part in schema["anyOf"] if part.get("type") != "null")
    if "enum" in schema or "const" in schema:
        return "{" + ",".join(map(str, schema.get("enum", [schema.get("const")]))) + "}"
    if schema.get("type") == "boolean":
        return "switch"
    if schema.get("type") == "array":
        return (
            "list of "
            + _words(schema["items"]).replace("number", "numbers", 1)
            + (", at least one" if schema.get("minItems") else "")
        )
    bounds = [f"{word} {schema[name]:g}" for name, word in _BOUNDS.items() if name in schema]
    kind = "path" if schema.get("format") == "path" else _KINDS[schema["type"]]
    return kind + (" " + ", ".join(bounds) if bounds else "")


def condition(section: str, field: str) -> str:
    """Where a setting has an effect, for instance ``only with prior.use=sample``; empty where it
    always has.
    """
    parts = []
    variants, having_it = variants_of(section), having(section, field)
    if len(having_it) < len(variants):
        *others, last = having_it
        named = f"{', '.join(others)} or {last}" if others else last
        parts.append(f"{section}.model={named}")
    parts += [
        need.words(section)
        for need in fields_of(section)[field].metadata
        if isinstance(need, Needs)
    ]
    return "only with " + "; ".join(parts) if parts else ""
