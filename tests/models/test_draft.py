"""Draft parts in numpy against transformers' modules, at every level and in every schedule."""

from pathlib import Path

import numpy as np
import pytest

from deepmnn.backends.reference import ReferenceBackend
from deepmnn.errors import RequestError
from deepmnn.graph.draft import Parts, optimize_parts, state_of
from deepmnn.graph.ir import ROWS, TOKENS
from deepmnn.models import build_parts
from deepmnn.source.random import RandomSource
from draft_oracle import DRAFTS, check_drafts, drafting_checkpoint
from parity import Runner
from tiny_models import CONFIGS, TinyModel

CONFIG = {"model_type": "deepseek_v3", **CONFIGS["deepseek_v3"][0]}


def numpy_backend(parts: Parts, tiny: TinyModel, form: str = "expanded") -> ReferenceBackend:
    return ReferenceBackend(
        parts.main, lambda name: parts.weights[name].expr.read(tiny), form, parts.draft
    )


@pytest.mark.parametrize("index", DRAFTS)
@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_drafts_are_the_oracles(tmp_path: Path, index: int, level: int) -> None:
    tiny = drafting_checkpoint(index, tmp_path)
    schedules = ("one by one", "ragged") if level else ("prefill", "ragged")
    check_drafts(tiny, numpy_backend, level, 1e-5, schedules)


def test_absorbed_attention_drafts_the_same(tmp_path: Path) -> None:
    def make(parts: Parts, tiny: TinyModel) -> ReferenceBackend:
        return numpy_backend(parts, tiny, "absorbed")

    check_drafts(drafting_checkpoint(0, tmp_path), make, 3, 1e-5, ["chunks"])


@pytest.mark.parametrize("level", [2, 3])
def test_only_rows_that_are_wanted_go_through_the_experts(level: int) -> None:
    made, _ = optimize_parts(build_parts(CONFIG), level)
    assert made.draft is not None
    experts = [node for node in made.draft.nodes if node.op == "moe"]
    assert [made.draft.values[node.outputs[0]].rows for node in experts] == [ROWS]
    assert made.draft.values[state_of(made.draft)].rows == TOKENS


def test_further_layers_are_not_run() -> None:
    """The first one makes all guesses, as vLLM has it for models with one."""
    one = build_parts(CONFIG)
    assert build_parts(CONFIG | {"num_nextn_predict_layers": 3}) == one


def test_a_model_without_a_draft_part_refuses_to_draft() -> None:
    parts = build_parts(CONFIG | {"num_nextn_predict_layers": 0})
    assert (parts.draft, parts.main.outputs) == (None, ["logits"])
    backend = ReferenceBackend(parts.main, RandomSource(parts.shapes).read)
    assert backend.draft_state is None
    with pytest.raises(RequestError, match="draft part"):
        Runner(backend).draft({0: [1]}, {0: np.zeros((1, 36), np.float32)})


@pytest.mark.parametrize("shape", [(1, 36), (2, 35), (3, 36)])
def test_a_state_of_another_shape_is_refused(shape: tuple[int, int]) -> None:
    parts = build_parts(CONFIG)
    backend = ReferenceBackend(parts.main, RandomSource(parts.shapes).read, draft=parts.draft)
    with pytest.raises(RequestError, match="state"):
        Runner(backend).draft({0: [1, 2]}, {0: np.zeros(shape, np.float32)})
