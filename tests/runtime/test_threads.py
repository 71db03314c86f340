"""Work large enough to be cut into many pieces: they must fit together on any number of threads."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from one_op import EXACT, INT8_CACHE, QUANTIZED, VOCAB, add, ceil_rows, one_op
from program_dir import cpu_of, random_weights, stored, write_program
from test_fused_ops import f32, gqa, mla, moe

from deepmnn.backends.reference import ReferenceBackend
from parity import prompts_for, relative_error, run_schedule

WIDTH = 272
LENGTHS, STEPS = [260, 9, 150], [(200, 3, 0), (1, 0, 149), (1, 1, 1), (58, 5, 0)]
BF16_CACHE = 2e-3
"""A sum that differs in its last bit may fall to the other side when a cached row is rounded."""


def several_outputs(b, x):
    w = b.weight("w", (480, WIDTH), "linear")
    return b.concat(list(add(b, "linear", [x], [200, 130, 150], [w])), "y")


def swiglu(b, x):
    w = b.weight("gate_up", (2 * ceil_rows(700), WIDTH), "linear")
    return add(b, "swiglu", [x], [700], [w], intermediate_size=700, limit=0.0)[0]


OPS = {
    "linear": several_outputs,
    "swiglu": swiglu,
    "gqa_attention": gqa(6, 2, 48, 40, norms=True),
    "mla_attention": mla(5, 96, 40, 16, 56),
    "moe": moe(12, 4, 200, shared=True),
}


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", ["f32", "w4"])
@pytest.mark.parametrize("cache_dtype", ["f32", "bf16", "int8"])
def test_many_pieces(op, dtype, cache_dtype):
    graph = one_op(OPS[op], WIDTH, dtype)
    f32(graph, *(name for name in ("router.weight", "q.weight") if name in graph.weights))
    weights = random_weights(graph).__getitem__
    prompts = prompts_for(LENGTHS, VOCAB)
    tolerance = QUANTIZED if dtype == "w4" else EXACT
    if cache_dtype != "f32":
        tolerance = max(tolerance, BF16_CACHE if cache_dtype == "bf16" else INT8_CACHE)
    forms = ["absorbed", "expanded"] if op == "mla_attention" else ["auto"]
    for form in forms:
        oracle = ReferenceBackend(
            graph, stored(graph, weights), "absorbed" if form == "absorbed" else "expanded"
        )
        want = run_schedule(oracle, prompts, STEPS, blocks=160, cache_dtype=cache_dtype)
        runs = [
            run_schedule(
                cpu_of(graph, weights, threads=threads, mla_form=form),
                *(prompts, STEPS),
                blocks=160,
                cache_dtype=cache_dtype,
            )
            for threads in (1, 2, 5)
        ]
        for got, expected in zip(runs[0], want, strict=True):
            assert relative_error(got, expected) < tolerance
        for run in runs[1:]:
            for got, expected in zip(run, runs[0], strict=True):
                np.testing.assert_array_equal(got, expected)


def test_a_forked_child_works_alone(tmp_path):
    """It has the model and its memory, but none of its threads: it must not wait for them."""
    graph = one_op(gqa(6, 2, 48, 40, norms=True), WIDTH)
    write_program(graph, random_weights(graph).__getitem__, tmp_path)
    here = Path(__file__).parent
    child = [sys.executable, str(here / "forking_child.py"), str(tmp_path)]
    paths = os.pathsep.join([str(here), str(here.parent)])
    subprocess.run(child, check=True, timeout=60, env=os.environ | {"PYTHONPATH": paths})
