"""Programs whose ops of sparse attention make no sense: refused, or kept within their buffers."""

import dataclasses

import numpy as np
import pytest
from one_op import VOCAB, one_op
from program_dir import cpu_of, random_weights, write_program
from test_fused_ops import sparse_mla

from deepmnn.backends.cpu.backend import CpuBackend
from deepmnn.backends.cpu.program import encode, read_program
from deepmnn.backends.reference import ReferenceBackend
from deepmnn.errors import ArtifactError
from parity import prompts_for, relative_error, run_schedule


def plain(b, x):
    keys = b.cache(b.linear(x, "index_k", 6), "index")
    queries, weights = b.linear(x, "index_q", 12), b.linear(x, "index_w", 2)
    rows = b.select_keys(queries, weights, keys, "rows", 2, 3, 1.0)
    k = b.cache(b.linear(x, "k", 10), "keys")
    return b.sparse_attention(b.linear(x, "q", 10), k, k, rows, "y", 2, 2, 0.4)


def load(folder, build, op, **attrs):
    """The program of one op with other attributes."""
    graph = one_op(build, 20)
    write_program(graph, random_weights(graph).__getitem__, folder)
    program = read_program((folder / "program.bin").read_bytes())
    changed = [
        dataclasses.replace(each, attrs=dict(each.attrs) | attrs) if each.op == op else each
        for each in program.instructions
    ]
    assert changed != list(program.instructions) or not attrs
    data = encode(dataclasses.replace(program, instructions=tuple(changed)))
    (folder / "program.bin").write_bytes(data)
    return CpuBackend(folder, 1)


FUSED = [
    {"index_n_heads": 4},
    {"index_n_heads": -1},
    {"index_head_dim": 2},  # fewer than are rotated
    {"index_head_dim": 2**62},
    {"index_topk": 0},
    {"index_topk": 2**62},
    {"index_scale": float("nan")},
    {"index_interleaved": 2},
]


@pytest.mark.parametrize("attrs", FUSED)
def test_the_fused_op(tmp_path, attrs):
    with pytest.raises(ArtifactError):
        load(tmp_path, sparse_mla(3, 7, 5, 4, 6, 5, 9, 3), "sparse_mla_attention", **attrs)


PLAIN = [{"heads": 3}, {"head_dim": 5}, {"top_k": 4}, {"top_k": -3}, {"ratio": 0}, {"ratio": 2**62}]


@pytest.mark.parametrize("attrs", PLAIN)
def test_the_choice(tmp_path, attrs):
    with pytest.raises(ArtifactError):
        load(tmp_path, plain, "select_keys", **attrs)


@pytest.mark.parametrize("attrs", [{"heads": 3}, {"kv_heads": 0}, {"head_dim": 4}])
def test_attention(tmp_path, attrs):
    with pytest.raises(ArtifactError):
        load(tmp_path, plain, "sparse_attention", **attrs)


def test_what_is_no_number_is_chosen_last():
    """A key whose scores are no numbers, as the reference has it, not as if they were zero."""

    def build(b, x):
        keys = b.cache(b.linear(x, "index_k", 6), "index")
        queries, weights = b.linear(x, "index_q", 12), b.linear(x, "index_w", 2)
        rows = b.select_keys(queries, weights, keys, "rows", 2, 5, 1.0)
        k = b.cache(b.linear(x, "k", 10), "keys")
        return b.sparse_attention(b.linear(x, "q", 10), k, k, rows, "y", 2, 2, 0.4)

    graph = one_op(build, 20)
    weights = dict(random_weights(graph))
    for name in weights:  # token 7 alone uses column 0, of the indexer's keys alone
        if name.endswith("weight") and name != "head.weight":
            weights[name][:, 0] = 0
    weights["embed.weight"][7, 0] = weights["index_k.weight"][:, 0] = 1e30
    prompt = [[8 if i == 7 else i for i in range(40)]]
    prompt[0][3] = 7
    oracle = ReferenceBackend(graph, weights.__getitem__, "expanded")
    with np.errstate(all="ignore"):
        (want,) = run_schedule(oracle, prompt, [(40,)])
    (found,) = run_schedule(cpu_of(graph, weights.__getitem__, threads=1), prompt, [(40,)])
    assert relative_error(found, want) < 1e-4


def test_rows_from_anywhere_end_at_the_first_that_is_none(tmp_path):
    """Indices of a router instead of an indexer's rows."""

    def build(b, x):
        rows = b.top_k(b.linear(x, "scores", 40), "rows", 5)
        k = b.cache(b.linear(x, "k", 10), "keys")
        return b.sparse_attention(b.linear(x, "q", 10), k, k, rows, "y", 2, 2, 0.4)

    backend = load(tmp_path, build, "sparse_attention")
    (found,) = run_schedule(backend, prompts_for([23], VOCAB), [(5,), (18,)])
    assert np.isfinite(found).all()
