"""The experts that a router chose, given to the caller, of a model whose weights are streamed."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from one_op import VOCAB, one_op
from program_dir import random_weights, write_program

from deepmnn import _core
from deepmnn.backends.base import Batch
from deepmnn.backends.cpu.backend import CpuBackend
from deepmnn.backends.cpu.program import Program, encode, read_program
from deepmnn.graph.builder import GraphBuilder

LAYERS, EXPERTS, TOP_K, WIDTH = 3, 64, 8, 96


def experts(b: GraphBuilder, x: str) -> str:
    for layer in range(LAYERS):
        scores = b.softmax(b.linear(x, f"router.{layer}", EXPERTS), f"scores.{layer}")
        chosen = b.top_k(scores, f"chosen.{layer}", TOP_K)
        y = b.expert_linear(x, chosen, f"experts.{layer}", f"up.{layer}", EXPERTS, WIDTH, False)
        x = b.combine(y, b.gather(scores, chosen, f"weights.{layer}"), f"combine.{layer}")
    return x


def showing(program: Program, layers: list[int]) -> Program:
    """What these layers' routers choose goes to the caller, behind the logits."""
    routers = [op for op in program.instructions if op.op == "top_k"]
    ids = [routers[layer].outputs[0] for layer in layers]
    buffers = list(program.buffers)
    for layer, at in zip(layers, ids, strict=True):
        buffers[at] = dataclasses.replace(buffers[at], offset=-1, name=f"layer {layer}")
    return dataclasses.replace(program, buffers=tuple(buffers), outputs=(*program.outputs, *ids))


@pytest.mark.parametrize("tokens", [1, 3, 40])
@pytest.mark.parametrize("layers", [[0], [1], [2], [2, 0, 1]])
def test_they_are_known_as_early_as_others(tmp_path: Path, layers: list[int], tokens: int) -> None:
    """They were taken from the first output, and behind its end: others were counted, or none."""
    graph = one_op(experts, WIDTH)
    write_program(graph, random_weights(graph).__getitem__, tmp_path)
    data = (tmp_path / "program.bin").read_bytes()
    plan = _core.plan_weights(data)
    memory = plan.least_nbytes + (plan.total_nbytes - plan.least_nbytes) // 4
    found = []
    for shown in ([], layers):
        (tmp_path / "program.bin").write_bytes(encode(showing(read_program(data), shown)))
        backend = CpuBackend(tmp_path, threads=1, memory=memory)
        outputs = backend.run(backend.new_cache(1, tokens), batch_of(tokens))
        streaming = backend.model.streaming
        found.append((outputs, streaming["expert_hits"] + streaming["expert_misses"]))
    (plain, wanted), (outputs, chosen) = found
    np.testing.assert_array_equal(outputs["logits"], plain["logits"])
    assert chosen == wanted > 0
    for layer in layers:
        rows = np.sort(outputs[f"layer {layer}"], axis=1)
        assert rows.shape == (tokens, TOP_K)
        assert (np.diff(rows, axis=1) > 0).all()
        assert 0 <= rows.min() <= rows.max() < EXPERTS


def batch_of(tokens: int) -> Batch:
    numbers = np.arange(tokens, dtype=np.int32)
    return Batch(
        ids=numbers % VOCAB,
        positions=numbers,
        sequence_starts=np.array([0, tokens], np.int32),
        context_lengths=np.array([tokens], np.int32),
        block_tables=np.zeros((1, 1), np.int32),
        logit_rows=numbers[-1:],
    )
