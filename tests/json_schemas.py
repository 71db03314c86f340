"""Random JSON schemas whose documents are short, of all keywords that answers are held to."""

from __future__ import annotations

import random
import string
from collections.abc import Callable
from typing import Any

Schema = dict[str, Any]

_PATTERNS = (
    "^[a-c]{1,4}$",
    "^(red|green|blue)-[0-9]{2}$",
    "^\\d{3}-\\d{4}$",
    "^[A-Z][a-z]{0,5}$",
    "x",
)
_FORMATS = ("uuid", "ipv4")
_NAMES = ("id", "name", "größe", "名前", 'a "b"', "tags", "x-y", "price", "next", "")


def random_schema(rng: random.Random) -> Schema:
    """One that some document satisfies; what it defines is used."""
    names = [f"part{number}" for number in range(rng.randint(0, 2))]
    defined = {name: _value(rng, 2, []) for name in names}
    schema = _object(rng, 3, names) if rng.random() < 0.8 else _value(rng, 3, names)
    if defined:
        schema["$defs"] = defined
    if rng.random() < 0.1:
        schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "T", **schema}
    return schema


def _value(rng: random.Random, depth: int, names: list[str]) -> Schema:
    makers: list[Callable[[random.Random, int, list[str]], Schema]]
    makers = [_integer, _number, _string, _constant, _enum, _plain]
    if depth > 0:
        makers += [_object, _array, _any_of, _nullable, _all_of]
    if names:
        makers += [_reference, _reference]
    return rng.choice(makers)(rng, depth, names)


def _integer(rng: random.Random, depth: int, names: list[str]) -> Schema:
    low = rng.randint(-1000, 1000)
    schema: Schema = {"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 5000)}
    if rng.random() < 0.3:
        schema["exclusiveMinimum"] = schema.pop("minimum") - 1
    if rng.random() < 0.2:
        schema = {"type": "integer", "minimum": 0, "maximum": 999, "multipleOf": rng.randint(2, 9)}
    return schema


def _number(rng: random.Random, depth: int, names: list[str]) -> Schema:
    low = rng.randint(-50, 50)
    schema: Schema = {"type": "number", "minimum": low, "maximum": low + rng.choice([1, 77.25])}
    if rng.random() < 0.5:
        schema["exclusiveMaximum"] = schema.pop("maximum")
    if rng.random() < 0.9:  # without, a number's digits have no end
        schema["multipleOf"] = rng.choice([0.5, 0.25])
    return schema


def _string(rng: random.Random, depth: int, names: list[str]) -> Schema:
    kind = rng.randrange(3)
    if kind == 0:
        return {"type": "string", "pattern": rng.choice(_PATTERNS[:-1])}
    if kind == 1:
        return {"type": "string", "format": rng.choice(_FORMATS)}
    least = rng.randint(0, 3)
    return {"type": "string", "minLength": least, "maxLength": least + rng.randint(0, 20)}


def _constant(rng: random.Random, depth: int, names: list[str]) -> Schema:
    return {
        "const": rng.choice(["yes", 5, -1.5, None, True, ["a", 1], {"k": [1, "v"]}, 'ü\n\t"\\'])
    }


def _enum(rng: random.Random, depth: int, names: list[str]) -> Schema:
    words = ["".join(rng.choices(string.ascii_letters, k=rng.randint(1, 8))) for _ in range(4)]
    return {"enum": rng.sample([*words, 1, 22, None, False, "日本", "</think>"], rng.randint(1, 6))}


def _plain(rng: random.Random, depth: int, names: list[str]) -> Schema:
    return {"type": rng.choice(["boolean", "null", ["boolean", "null"]])}


def _object(rng: random.Random, depth: int, names: list[str]) -> Schema:
    keys = rng.sample(_NAMES, rng.randint(0, 4))
    schema: Schema = {
        "type": "object",
        "properties": {key: _value(rng, depth - 1, names) for key in keys},
        "required": [key for key in keys if rng.random() < 0.7],
        "additionalProperties": False,
        "description": "an object",
    }
    if rng.random() < 0.02:  # names of any length
        schema["additionalProperties"] = {"type": "boolean"}
    if rng.random() < 0.1:
        schema = {
            "type": "object",
            "patternProperties": {"^[a-z]{1,3}$": _value(rng, 0, names)},
            "additionalProperties": False,
            "minProperties": 1,
            "maxProperties": 2,
        }
    return schema


def _array(rng: random.Random, depth: int, names: list[str]) -> Schema:
    least = rng.randint(0, 2)
    schema: Schema = {
        "type": "array",
        "items": _value(rng, depth - 1, names),
        "minItems": least,
        "maxItems": least + rng.randint(0, 2),
    }
    if rng.random() < 0.2:
        schema["prefixItems"] = [_value(rng, 0, names)]
    return schema


def _any_of(rng: random.Random, depth: int, names: list[str]) -> Schema:
    return {"anyOf": [_value(rng, depth - 1, names) for _ in range(rng.randint(1, 3))]}


def _nullable(rng: random.Random, depth: int, names: list[str]) -> Schema:
    return {"anyOf": [_value(rng, depth - 1, names), {"type": "null"}]}


def _all_of(rng: random.Random, depth: int, names: list[str]) -> Schema:
    schema: Schema = {
        "type": "object",
        "properties": {"count": {"type": "integer", "maximum": 500}, "b": _value(rng, 0, names)},
        "required": ["count"],
        "additionalProperties": False,
    }
    schema["allOf"] = [{"properties": {"count": {"minimum": rng.randint(0, 400)}}}]
    return schema


def _reference(rng: random.Random, depth: int, names: list[str]) -> Schema:
    return {"$ref": f"#/$defs/{rng.choice(names)}"}
