"""JSON schemas of answers: checked when they come in, and as a grammar."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from deepmnn.errors import RequestError, argument, shown

MOST_CHARACTERS = 64 * 1024
MOST_DEPTH = 64
MOST_COMBINED = 8
"""Different regular expressions that texts may have to match at once: the time to see whether one
can doubles with each of them."""
MOST_STEPS = 10_000
"""The product of all different values of multipleOf, as whole numbers: an automaton has a state for
each."""
MOST_NUMBER = 2**53
"""Numbers beyond it are not kept exactly."""
MOST_PATTERN_PROPERTIES = 32
"""Each is compared with each other, and with every property."""

_SPACE = r"\x20|\x0A[\x20\x09]{0,16}"
_EXPECTED = "a JSON schema: a dict of what JSON holds, or True"

_DATES = ("date", "date-time", "duration", "time")
_FORMATS = (*_DATES, "email", "hostname", "ipv4", "ipv6", "uri", "uuid")
"""Those that llguidance knows."""

_NO_SCHEMAS = ("const", "enum", "default", "examples")
"""Keywords whose values are no schemas."""

_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
"""Keywords whose values have schemas by name."""


def checked_schema(given: object, name: str) -> dict[str, Any]:
    """A JSON schema as plain JSON, a copy of its own, with its properties in their order.

    given: a mapping; True is the schema of any object. name: the argument that it is.

    Raises RequestError unless it is JSON, of at most 64 KB and 64 levels, that combines no more
    than 8 patterns. Whether an answer can be held to it, its grammar tells (`constraint.py`).
    """
    if given is True:
        return {"type": "object"}
    if not isinstance(given, Mapping):
        raise RequestError(argument(name, f" is of type {type(given).__name__}"), _EXPECTED)
    _check_json(given, name)
    try:
        text = json.dumps(given, allow_nan=False, default=dict, ensure_ascii=False)
        size = len(text.encode())
    except (TypeError, ValueError) as error:  # a tensor, an infinity, half of a surrogate pair
        raise RequestError(argument(name, f" is no JSON: {error!s:.200}"), _EXPECTED) from None
    if size > MOST_CHARACTERS:
        raise RequestError(
            argument(name, f" is {size:,} bytes of JSON"), f"at most {MOST_CHARACTERS:,}"
        )
    schema: dict[str, Any] = json.loads(text)
    _check_patterns(schema, name)
    _check_numbers(schema, name)
    return schema


def _check_json(given: object, name: str) -> None:
    """Raises RequestError when a value is too deep or too large to be looked at further."""
    level, depth, values = [given], 0, 0
    while level:
        depth, values = depth + 1, values + len(level)
        if depth > MOST_DEPTH or values > MOST_CHARACTERS:
            raise RequestError(
                argument(name, " is too large, or nested too deep"),
                f"at most {MOST_DEPTH} levels and {MOST_CHARACTERS:,} bytes of JSON",
            )
        parts: list[object] = []
        for value in level:
            if isinstance(value, Mapping):
                if not all(isinstance(key, str) for key in value):
                    raise RequestError(argument(name, " has keys that are no strings"), _EXPECTED)
                parts += value.values()
            elif isinstance(value, list | tuple):
                parts += value
        level = parts


def _schemas(schema: object) -> Iterator[dict[str, Any]]:
    """All schemas within one, itself too."""
    if isinstance(schema, list):
        for each in schema:
            yield from _schemas(each)
    if not isinstance(schema, dict):
        return
    yield schema
    for keyword, value in schema.items():
        if keyword in _NAMED and isinstance(value, dict):
            yield from _schemas(list(value.values()))
        elif keyword not in _NO_SCHEMAS:
            yield from _schemas(value)


def _check_patterns(schema: dict[str, Any], name: str) -> None:
    """Raises RequestError where it could take too long to see whether any text matches."""
    texts, properties, combines = set(), 0, False
    for each in _schemas(schema):
        texts |= {(k, str(each[k])) for k in ("pattern", "format") if k in each}
        found = each.get("patternProperties")
        properties += len(found) if isinstance(found, dict) else 0
        combines = combines or bool({"allOf", "$ref", "anyOf", "oneOf"} & each.keys())
    if combines and len(texts) > MOST_COMBINED:
        raise RequestError(
            argument(name, f" has {len(texts)} patterns and formats, and combines schemas"),
            f"at most {MOST_COMBINED} with allOf, anyOf, oneOf or $ref",
        )
    if properties > MOST_PATTERN_PROPERTIES:
        raise RequestError(
            argument(name, f" has {properties} patternProperties"),
            f"at most {MOST_PATTERN_PROPERTIES}",
        )


def _check_numbers(schema: dict[str, Any], name: str) -> None:
    """Raises RequestError for numbers that take too much memory, or would be rounded."""
    for number in _numbers(schema):
        if abs(number) > MOST_NUMBER and isinstance(number, int):
            raise RequestError(
                argument(name, f" has the number {shown(number)}"), "integers of up to 2^53"
            )
    given = {str(s["multipleOf"]) for s in _schemas(schema) if _is_number(s.get("multipleOf"))}
    steps = 1
    for text in given:
        try:
            digits = Decimal(text).normalize().as_tuple().digits
        except ArithmeticError:
            digits = ()
        steps *= max(1, int("".join(map(str, digits)) or "0") * _zeros(text))
    if steps > MOST_STEPS:
        raise RequestError(
            argument(name, f" has multipleOf {' and '.join(sorted(given))}"),
            f"at most {MOST_STEPS:,}, all different ones multiplied",
        )


def _zeros(text: str) -> int:
    """What the zeros at the end of a whole number multiply it by."""
    exponent = Decimal(text).normalize().as_tuple().exponent
    return 10 ** min(exponent, 20) if isinstance(exponent, int) and exponent > 0 else 1


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _numbers(value: object) -> Iterator[int | float]:
    """All numbers anywhere in JSON."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _numbers(each)


def json_rule(schema: Mapping[str, Any]) -> str:
    """A JSON document of a schema, as what stands in a rule of llguidance's Lark.

    Between the parts of the document there is nothing, a blank, or a line break with up to 16
    blanks or tabs: small models would otherwise write white space for ever. Properties come in
    the schema's order. Strings, arrays and other properties end where the schema or `max_tokens`
    says. A format that llguidance does not know says nothing, as JSON Schema has it.
    """
    own: dict[str, Any] = json.loads(json.dumps(schema))
    for each in _schemas(own):
        if isinstance(each.get("format"), str) and each["format"] not in _FORMATS:
            del each["format"]
    return f"%json {json.dumps({**own, 'x-guidance': {'whitespace_pattern': _SPACE}})}"


def json_answer(schema: Mapping[str, Any]) -> str:
    """The grammar of an answer that is a JSON document of a schema: see `json_rule`."""
    return f"answer: {json_rule(schema)}\n"
