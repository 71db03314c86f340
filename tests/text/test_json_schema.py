"""What is taken as the schema of an answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from deepmnn import SamplingParams
from deepmnn.errors import RequestError
from deepmnn.text.json_schema import MOST_CHARACTERS, MOST_DEPTH, checked_schema, json_rule


def taken(schema: object) -> Mapping[str, Any]:
    found = SamplingParams(json_schema=schema).json_schema  # type: ignore[arg-type]
    assert found is not None
    return found


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(levels - 2):
        schema = {"items": schema}
    return schema


def rule(schema: dict[str, Any]) -> Any:
    made = json.loads(json_rule(schema).removeprefix("%json "))
    del made["x-guidance"]
    return made


def test_a_schema_is_copied() -> None:
    given = {"type": "object", "properties": {"b": {}, "a": {"enum": (1, "日本")}}}
    params = SamplingParams(json_schema=given)
    given["type"] = "array"
    assert params.json_schema == {
        "type": "object",
        "properties": {"b": {}, "a": {"enum": [1, "日本"]}},
    }
    assert list(taken(given)["properties"]) == ["b", "a"]
    assert taken(MappingProxyType({"x": MappingProxyType({"y": 1})})) == {"x": {"y": 1}}
    assert taken(True) == {"type": "object"}
    assert {params: 1}[SamplingParams(json_schema=params.json_schema)] == 1


@pytest.mark.parametrize(
    "schema",
    [
        False,
        5,
        "{}",
        [{}],
        {1: 2},
        {"minimum": float("inf")},
        {"minimum": float("nan")},
        {"minimum": np.float32(1)},
        {"const": {1, 2}},
        {"const": b"a"},
        {"const": "\ud800"},
        {"enum": ["x" * MOST_CHARACTERS]},
        {"enum": list(range(MOST_CHARACTERS))},
        nested(MOST_DEPTH + 1),
    ],
)
def test_what_is_no_schema(schema: object) -> None:
    with pytest.raises(RequestError, match="json_schema"):
        taken(schema)


def test_as_deep_as_allowed() -> None:
    assert taken(nested(MOST_DEPTH))


def test_a_schema_that_holds_itself() -> None:
    schema: dict[str, Any] = {}
    schema["items"] = schema
    with pytest.raises(RequestError, match="too deep"):
        taken(schema)
    wide: dict[str, Any] = {"type": "null"}
    for _ in range(40):  # 2 ** 40 values
        wide = {"anyOf": [wide, wide]}
    with pytest.raises(RequestError, match="too large"):
        taken(wide)


def test_patterns_that_meet() -> None:
    """Whether a text can match n patterns takes 2 ** n steps to see."""
    patterns = [{"type": "string", "pattern": f"a{number}.*b"} for number in range(20)]
    assert taken({"prefixItems": patterns})
    for schema in (
        {"allOf": patterns},
        {"$defs": {"a": {"allOf": patterns}}, "$ref": "#/$defs/a"},
        {"patternProperties": {f"^a{number}$": {} for number in range(40)}},
    ):
        with pytest.raises(RequestError, match="pattern"):
            taken(schema)


def test_unknown_formats_say_nothing() -> None:
    assert rule({"type": "string", "format": "color"}) == {"type": "string"}
    kept = {
        "properties": {"format": {"type": "string", "format": "uuid"}},
        "const": {"format": "color"},
    }
    assert rule(kept) == kept


def test_whitespace_is_not_the_clients() -> None:
    made = json_rule({"x-guidance": {"whitespace_pattern": ".*", "lenient": True}})
    assert "lenient" not in made
    assert ".*" not in made


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "integer", "multipleOf": 999_979}, "has multipleOf 999979; expected at most"),
        ({"multipleOf": 1e9}, "has multipleOf"),
        ({"allOf": [{"multipleOf": 997}, {"multipleOf": 991}]}, "has multipleOf 991 and 997"),
        ({"const": 2**53 + 1}, "has the number 9007199254740993"),
        ({"properties": {"a": {"enum": [1, [2**64]]}}}, "has the number 18446744073709551616"),
        ({"minimum": -(10**30)}, "has the number -1000000000000000000"),
    ],
)
def test_numbers_that_take_memory_or_would_be_rounded(schema: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        checked_schema(schema, "json_schema")


def test_usual_numbers() -> None:
    for schema in ({"multipleOf": 0.01}, {"multipleOf": 1000}, {"maximum": 1e300, "const": 2**53}):
        assert checked_schema(schema, "json_schema") == schema
