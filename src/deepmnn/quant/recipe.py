"""Recipes: which storage format each weight gets.

A recipe is an ordered list of rules, pattern → format; the first that matches a weight decides.

    model.layers.0.*  w8
    role:expert       w4
    *                 bf16

"role:expert" matches a role (graph/ir.py); anything else is a glob, which matches a weight by its
name in the graph, or by the names of all the checkpoint tensors that it is made of. Weights get
their formats before any are fused, and only those of one format are. What no rule matches stays
float32. quant/recipe_file.py reads and writes recipes.

Not a recipe's choice: vectors are stored raw, and routers float32, for a wrong choice of experts
costs far more than the bytes. A matrix that an embedding looks up gets one format under every name
that it has, so that tying a head to it costs nothing and level 0 quantises like level 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from deepmnn import formats
from deepmnn.errors import DeepmnnError, RequestError, Words
from deepmnn.graph.ir import Graph, Weight
from deepmnn.graph.signatures import weights_read
from deepmnn.graph.tensors import tensors
from deepmnn.graph.weights import Expr
from deepmnn.source.json_file import KINDS

ROLES = ("linear", "expert", "latent", "embedding", "lm_head")
"""Those whose format a recipe chooses."""

MATRICES = tuple(
    made.name for made in formats.FORMATS.values() if made.is_matrix and not made.is_kept
)
_ROLE = "role:"
_MAX_NAME = 80
_MAX_RULES = 10_000
_MAX_PATTERN = 500
"""A longer one could take minutes to match."""


@dataclass(frozen=True)
class Rule:
    """Weights that match `pattern` are stored in `format`.

    Raises RequestError for a role or format that there is none of.
    """

    pattern: str
    format: str

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, str):
            raise RequestError(f"pattern {self.pattern!r:.80}", f"{_ROLE}NAME, or a glob")
        if len(self.pattern) > _MAX_PATTERN:
            found = f"a pattern of {len(self.pattern)} characters"
            raise RequestError(found, f"at most {_MAX_PATTERN}")
        role = self.pattern.removeprefix(_ROLE)
        if role != self.pattern and role not in ROLES:
            raise RequestError(f"pattern {self.pattern!r:.80}", f"{_ROLE} {', '.join(ROLES)}")
        if self.format not in MATRICES:
            expected = f"one of {', '.join(MATRICES)}"
            raise RequestError(f"weight format {self.format!r:.80}", expected)

    @property
    def is_role(self) -> bool:
        """Whether it names a role, which a model may lack."""
        return self.pattern.startswith(_ROLE)

    def matches(self, weight: Weight, role: str) -> bool:
        """Whether a weight with that role gets this rule's format."""
        if self.is_role:
            return self.pattern == _ROLE + role
        if fnmatchcase(weight.name, self.pattern):
            return True
        names = [tensor.name for tensor in tensors(weight.expr)]
        return bool(names) and all(fnmatchcase(name, self.pattern) for name in names)


UNMATCHED = Rule("*", formats.F32_MATRIX.name)
"""What is stored as it is: weights that no rule of a recipe matches."""


@dataclass(frozen=True)
class Recipe:
    """Ordered rules under a name.

    Raises RequestError for a name that cannot be printed, or rules that are none.
    """

    name: str
    rules: tuple[Rule, ...]

    def __post_init__(self) -> None:
        name = self.name
        if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= _MAX_NAME:
            raise RequestError(
                f"a recipe called {name!r:.100}", f"1 to {_MAX_NAME} printable characters"
            )
        if not isinstance(self.rules, tuple) or not all(isinstance(r, Rule) for r in self.rules):
            raise RequestError(f"rules are {self.rules!r:.80}", "a tuple of Rule")
        if len(self.rules) > _MAX_RULES:
            raise RequestError(f"a recipe with {len(self.rules)} rules", f"at most {_MAX_RULES}")

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        rules = [{"pattern": rule.pattern, "format": rule.format} for rule in self.rules]
        return {"name": self.name, "rules": rules}

    @classmethod
    def from_json(
        cls, fields: object, what: str, error: type[DeepmnnError] = RequestError
    ) -> Recipe:
        """The recipe of parsed JSON; every fault is raised as `error`, `what` names the file."""
        try:
            checked = _object(fields, "the recipe", {"name": str, "rules": list})
            rules = [_rule(rule, number) for number, rule in enumerate(checked["rules"], 1)]
            return cls(checked["name"], tuple(rules))
        except RequestError as fault:
            raise error(f"{what}: {fault.found}", fault.expected, fault.hint) from None


def _uniform(name: str, format: str) -> Recipe:
    return Recipe(name, tuple(Rule(_ROLE + role, format) for role in ROLES))


def _narrow(name: str) -> Recipe:
    """A format of few bits, but w8 where rounding costs most for what it saves: MLA's
    up-projections, and the embedding, of which a token reads one row.
    """
    few = [Rule(_ROLE + role, name) for role in ("linear", "expert", "lm_head")]
    return Recipe(name, (*few, Rule("role:latent", "w8"), Rule("role:embedding", "w8")))


RECIPES = {
    made.name: made
    for made in (
        _uniform("fp32", "f32"),
        _uniform("bf16", "bf16"),
        _uniform("w8", "w8"),
        *map(_narrow, ("w6", "w5", "w4", "w3")),
    )
}
"""The recipes that have names."""

DEFAULT = "w8"
"""The recipe where none is named: it needs no calibration, and is near to float32."""


def recipe_of(quant: str | Recipe) -> Recipe:
    """A recipe by its name, or itself. Raises RequestError, listing the names."""
    if isinstance(quant, Recipe):
        return quant
    if not isinstance(quant, str) or quant not in RECIPES:
        raise RequestError(
            f"quantisation recipe {quant!r:.80}",
            f"one of {', '.join(RECIPES)}",
            Words("One of your own is a deepmnn.Recipe.", "One of your own is a .yaml file."),
        )
    return RECIPES[quant]


def apply(graph: Graph, recipe: Recipe) -> set[Rule]:
    """Sets the format of every weight of the graph, in place; the rules that chose one."""
    embeddings = _embeddings(graph)
    used = set()
    for weight in graph.weights.values():
        looked_up = embeddings.get(weight.expr)
        if weight.role == "vector" or len(weight.shape) == 1:
            weight.format = formats.VECTOR.name
        elif looked_up is not None:
            used.add(_store(weight, recipe, looked_up, "embedding"))
        else:
            used.add(_store(weight, recipe, weight, weight.role))
    return used


def _store(weight: Weight, recipe: Recipe, matched: Weight, role: str) -> Rule:
    """Gives a matrix the format of the rule that `matched` finds."""
    rules = () if role == "router" else recipe.rules
    rule = next((rule for rule in rules if rule.matches(matched, role)), UNMATCHED)
    weight.format = rule.format
    return rule


def _embeddings(graph: Graph) -> dict[Expr, Weight]:
    """What is looked up: expression → the weight that gives it its format."""
    read = weights_read(graph, "looked_up")
    found: dict[Expr, Weight] = {}
    for weight in graph.weights.values():
        if weight.name in read or weight.role == "embedding":
            found.setdefault(weight.expr, weight)
    return found


def _rule(fields: object, number: int) -> Rule:
    what = f"rule {number}"
    checked = _object(fields, what, {"pattern": str, "format": str})
    try:
        return Rule(**checked)
    except RequestError as fault:
        raise RequestError(f"{what}: {fault.found}", fault.expected, fault.hint) from None


def _object(value: object, what: str, known: Mapping[str, type]) -> dict[str, Any]:
    """An object with exactly these fields. Raises RequestError."""
    if not isinstance(value, dict):
        raise RequestError(f"{what} is {value!r:.80}", f"an object with {', '.join(known)}")
    for key in value:
        if key not in known:
            raise RequestError(f"{what} has the field {key!r:.80}", f"only {', '.join(known)}")
    for key, kind in known.items():
        if key not in value:
            raise RequestError(f"{what} has no field {key!r}", KINDS[kind])
        if type(value[key]) is not kind:
            raise RequestError(f"{what}: {key} is {value[key]!r:.80}", KINDS[kind])
    return value
