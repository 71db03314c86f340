"""A converted model as the checkpoint that it was made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepmnn import formats, models
from deepmnn.artifact.manifest import CONFIG
from deepmnn.artifact.reader import Artifact
from deepmnn.errors import ArtifactError, TensorNotFoundError
from deepmnn.formats import F32, U8, KeptCodes
from deepmnn.graph.draft import Parts, optimize_parts
from deepmnn.graph.ir import Graph, Node, Weight
from deepmnn.graph.levels import OnPass
from deepmnn.graph.origins import row_origins
from deepmnn.graph.rewrite import joined_names
from deepmnn.graph.tensors import tensors
from deepmnn.graph.weights import Expr, Flat
from deepmnn.quant.layout import unpack_codes
from deepmnn.quant.recipe import Recipe, apply
from deepmnn.quant.store import stored_values
from deepmnn.source.side_files import read_side_files
from deepmnn.source.source import Source

Arrays = dict[str, NDArray[Any]]
"""Arrays with the rows of a weight, or of a tensor, by what they hold."""

_EMBEDDING, _HEAD = "embed_tokens.weight", "lm_head.weight"
_FROM_CHECKPOINT = "Start from the checkpoint that it was converted from."


class RestoredSource(Source):
    """Tensors under Hugging Face's names and in their shapes, with the numbers that the converted
    model computes with: rounded, but no longer rotated, fused or split. Kept codes come out as they
    went in.

    graph.json does not say what weights are made of. The passes do: they run once more on the graph
    of config.json, whose weights are expressions, and give node for node the stored graph.

    Needs memory for one stored weight and one tensor.

    Attributes:
        naive: the main part's graph of config.json, level 0.
        origins: every stored weight, with what it is made of.

    Args:
        on_pass: as for `optimize`.

    Raises ArtifactError when the passes of this version make another graph.
    """

    def __init__(self, artifact: Artifact, on_pass: OnPass | None = None) -> None:
        self.paths = (artifact.path,)
        self.config = _untied(artifact)
        self._artifact = artifact
        naive = models.build_parts(self.config)
        if artifact.parts().draft is None:  # the checkpoint came without these layers
            naive = Parts(models.build(self.config))
        self._shapes = naive.shapes
        self._parts: dict[str, list[tuple[Weight, Expr]]] = {name: [] for name in self._shapes}
        self.naive = naive.main
        self.origins = self._origins(naive, on_pass)
        for weight, expr in self.origins:
            for name in {tensor.name for tensor in tensors(expr)}:
                self._parts[name].append((weight, expr))
        self._last: tuple[str, str, Arrays] = ("", "", {})

    def names(self) -> list[str]:
        """Every tensor that the model reads."""
        return list(self._shapes)

    def __contains__(self, name: object) -> bool:
        return name in self._shapes

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape. Raises TensorNotFoundError."""
        if name not in self._shapes:
            raise TensorNotFoundError(f"{self._artifact.path} holds no tensor {name!r:.200}")
        return self._shapes[name]

    def read(self, name: str) -> F32:
        """A tensor's numbers. Raises TensorNotFoundError or ArtifactError."""
        return self._gathered(name, self._values)["values"]

    def codes(self, name: str) -> KeptCodes | None:
        """A tensor's codes, where it is stored in a kept format. Raises as `read`."""
        if (format := self.kept_format(name)) is None:
            return None
        return KeptCodes.of(format, **self._gathered(name, self._codes))

    def kept_format(self, name: str) -> str | None:
        """The kept format of all rows of a tensor. Raises TensorNotFoundError."""
        found = self.stored_formats(name)
        format = found.pop() if len(found) == 1 else formats.VECTOR.name
        return format if formats.named(format).is_kept else None

    def stored_formats(self, name: str) -> set[str]:
        """The formats in which the rows of a tensor are stored. Raises TensorNotFoundError."""
        self.shape(name)
        return {weight.format for weight, _ in self._parts[name]}

    def _gathered(self, name: str, arrays_of: Callable[[Weight], Arrays]) -> Arrays:
        """The rows of a tensor out of the arrays of every weight that has some of them."""
        count = self.shape(name)[0]
        whole: Arrays = {}
        missing = np.ones(count, bool)
        for weight, expr in self._parts[name]:
            arrays = arrays_of(weight)
            if isinstance(expr, Flat):  # numbers of a table, one after another
                expr = expr.x
                arrays = {field: stored.reshape(expr.shape) for field, stored in arrays.items()}
            rows, places = row_origins(expr)[name]
            for field, stored in arrays.items():
                if field not in whole:
                    whole[field] = np.empty((count, *stored.shape[1:]), stored.dtype)
                whole[field][places] = stored[rows]
            missing[places] = False
        if missing.any():
            raise ArtifactError(
                f"{self._artifact.path} holds {count - missing.sum()} of {count} rows of "
                f"{name!r:.200}",
                "all of them",
                _FROM_CHECKPOINT,
            )
        return whole

    def sample(self, name: str) -> bytes:
        """The first numbers. Raises as `read`."""
        return self.read(name).reshape(-1)[:16].tobytes()

    def nbytes(self) -> int:
        """Bytes of all stored weights."""
        return self._artifact.weights_nbytes

    def side_files(self) -> dict[str, bytes]:
        """Those that the manifest lists."""
        path = self._artifact.path
        found = read_side_files(path, path / CONFIG, ArtifactError)
        return {name: data for name, data in found.items() if name in self._artifact.text_files}

    def _values(self, weight: Weight) -> Arrays:
        return self._remembered(
            weight, "values", lambda packed: {"values": stored_values(weight, packed)}
        )

    def _codes(self, weight: Weight) -> Arrays:
        def arrays(packed: U8) -> Arrays:
            rows, cols = weight.matrix_shape
            codes = unpack_codes(packed, weight.format, cols)
            return {field: getattr(codes, field)[:rows] for field in codes.fields(rows, cols)}

        return self._remembered(weight, "codes", arrays)

    def _remembered(self, weight: Weight, kind: str, make: Callable[[U8], Arrays]) -> Arrays:
        """What is made of a stored weight; the last matrix's is kept, for those that were fused
        into it.
        """
        if self._last[:2] == (kind, weight.name):
            return self._last[2]
        made = make(self._artifact.tensor(weight.name))
        if formats.named(weight.format).is_matrix:
            self._last = kind, weight.name, made
        return made

    def _origins(self, naive: Parts, on_pass: OnPass | None) -> list[tuple[Weight, Expr]]:
        """Every stored weight, with what it is made of."""
        stored, manifest = self._artifact.parts(), self._artifact.manifest
        recipe = Recipe.from_json(manifest["recipe"], "recipe", ArtifactError)
        named = {part: w.format for w in stored.weights.values() for part in joined_names(w.name)}

        def choose_formats(graph: Graph) -> None:
            """Those of the recipe, or else of what was kept: the same ones are fused again."""
            apply(graph, recipe)
            for weight in graph.weights.values():
                weight.format = named.get(weight.name, weight.format)

        level = manifest["optimize_level"]
        made, _ = optimize_parts(naive, level, choose_formats=choose_formats, on_pass=on_pass)
        pairs = self._pairs(made.main, stored.main)
        if made.draft is not None and stored.draft is not None:
            pairs += self._pairs(made.draft, stored.draft)
        found: dict[str, tuple[Weight, Expr]] = {}
        for ours_name, name in pairs:
            weight, expr = stored.weights[name], made.weights[ours_name].expr
            if weight.shape != expr.shape:
                raise self._differs(f"{name!r:.200} {list(weight.shape)}", f"{list(expr.shape)}")
            found[ours_name] = weight, expr
        return list(found.values())

    def _pairs(self, made: Graph, stored: Graph) -> list[tuple[str, str]]:
        """The names of a part's weights in the graph that is made here, and in the stored one.

        Weights of equal content are stored once, under the name of the first.
        """
        pairs: list[tuple[str, str]] = []
        if len(made.nodes) != len(stored.nodes):
            raise self._differs(f"{len(stored.nodes)} nodes", f"{len(made.nodes)}")
        for ours, theirs in zip(made.nodes, stored.nodes, strict=True):
            if _facts(ours) != _facts(theirs):
                raise self._differs(f"the node {_facts(theirs)}", f"{_facts(ours)}")
            pairs += zip(ours.weights, theirs.weights, strict=True)
        return pairs

    def _differs(self, found: str, expected: str) -> ArtifactError:
        return ArtifactError(
            f"{self._artifact.path} has {found}",
            f"{expected}, as this version makes of its config.json",
            _FROM_CHECKPOINT,
        )


def _facts(node: Node) -> tuple[str, str, int]:
    return node.op, node.name, len(node.weights)


def _untied(artifact: Artifact) -> dict[str, Any]:
    """config.json's fields, without tie_word_embeddings where the head is another matrix."""
    weights = artifact.graph().weights
    if artifact.config.get("tie_word_embeddings") is not True or not {_EMBEDDING, _HEAD} <= {
        *weights
    }:
        return artifact.config
    same_format = weights[_EMBEDDING].format == weights[_HEAD].format
    if same_format and np.array_equal(artifact.tensor(_EMBEDDING), artifact.tensor(_HEAD)):
        return artifact.config
    return artifact.config | {"tie_word_embeddings": False}
