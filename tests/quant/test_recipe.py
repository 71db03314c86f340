"""Which format each weight gets."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest

from deepmnn.errors import ArtifactError, RequestError
from deepmnn.graph.ir import Graph, Node, Weight
from deepmnn.graph.levels import optimize
from deepmnn.graph.weights import Concat, Constant, Tensor
from deepmnn.quant.recipe import (
    RECIPES,
    Recipe,
    Rule,
    apply,
    recipe_of,
)
from storage import QUANTIZED_NAMES

ROLES = ("linear", "expert", "latent", "router", "embedding", "lm_head")
W4 = RECIPES["w4"]


def graph_of_roles() -> Graph:
    graph = Graph("g")
    for role in ROLES:
        graph.weights[role] = Weight(role, Tensor(role, (32, 128)), role)
    graph.weights["norm"] = Weight("norm", Tensor("norm", (128,)), "vector")
    graph.weights["bias"] = Weight("bias", Tensor("bias", (128,)), "linear")
    return graph


def formats(graph: Graph) -> dict[str, str]:
    return {name: w.format for name, w in graph.weights.items()}


def mine(*rules: Rule) -> Recipe:
    return Recipe("mine", rules)


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ("fp32", dict.fromkeys(ROLES, "f32")),
        ("bf16", dict.fromkeys(ROLES, "bf16")),
        ("w8", dict.fromkeys(ROLES, "w8")),
        *(
            (
                narrow,
                dict.fromkeys(("linear", "expert", "lm_head"), narrow)
                | dict.fromkeys(("latent", "embedding"), "w8"),
            )
            for narrow in ("w6", "w5", "w4", "w3")
        ),
    ],
)
def test_roles(recipe: str, expected: dict[str, str]) -> None:
    graph = graph_of_roles()
    apply(graph, recipe_of(recipe))
    vectors = dict.fromkeys(("norm", "bias"), "vector")
    assert formats(graph) == expected | vectors | {"router": "f32"}
    apply(graph, recipe_of("fp32"))  # a recipe leaves nothing of the one before
    assert formats(graph)["linear"] == "f32"


def test_every_quantised_format_has_a_recipe_of_its_name() -> None:
    assert {*QUANTIZED_NAMES, "fp32", "bf16"} == RECIPES.keys()


def test_tied_lm_head_keeps_the_embeddings_format() -> None:
    graph = graph_of_roles()
    table = Tensor("table", (32, 128))
    graph.weights["embedding"].expr = graph.weights["lm_head"].expr = table
    apply(graph, W4)
    assert graph.weights["lm_head"].format == graph.weights["embedding"].format == "w8"
    apply(graph, mine(Rule("lm_head", "w4"), Rule("embedding", "bf16")))
    assert graph.weights["lm_head"].format == graph.weights["embedding"].format == "bf16"
    shared = graph_of_roles()
    shared.nodes.append(Node("embedding", ("ids",), ("x",), ("lm_head",)))
    apply(shared, W4)
    assert shared.weights["lm_head"].format == "w8"


def test_the_first_rule_that_matches_decides() -> None:
    graph = graph_of_roles()
    rules = Rule("e*t", "w4"), Rule("role:expert", "w8"), Rule("l*", "bf16"), Rule("*", "w8")
    apply(graph, mine(*rules))
    found = formats(graph)
    assert found["expert"] == "w4"
    assert found["linear"] == found["latent"] == found["lm_head"] == "bf16"
    assert found["embedding"] == "w8"
    assert found["router"] == "f32", "no pattern reaches a router"
    assert found["norm"] == found["bias"] == "vector"
    apply(graph, mine(*reversed(rules)))
    assert set(formats(graph).values()) == {"w8", "f32", "vector"}


def test_what_no_rule_matches_stays_float32() -> None:
    graph = graph_of_roles()
    apply(graph, mine(Rule("role:expert", "w4")))
    assert {n: f for n, f in formats(graph).items() if f not in ("f32", "vector")} == {
        "expert": "w4"
    }


def test_a_glob_matches_all_tensors_of_a_weight_or_its_name() -> None:
    graph = Graph("g")
    q, k, v = (Tensor(f"model.layers.0.{p}_proj.weight", (32, 64)) for p in "qkv")
    filler = Constant((32, 64))
    for name, expr in {"all": Concat((q, k, v, filler)), "q": q, "zeros": filler}.items():
        graph.weights[name] = Weight(name, expr)
    for pattern, expected in {
        "model.layers.0.*": {"all", "q"},
        "*q_proj*": {"q"},  # of the fused matrix it is only a part
        "a[k-m]?": {"all"},
        "zeros": {"zeros"},
        "model.layers.1.*": set(),
        "MODEL.*": set(),
    }.items():
        apply(graph, mine(Rule(pattern, "w8")))
        assert {n for n, f in formats(graph).items() if f == "w8"} == expected, pattern


def test_names_of_tensors_mean_the_same_at_every_level(tiny_graph: Callable[[], Graph]) -> None:
    """Bytes differ by padding alone; so count numbers."""
    recipe = mine(Rule("model.layers.0.*", "w8"), Rule("role:expert", "w4"), Rule("*", "bf16"))
    counts = []
    for level in (0, 2):
        graph, _ = optimize(tiny_graph(), level)
        apply(graph, recipe)
        names: dict[str, set[str]] = {}
        for weight in graph.weights.values():
            names.setdefault(weight.format, set()).update(
                t.name for t in _tensors(weight) if t.name.endswith("weight")
            )
        counts.append(names)
    assert counts[0] == counts[1]
    assert {"w8", "w4", "bf16", "f32", "vector"} == counts[0].keys()


def _tensors(weight: Weight) -> list[Tensor]:
    from deepmnn.graph.tensors import tensors

    return list(tensors(weight.expr))


@pytest.fixture
def tiny_graph() -> Callable[[], Graph]:
    from deepmnn.models import build
    from tiny_models import CONFIGS

    return lambda: build({"model_type": "deepseek_v3", **CONFIGS["deepseek_v3"][0]})


def test_unknown_recipe_lists_the_choices() -> None:
    for bad in ("q4_k_m", "", None, ["w4"]):
        with pytest.raises(RequestError, match=r"recipe.*" + ", ".join(RECIPES)):
            recipe_of(bad)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------ JSON


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_json_round_trip(recipe: Recipe) -> None:
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json())), "x") == recipe


def test_a_recipe_is_a_value() -> None:
    recipe = mine(Rule("*", "w4"))
    assert recipe == mine(Rule("*", "w4")) != mine(Rule("*", "w5"))
    assert len({recipe, mine(Rule("*", "w4"))}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.name = "other"  # type: ignore[misc]


def test_values_of_a_wrong_type() -> None:
    for make in (
        lambda: Rule(3, "w4"),  # type: ignore[arg-type]
        lambda: Rule("*", ["w4"]),  # type: ignore[arg-type]
        lambda: Recipe(3, ()),  # type: ignore[arg-type]
        lambda: Recipe("x", [Rule("*", "w4")]),  # type: ignore[arg-type]
        lambda: Recipe("x", ("w4",)),  # type: ignore[arg-type]
    ):
        with pytest.raises(RequestError):
            make()


RULE = {"pattern": "*", "format": "w4"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (3, "the recipe is 3; expected an object with name, rules"),
        ([], "the recipe is"),
        ({"name": "x"}, "no field 'rules'; expected a list"),
        ({"rules": []}, "no field 'name'"),
        ({"name": 3, "rules": []}, "name is 3"),
        ({"name": "", "rules": []}, "called ''"),
        ({"name": "a\nb", "rules": []}, "printable"),
        ({"name": "x" * 81, "rules": []}, "80"),
        ({"name": "x", "rules": {}}, "rules is"),
        ({"name": "x", "rules": [], "rule": 1}, "has the field 'rule'; expected only name, rules"),
        ({"name": "x", "rules": ["w4"]}, "rule 1 is 'w4'"),
        ({"name": "x", "rules": [RULE, RULE | {"bits": 4}]}, "rule 2 has the field 'bits'"),
        ({"name": "x", "rules": [{"pattern": "*"}]}, "rule 1 has no field 'format'"),
        ({"name": "x", "rules": [RULE | {"pattern": None}]}, "pattern is None"),
        ({"name": "x", "rules": [RULE | {"format": "w7"}]}, "rule 1: weight format 'w7'"),
        ({"name": "x", "rules": [RULE | {"format": "vector"}]}, "'vector'; expected one of f32"),
        ({"name": "x", "rules": [RULE | {"pattern": "role:router"}]}, "'role:router'; expected"),
        ({"name": "x", "rules": [RULE | {"pattern": "role:"}]}, "'role:'; expected"),
        ({"name": "x", "rules": [RULE | {"group_size": 64}]}, "rule 1 has the field 'group_size'"),
    ],
)
def test_json_that_is_no_recipe(fields: Any, message: str) -> None:
    for error in (RequestError, ArtifactError):
        with pytest.raises(error, match=f"^here: .*{message}"):
            Recipe.from_json(fields, "here", error)
