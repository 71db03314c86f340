"""JSON from outside: the same value as json.loads gives, or an error in words, in linear time."""

from __future__ import annotations

import codecs
import json
from pathlib import Path

import pytest

from deepmnn.errors import ConfigError
from deepmnn.source.json_file import MAX_DEPTH, is_plain_name, parse_object
from source.limited import outcome


def test_reads_what_the_library_reads() -> None:
    text = json.dumps({"a": [1, -2.5e10, None, True, {"b": "\ud83d\ude00ü"}], "": {}})
    for data in (text.encode(), codecs.BOM_UTF8 + text.encode(), f"\r\n {text}\r\n".encode()):
        assert parse_object(data, "x", ConfigError) == json.loads(text)


def nested(depth: int) -> str:
    return '{"a":' + "[" * (depth - 1) + "]" * (depth - 1) + "}"


REFUSED = {
    "twice": ('{"a": 1, "b": 2, "a": 1}', "key 'a' appears twice"),
    "twice inside": ('{"x": [{"é": 1, "é": 2}]}', "key 'é' appears twice"),
    "a list": ("[]", "JSON list"),
    "a number": ("3", "JSON int"),
    "half": ('{"a": ', "not valid JSON"),
    "too deep": (nested(MAX_DEPTH + 1), "nested too deeply"),
    "far too deep": (nested(100_000), "nested too deeply"),
    "NaN": ('{"a": NaN}', "NaN is no finite number"),
    "infinite": ('{"a": -Infinity}', "-Infinity is no finite number"),
    "beyond doubles": ('{"a": [1e999]}', "1e999 is no finite number"),
    "many values": ('{"a": [' + "0," * 4_000_001 + "0]}", "values; expected at most 4,000,000"),
    "many lists": ('{"a": [' + "[]," * 2_000_001 + "0]}", "values; expected at most 4,000,000"),
    "a giant integer": ('{"a": ' + "9" * 10_000 + "}", "not valid JSON"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    text, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message):
        parse_object(text.encode(), "x", ConfigError)


@pytest.mark.parametrize("data", ['{"a": "é"}'.encode("latin-1"), '{"a": 1}'.encode("utf-16"), b""])
def test_not_utf8(data: bytes) -> None:
    with pytest.raises(ConfigError, match=r"x is not valid JSON.*UTF-8"):
        parse_object(data, "x", ConfigError)


def test_as_deep_as_may_be() -> None:
    assert parse_object(nested(MAX_DEPTH).encode(), "x", ConfigError)


@pytest.mark.parametrize("kind", ["keys", "objects", "depth"])
def test_large_files_take_linear_time(tmp_path: Path, kind: str) -> None:
    """Quadratic work on a million items would take hours."""
    count = 1_000_000
    items = {
        "keys": (f'"{i:06x}": 0' for i in [*range(count), count - 1]),
        "objects": (f'"{i:06x}": [{{}}]' for i in [*range(count // 4), 0]),
        "depth": ('"a": ' + "[" * 50 + "]" * 50 for _ in range(count // 50)),
    }[kind]
    (tmp_path / "x.json").write_text("{" + ", ".join(items) + "}")
    said = outcome(
        "from deepmnn.errors import ConfigError\nfrom deepmnn.source.json_file import read_object",
        "read_object(Path(sys.argv[1]), ConfigError)",
        tmp_path / "x.json",
        1 << 30,
    )
    assert "appears twice" in said


@pytest.mark.parametrize("name", ["a", "a.safetensors", "..a", "模型"])
def test_plain_names(name: str) -> None:
    assert is_plain_name(name)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "a\\b", "/a", "a\0", "a\n", "\ud800", 3, None]
)
def test_names_that_reach_outside(name: object) -> None:
    assert not is_plain_name(name)
