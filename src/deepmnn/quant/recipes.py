"""Recipes: which storage format each weight gets, by its role."""

from __future__ import annotations

from deepmnn.errors import RequestError
from deepmnn.formats import PANEL_COLS
from deepmnn.graph.ir import Graph, Weight
from deepmnn.graph.weights import Expr

RECIPES: dict[str, dict[str, str]] = {
    "fp32": dict.fromkeys(("linear", "expert", "lm_head", "latent", "embedding"), "f32"),
    "bf16": dict.fromkeys(("linear", "expert", "lm_head", "latent", "embedding"), "bf16"),
    "w8": dict.fromkeys(("linear", "expert", "lm_head", "latent", "embedding"), "w8"),
    "w4": {
        "linear": "w4",
        "expert": "w4",
        "lm_head": "w4",
        "latent": "w8",
        "embedding": "w8",
    },
}
"""Recipe → role → format. Routers stay float32 everywhere: a wrong choice of experts costs far
more than the bytes. The MLA up-projections and the embedding keep 8 bits in w4."""

QUANTISED = ("w8", "w4")


def check_recipe(recipe: str) -> None:
    """Raises RequestError, listing the choices, unless `recipe` is known."""
    if not isinstance(recipe, str) or recipe not in RECIPES:
        raise RequestError(f"quantisation recipe {recipe!r:.80}", f"one of {', '.join(RECIPES)}")


def apply(graph: Graph, recipe: str) -> None:
    """Sets dtype and group_size of every weight of the graph, in place.

    An lm_head tied to the embedding (the same weight, or an equal expression) gets the embedding's
    format, so that tying costs nothing and level 0 quantises like level 3. Raises RequestError for
    an unknown recipe.
    """
    check_recipe(recipe)
    formats = RECIPES[recipe]
    embeddings = {w.expr for w in graph.weights.values() if w.role == "embedding"}
    embeddings |= _read_by_embedding(graph)
    for weight in graph.weights.values():
        if weight.role == "vector" or len(weight.shape) == 1:
            weight.format = "vector"
        elif weight.expr in embeddings:
            weight.format = formats["embedding"]
        else:
            weight.format = formats.get(weight.role, "f32")
        weight.group_size = group_size(weight) if weight.format in QUANTISED else 0


def group_size(weight: Weight) -> int:
    """Columns of a group: a panel in w8; in w4 64, or 32 where padding to 64 would waste more."""
    if weight.format == "w8":
        return PANEL_COLS
    return 32 if 1 <= weight.shape[1] % 64 <= 32 else 64


def _read_by_embedding(graph: Graph) -> set[Expr]:
    """Expressions of the weights that an embedding op looks up, whatever their role."""
    names = {name for node in graph.nodes if node.op == "embedding" for name in node.weights}
    return {graph.weights[name].expr for name in names}
