"""llm.mnn before MNN sees it: what was exported passes, and every number of it is pinned."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("MNN")

from deepmnn.conversion.convert import convert
from deepmnn.errors import ArtifactError
from deepmnn.exporters.mnn.export import export
from deepmnn.exporters.mnn.flatbuffer import FlatBuffer
from deepmnn.exporters.mnn.network import Network, check_network, read_network
from deepmnn.exporters.mnn.schema import TABLES, UNION
from fuzz.mutations import mutate_bytes
from tiny_artifact import CONFIG, write_config

Path_ = tuple[Any, ...]
GQA = {
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "head_dim": 16,
    "num_key_value_heads": 1,
    "num_hidden_layers": 1,
}
MADE = {
    "expanded": ({}, 3, {"mla_form": "expanded"}),
    "absorbed": ({}, 3, {"mla_form": "absorbed"}),
    "plain": ({}, 0, {}),
    "gqa": (GQA, 3, {}),
}


@pytest.fixture(scope="module", params=list(MADE))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config, level, options = MADE[request.param]
    home = tmp_path_factory.mktemp(request.param)
    write_config(home / "source", **config)
    path = convert(home / "source", home / "m", "w8", level, random_weights=True).path
    return export(path, home / "f", **options).path


def decoded(folder: Path) -> dict[str, Any]:
    data = (folder / "llm.mnn").read_bytes()
    return FlatBuffer(data, TABLES, UNION, "llm.mnn", "").root("Net")


def check(folder: Path, net: dict[str, Any]) -> Network:
    return check_network(net, folder / "llm.mnn", folder / "llm.mnn.weight")


def test_it_is_read_as_what_it_is(folder: Path) -> None:
    found = check(folder, decoded(folder))
    assert (found.hidden_size, found.vocab_size) == (CONFIG["hidden_size"], CONFIG["vocab_size"])
    assert found.layers == (1 if folder.parent.name.startswith("gqa") else 2)
    assert 192 <= found.context_length < 192 + 2 * 14
    data = (folder / "llm.mnn").read_bytes()
    assert read_network(folder / "llm.mnn", data, folder / "llm.mnn.weight") == found


FREE = ("name", "epsilon", "float32s", "gamma", "main_type")
"""Fields that may say anything: nothing is sized by them, or the decoder has used them up."""


def numbers(value: Any, place: Path_ = ()) -> Iterator[Path_]:
    """The places of all numbers, but for those of FREE fields."""
    items: Any = ()
    if isinstance(value, dict):
        items = ((key, part) for key, part in value.items() if key not in FREE)
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    for key, part in items:
        if isinstance(part, int | float):
            yield (*place, key)
        else:
            yield from numbers(part, (*place, key))


def at(value: Any, place: Path_) -> Any:
    for key in place:
        value = value[key]
    return value


def changed(value: Any, place: Path_, number: Any) -> Any:
    """A copy with another number at that place."""
    key, *rest = place
    made = list(value) if isinstance(value, list | tuple) else dict(value)
    made[key] = changed(value[key], tuple(rest), number) if rest else number
    return tuple(made) if isinstance(value, tuple) else made


def one_of_each(net: dict[str, Any]) -> Iterator[Path_]:
    """The places of ops that differ in type or in their kind of parameters."""
    seen = set()
    blocks = [
        ("oplists",),
        *(("subgraphs", i, "nodes") for i in range(len(net["subgraphs"] or ()))),
    ]
    for block in blocks:
        for index, op in enumerate(at(net, block)):
            main = op["main"] or {}
            kind = (
                op["type"],
                main.get("opType"),
                main.get("dataType"),
                len(op["inputIndexes"] or ()),
            )
            if kind not in seen:
                seen.add(kind)
                yield (*block, index)


EQUAL = (("opType",), ("external", 0), ("dim", 0), ("int32s", 0))
"""Parameters that may be another one's: an operation of the same shape, a vector elsewhere in the
file, a step between positions (the check of the folder compares what it covers).
"""


def test_every_number_of_every_op_is_pinned(folder: Path) -> None:
    """Refused, or a network of the same shapes: with another input, or one of EQUAL."""
    net, tried, passed, longest = decoded(folder), 0, [], 0
    for place in one_of_each(net):
        op = at(net, place)
        for inside in numbers(op):
            old = at(op, inside)
            for new in {0, 1, -1, old + 1, old - 1, old * 2, 1 << 30, -(1 << 31)} - {old}:
                tried += 1
                try:
                    check(folder, changed(net, (*place, *inside), new))
                    passed.append((op["name"], inside, new))
                except ArtifactError as error:
                    longest = max(longest, len(str(error)))
    assert tried > 1000
    assert longest < 1000
    unknown = [p for p in passed if p[1][0] != "inputIndexes" and p[1][1:] not in EQUAL]
    assert unknown == []
    assert len(passed) < tried / 20


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"outputName": ["logits", "x"]}, "outputs"),
        ({"outputName": None}, "outputs"),
        ({"tensorNumber": 7}, "7 tensors"),
        ({"oplists": None}, "0 ops"),
        ({"tensorName": None}, "names"),
        ({"usage": 1}, "kind"),
    ],
)
def test_nets_of_another_kind(folder: Path, change: dict[str, Any], match: str) -> None:
    with pytest.raises(ArtifactError, match=match):
        check(folder, decoded(folder) | change)


def test_experts_are_all_there_and_in_order(folder: Path) -> None:
    net = decoded(folder)
    graphs = net["subgraphs"] or []
    if not graphs:
        pytest.skip("a model without experts")
    for wrong in (
        graphs[:-1],
        graphs[1:],
        graphs + graphs[:1],
        [graphs[1], graphs[0], *graphs[2:]],
        [graphs[0] | {"outputs": (0, 1)}, *graphs[1:]],
        [graphs[0] | {"nodes": graphs[0]["nodes"][:-1]}, *graphs[1:]],
    ):
        with pytest.raises(ArtifactError, match=r"subgraph|experts|the network"):
            check(folder, net | {"subgraphs": wrong})


def test_ops_that_are_missing_twice_there_or_unknown(folder: Path) -> None:
    net = decoded(folder)
    for index, op in list(enumerate(net["oplists"]))[::3]:
        for change in (
            [],
            [op, op],
            [op | {"type": 512}],
            [op | {"main": None}],
            [op | {"outputIndexes": None}],
        ):
            ops = net["oplists"]
            wrong = net | {"oplists": [*ops[:index], *change, *ops[index + 1 :]]}
            if wrong["oplists"] != net["oplists"]:  # some have no parameters
                with pytest.raises(ArtifactError):
                    check(folder, wrong)


def test_weights_that_are_not_there(folder: Path, tmp_path: Path) -> None:
    """Cut, or with the head of a blob changed."""
    net, weights = decoded(folder), (folder / "llm.mnn.weight").read_bytes()
    stored = [op["main"] for op in net["oplists"] if (op["main"] or {}).get("quanParameter")]
    (tmp_path / "w").write_bytes(weights[:-1])
    with pytest.raises(ArtifactError, match="bytes"):
        check_network(net, folder / "llm.mnn", tmp_path / "w")
    for main in stored[:5]:
        for offset in range(6 + 256):
            if main["quanParameter"]["type"] == 1:
                at = main["external"][0] + offset
                wrong = weights[:at] + bytes([weights[at] ^ 1]) + weights[at + 1 :]
                (tmp_path / "w").write_bytes(wrong)
                with pytest.raises(ArtifactError, match="codes of another shape"):
                    check_network(net, folder / "llm.mnn", tmp_path / "w")
    with pytest.raises(ArtifactError, match="cannot be read"):
        check_network(net, folder / "llm.mnn", tmp_path / "none")


def test_damaged_bytes_are_refused_or_read(folder: Path) -> None:
    rng = np.random.default_rng(8)
    data, read = (folder / "llm.mnn").read_bytes(), 0
    for _ in range(150):
        try:
            read_network(folder / "llm.mnn", mutate_bytes(rng, data), folder / "llm.mnn.weight")
            read += 1
        except ArtifactError:
            pass
    assert read < 75


def test_a_small_file_does_not_stand_for_a_large_one(folder: Path) -> None:
    """A vector of offsets that all lead to one table would be read again and again."""
    data = bytearray((folder / "llm.mnn").read_bytes())
    table = int.from_bytes(data[:4], "little")
    home = table - int.from_bytes(data[table : table + 4], "little", signed=True)
    slot = home + 4 + 2 * 3  # oplists
    field = table + int.from_bytes(data[slot : slot + 2], "little")
    vector = field + int.from_bytes(data[field : field + 4], "little")
    count = int.from_bytes(data[vector : vector + 4], "little")
    first = vector + 4 + int.from_bytes(data[vector + 4 : vector + 8], "little")
    for index in range(count):
        place = vector + 4 + 4 * index
        if first > place:
            data[place : place + 4] = (first - place).to_bytes(4, "little")
    with pytest.raises(ArtifactError):
        read_network(folder / "llm.mnn", bytes(data), folder / "llm.mnn.weight")
