"""Recipes as YAML files, which every conversion writes and any conversion can follow.

name: mine
rules:
- {pattern: model.layers.0.*, format: w8}
- {pattern: role:expert, format: w4}
- {pattern: '*', format: bf16}
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from deepmnn.errors import RequestError
from deepmnn.quant.recipe import Recipe, recipe_of
from deepmnn.source.json_file import read_small

SUFFIXES = (".yaml", ".yml")
MAX_BYTES = 4_000_000
"""Of a file: a rule for each matrix of the largest models takes a tenth."""

_MAX_DEPTH = 8


def read_recipe(quant: str) -> Recipe:
    """A recipe by its name, or from a .yaml file. Raises RequestError."""
    if not quant.endswith(SUFFIXES):
        return recipe_of(quant)
    data = read_small(Path(quant), RequestError)
    if len(data) > MAX_BYTES:
        raise RequestError(f"{quant} has {len(data)} bytes", f"at most {MAX_BYTES}")
    try:
        fields = yaml.load(data.decode("utf-8-sig"), _Loader)
    except (yaml.YAMLError, ValueError) as fault:
        reason = " ".join(str(fault).split())
        raise RequestError(f"{quant} is not valid YAML: {reason}", "a recipe") from None
    return Recipe.from_json(fields, quant)


def to_yaml(recipe: Recipe) -> str:
    """What `read_recipe` reads."""
    text: str = yaml.safe_dump(
        recipe.to_json(), sort_keys=False, default_flow_style=None, allow_unicode=True, width=10_000
    )
    return f"# Stores a checkpoint's weights as here when a conversion is given this file.\n{text}"


class _Loader(yaml.BaseLoader):
    """Texts, lists and objects, whatever their tags. Without what a file could do harm with:
    anchors, which let a few bytes stand for any number of values, deep nesting, and keys that are
    there twice.
    """

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """A value of the file."""
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("it has an alias (*name)")
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise yaml.YAMLError("it is nested too deeply")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """An object."""
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        keys = [key.value for key, _ in pairs]
        if len(set(map(str, keys))) < len(keys):
            raise yaml.YAMLError(f"a key is there twice: {', '.join(map(str, keys))[:80]}")
        return super().construct_mapping(node, deep)
