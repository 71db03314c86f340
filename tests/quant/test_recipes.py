"""Which format each role gets."""

import pytest

from deepmnn.errors import RequestError
from deepmnn.graph.ir import Graph, Node, Weight
from deepmnn.graph.weights import Tensor
from deepmnn.quant.recipes import RECIPES, apply, group_size

ROLES = ("linear", "expert", "latent", "router", "embedding", "lm_head")


def graph_of_roles() -> Graph:
    graph = Graph("g")
    for role in ROLES:
        graph.weights[role] = Weight(role, Tensor(role, (32, 128)), role)
    graph.weights["norm"] = Weight("norm", Tensor("norm", (128,)), "vector")
    graph.weights["bias"] = Weight("bias", Tensor("bias", (128,)), "linear")
    return graph


def formats(graph: Graph) -> dict[str, tuple[str, int]]:
    return {name: (w.format, w.group_size) for name, w in graph.weights.items()}


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ("fp32", dict.fromkeys(ROLES, ("f32", 0))),
        ("bf16", dict.fromkeys(ROLES, ("bf16", 0))),
        ("w8", dict.fromkeys(ROLES, ("w8", 256))),
        (
            "w4",
            dict.fromkeys(("linear", "expert", "lm_head"), ("w4", 64))
            | dict.fromkeys(("latent", "embedding"), ("w8", 256)),
        ),
    ],
)
def test_roles(recipe: str, expected: dict[str, tuple[str, int]]) -> None:
    graph = graph_of_roles()
    apply(graph, recipe)
    vectors = dict.fromkeys(("norm", "bias"), ("vector", 0))
    assert formats(graph) == expected | vectors | {"router": ("f32", 0)}
    apply(graph, "fp32")  # a recipe leaves nothing of the one before
    assert formats(graph)["linear"] == ("f32", 0)


def test_tied_lm_head_keeps_the_embeddings_format() -> None:
    graph = graph_of_roles()
    table = Tensor("table", (32, 128))
    graph.weights["embedding"].expr = graph.weights["lm_head"].expr = table
    apply(graph, "w4")
    assert graph.weights["lm_head"].format == graph.weights["embedding"].format == "w8"
    shared = graph_of_roles()
    shared.nodes.append(Node("embedding", ("ids",), ("x",), ("lm_head",)))
    apply(shared, "w4")
    assert shared.weights["lm_head"].format == "w8"


@pytest.mark.parametrize(
    ("cols", "expected"),
    [(64, 64), (1, 32), (32, 32), (33, 64), (63, 64), (96, 32), (97, 64), (128, 64), (1536, 64)],
)
def test_group_size(cols: int, expected: int) -> None:
    assert group_size(Weight("w", Tensor("w", (4, cols)), format="w4")) == expected
    assert group_size(Weight("w", Tensor("w", (4, cols)), format="w8")) == 256


def test_unknown_recipe_lists_the_choices() -> None:
    with pytest.raises(RequestError, match=", ".join(RECIPES)):
        apply(graph_of_roles(), "q4_k_m")
