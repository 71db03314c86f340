"""Published shapes as weight files: what is read together lies together."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from deepmnn.artifact.shards import (
    MAX_SHARD_BYTES,
    Layout,
    Shard,
    expert_of,
    header,
    locate,
    plan_shards,
)
from deepmnn.backends.cpu.pieces import PAGE
from deepmnn.conversion.convert import plan_conversion

PUBLISHED = Path(__file__).parents[1] / "models" / "published"


def config_of(name: str, tmp_path: Path, **changes: Any) -> Path:
    config = json.loads((PUBLISHED / f"{name}.json").read_text())
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config | changes))
    return path


@pytest.mark.parametrize("name", ["DeepSeek-V3", "DeepSeek-V2-Lite"])
@pytest.mark.parametrize("quant", ["w4", "bf16"])
def test_an_expert_is_one_read(name: str, quant: str, tmp_path: Path) -> None:
    """Gate and up, then down, in one file, with less than a page between; experts in order.

    A mixture of V3 is larger than a file: it is cut between two experts.
    """
    layers = {"num_hidden_layers": 5 if name == "DeepSeek-V3" else 2, "num_nextn_predict_layers": 0}
    made = plan_conversion(config_of(name, tmp_path, **layers), quant, random_weights=True)
    experts: dict[str, list[tuple[int, int, int]]] = {}
    for weight in made.weights:
        if expert_of(weight.name):
            (piece,) = made.locations[weight.name]
            place = (piece.shard, piece.offset, piece.offset + piece.nbytes)
            experts.setdefault(expert_of(weight.name), []).append(place)
    count = made.source.config["n_routed_experts"]
    assert len(experts) == count * (2 if name == "DeepSeek-V3" else 1)
    for (shard, begin, end), (other, after, _) in experts.values():
        assert shard == other
        assert begin % PAGE == after % PAGE == 0
        assert 0 <= after - end < PAGE
    for one, following in pairwise(experts):
        is_same_layer = one.split(".experts.")[0] == following.split(".experts.")[0]
        if is_same_layer:
            assert int(following.split(".")[-2]) == int(one.split(".")[-2]) + 1
            if experts[one][0][0] == experts[following][0][0]:
                assert 0 <= experts[following][0][1] - experts[one][1][2] < PAGE
            else:
                assert experts[following][0][0] == experts[one][0][0] + 1
    files = {shard for places in experts.values() for shard, _, _ in places}
    assert (len(files) > 2) == (name == "DeepSeek-V3")
    assert all(shard.planned().end < MAX_SHARD_BYTES + (1 << 20) for shard in made.shards)


def test_large_weights_begin_with_a_page() -> None:
    weights = [("a", 64), ("b", 70_016), ("c", 128), ("d", 65_536), ("e", 65_536)]
    (shard,) = plan_shards(weights)
    places = {name: pieces[0] for name, pieces in locate([shard]).items()}
    assert [places[name].offset % PAGE == 0 for name in "bde"] == [True] * 3
    assert places["a"].offset == shard.header_nbytes == 4096
    assert places["c"].offset == places["b"].offset + 70_016
    assert places["e"].offset == places["d"].offset + 65_536
    text = header(shard.planned())
    assert len(text) == shard.header_nbytes
    found = json.loads(text[8:])
    assert [name for name in found if name.startswith("padding.")] == ["padding.1", "padding.4"]
    position = 0
    for name in list(found)[1:]:
        assert found[name]["data_offsets"][0] == position
        position = found[name]["data_offsets"][1]


def test_there_is_room_for_every_header() -> None:
    """Whatever of the weights is stored elsewhere."""
    weights = [(f"w{number}", 64 * (1 + number * 977 % 1500)) for number in range(200)]
    shard = Shard("f", weights)
    for stored in ((), range(0, 200, 3), range(200), (199,)):
        layout = Layout(shard.header_nbytes)
        for number, (name, nbytes) in enumerate(weights):
            if number in stored:
                layout.add(name, layout.next(nbytes), nbytes // 128 * 64 or 64)
        assert len(header(layout)) == shard.header_nbytes


def test_experts_are_not_cut() -> None:
    weights = [(f"layers.1.mlp.experts.{e}.{p}", 10) for e in range(6) for p in ("up", "down")]
    shards = plan_shards([("layers.1.q", 10), *weights], 50)
    assert [len(shard.weights) for shard in shards] == [5, 4, 4]
    assert [item for shard in shards for item in shard.weights][1:] == weights
