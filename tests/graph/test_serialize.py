"""graph.json: exact round trips, and ArtifactError for everything else."""

import json
import random

import pytest

from deepmnn.errors import ArtifactError, GraphError
from deepmnn.graph.levels import MAX_LEVEL, optimize
from deepmnn.graph.serialize import from_json, to_json
from deepmnn.graph.weights import Tensor
from storage import NAMES
from tiny_models import ALL


def stored(graph):
    """The graph as it is after conversion: every weight under its own name."""
    graph = graph.copy()
    for weight in graph.weights.values():
        weight.expr = Tensor(weight.name, weight.shape)
    return graph


@pytest.mark.parametrize(("model_type", "index"), ALL)
@pytest.mark.parametrize("level", [0, MAX_LEVEL])
def test_round_trip(model_type, index, level, tiny):
    graph = optimize(tiny(model_type, index), level)[0]
    for number, weight in enumerate(graph.weights.values()):
        if weight.format != "vector":
            weight.format = NAMES[number % len(NAMES)]
    text = to_json(graph)
    assert from_json(json.loads(text)) == stored(graph)
    assert to_json(from_json(json.loads(text))) == text


def test_attributes_keep_their_types(tiny):
    graph = tiny("llama", 0)
    rope = next(node for node in graph.nodes if node.op == "rope")
    rope.attrs.update(rope_scale=1.0, inv_freq=tuple(0.1 * i for i in range(1, 7)))
    read = from_json(json.loads(to_json(graph))).nodes[graph.nodes.index(rope)]
    assert read.attrs == rope.attrs
    for key, value in rope.attrs.items():
        assert type(read.attrs[key]) is type(value)


def test_numbers_that_json_lacks_are_refused(tiny):
    graph = tiny("llama", 0)
    graph.nodes[1].attrs["eps"] = float("nan")
    with pytest.raises(GraphError, match="JSON"):
        to_json(graph)


@pytest.mark.parametrize(
    "data", [[], None, 3, "graph", {}, {"format": 2}, {"format": 1, "values": []}, [[[]]]]
)
def test_other_documents_are_refused(data):
    with pytest.raises(ArtifactError, match=r"graph\.json"):
        from_json(data)


HUGE = [
    ("values", {f"v{i}": ["f32", "tokens", 1] for i in range((1 << 18) + 1)}),
    ("weights", {f"w{i}": ["vector", "vector", 1] for i in range((1 << 18) + 1)}),
    ("nodes", [{}] * ((1 << 16) + 1)),
    ("nodes", [{"inputs": ["ids"] * 100_000, "attrs": {}, "op": "silu"}]),
    ("nodes", [{"attrs": {"sizes": [1] * 100_000}, "op": "split"}]),
    ("nodes", [{"attrs": {str(i): 1 for i in range(100_000)}, "op": "split"}]),
    ("outputs", ["ids"] * 100_000),
    ("values", {"v": ["f32", "tokens", *[2**40] * 100_000]}),
    ("weights", {"w": ["linear", "f32", *[2**40] * 100_000]}),
    ("values", {"v": ["f32", "tokens", 2**24 + 1]}),
    ("values", {"v": ["f32", "tokens", 2**13, 2**13]}),
    ("caches", {"c": {"width": 2**24 + 1, "ratio": 1, "window": 0, "exact": False}}),
    ("caches", {"c": {"width": 1, "ratio": 2**24 + 1, "window": 0, "exact": False}}),
]


@pytest.mark.parametrize(("field", "value"), HUGE)
def test_graphs_that_would_take_all_memory_are_refused(tiny, field, value):
    data = json.loads(to_json(tiny("llama", 0)))
    with pytest.raises(ArtifactError, match=r"graph\.json"):
        from_json(data | {field: value})


JUNK = [None, True, -1, 0, 2**80, 1.5, "", "tokens", "linear", [], [[]], {}, {"a": 1}, [1, 2.5]]


def _places(data, path=()):
    """Every path into a JSON document."""
    yield path
    items = data.items() if isinstance(data, dict) else enumerate(data)
    for key, value in items:
        if isinstance(value, dict | list):
            yield from _places(value, (*path, key))
        else:
            yield (*path, key)


def test_damaged_documents_are_refused_or_valid(tiny):
    """Each field in turn replaced by junk or removed: an ArtifactError or a graph, nothing else."""
    text = to_json(optimize(tiny("deepseek_v3", 0), MAX_LEVEL)[0])
    places = [path for path in _places(json.loads(text)) if path]
    chance = random.Random(0)
    refused = 0
    for path in chance.sample(places, 400):
        data = json.loads(text)
        parent = data
        for key in path[:-1]:
            parent = parent[key]
        if chance.random() < 0.2:
            del parent[path[-1]]
        else:
            parent[path[-1]] = chance.choice(JUNK)
        try:
            from_json(data)
        except ArtifactError:
            refused += 1
    assert refused > 300


@pytest.mark.parametrize("version", [0, 1, 3, "2", None])
def test_other_formats_are_refused(version, tiny):
    data = json.loads(to_json(tiny("llama", 0)))
    with pytest.raises(ArtifactError, match="format"):
        from_json(data | {"format": version})
