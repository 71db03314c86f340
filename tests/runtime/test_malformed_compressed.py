"""Programs whose ops of DeepSeek-V4 make no sense: refused, or kept within their buffers."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from one_op import VOCAB, add, one_op
from program_dir import random_weights, write_program
from test_compressed_attention import attention

from deepmnn.backends.cpu.backend import CpuBackend
from deepmnn.backends.cpu.program import Program, encode, read_program
from deepmnn.errors import ArtifactError, DeepmnnError
from deepmnn.graph.builder import GraphBuilder
from deepmnn.graph.weights import Tensor
from parity import prompts_for, run_schedule

WIDTH = 24


def plain(b: GraphBuilder, x: str) -> str:
    """A chain of the plain ops, the attention over chosen entries last."""
    x = b.gain(
        b.sqrt_softplus(b.add_constant(x, "add", 0.1), "root"), "gain", Tensor("g", (WIDTH,))
    )
    x = b.clamp(b.grouped_linear(x, "groups", 3, 8), "clamp", 2.0, two_sided=True)
    x = b.mix(b.sinkhorn(b.linear(x, "streams", 16), "sinkhorn", 3, 1e-3), x, "mix", 4)
    experts = b.lookup(b.ids, "table", VOCAB, 3, 9)
    weights = b.gather(b.linear(x, "scores", 9), experts, "gather")
    kv, gate = (b.cache(b.linear(x, name, 28), f"{name}.rows") for name in ("kv", "gate"))
    entries, _ = b.compress(kv, gate, "bias", 3, True)
    chosen = b.select_keys(
        b.linear(x, "q", 28), b.linear(weights, "w", 2), entries, "rows", 2, 4, 1.0, 3
    )
    keys = [b.cache(b.linear(x, "k", 14), "window"), entries, chosen]
    return b.window_attention(b.linear(x, "query", 28), keys, "y", "sinks", 2, 0.3, 4, 3)


def fused(b: GraphBuilder, x: str) -> str:
    """The attention over chosen entries between hyper-connections, and hashed experts."""
    weights = [b.weight("fn", (24, 4 * 6), "router")]
    weights += [b.weight(f"hyper.{i}", (size,), "vector") for i, size in enumerate((3, 24, 6))]
    attrs = {"streams": 4, "iterations": 5, "eps": 1e-3, "norm_eps": 0.01}
    y, post, comb = add(b, "hyper_in", [x], [6, 4, 16], weights, **attrs)
    y = b.linear(attention("compressed_sparse")(b, y), "out", 6)
    y = add(b, "hyper_out", [y, post, comb, x], [WIDTH], [], streams=4)[0]
    table = b.weight("table", (VOCAB * 3,), "vector")
    hashed = {"scoring": "sqrtsoftplus", "top_k": 3, "experts": 9, "normalize": 1}
    hashed |= {"eps": 1e-20, "factor": 1.5}
    inputs = [b.linear(y, "router", 9), b.ids]
    chosen, by = add(b, "hash_route", inputs, [3, 3], [table], **hashed)
    b.graph.values[chosen] = dataclasses.replace(b.graph.values[chosen], dtype="i32")
    experts = b.expert_linear(y, chosen, "experts", "up", 9, 8, False)
    return b.combine(experts, by, "combine")


BUILDS: dict[str, Any] = {
    "plain": plain,
    "fused": fused,
    "heavily_compressed": attention("heavily_compressed"),
    "sliding": attention("sliding"),
}


@pytest.fixture(scope="module", params=BUILDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(BUILDS[request.param], tmp_path_factory.mktemp("program"))


def written(build: Any, folder: Path) -> Path:
    graph = one_op(build, WIDTH)
    write_program(graph, random_weights(graph).__getitem__, folder)
    return folder


def with_attrs(program: Program, op: str, attrs: dict[str, Any]) -> Program:
    changed = [
        dataclasses.replace(each, attrs=dict(each.attrs) | attrs) if each.op == op else each
        for each in program.instructions
    ]
    assert changed != list(program.instructions) or not attrs
    return dataclasses.replace(program, instructions=tuple(changed))


def load(folder: Path, data: bytes) -> CpuBackend:
    path = folder / "program.bin"
    before = path.read_bytes()
    path.write_bytes(data)
    try:
        return CpuBackend(folder, 1)
    finally:
        path.write_bytes(before)


def logits(backend: CpuBackend) -> Any:
    """Of a prompt in two steps, whose windows are complete."""
    (found,) = run_schedule(backend, prompts_for([11], VOCAB), [(7,), (4,)])
    assert found.shape == (11, VOCAB)
    return found


SPARSE = [
    {"heads": 0},
    {"heads": 4},
    {"heads": 2**62},
    {"head_dim": 20},
    {"head_dim": 1},
    {"qk_rope_head_dim": 0},
    {"qk_rope_head_dim": 14},  # wider than a head of the indexer
    {"qk_rope_head_dim": 2**62},
    {"window": 0},
    {"window": 5},  # not what its cache keeps
    {"window": 2**62},
    {"ratio": 0},
    {"ratio": 4},
    {"ratio": 2**62},
    {"top_k": 0},
    {"top_k": -1},
    {"top_k": 2**28 + 1},
    {"top_k": 2**62},
    {"index_heads": 0},
    {"index_heads": 6},
    {"index_dim": 10},
    {"index_dim": 2**62},
    {"index_scale": float("nan")},
    {"scale": float("nan")},
    {"eps": float("inf")},
    {"inv_freq": (1.0, 0.5)},
]
WRONG: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "plain": [
        ("mix", {"rows": 0}),
        ("mix", {"rows": 5}),
        ("mix", {"transposed": 2}),
        ("sinkhorn", {"size": 0}),
        ("sinkhorn", {"size": 3}),
        ("sinkhorn", {"iterations": 0}),
        ("sinkhorn", {"iterations": 2**30}),
        ("lookup", {"top_k": 2}),
        ("lookup", {"top_k": 0}),
        ("lookup", {"experts": 0}),
        ("grouped_linear", {"groups": 0}),
        ("grouped_linear", {"groups": 2}),
        ("grouped_linear", {"groups": 5}),
        ("compress", {"ratio": 0}),
        ("compress", {"ratio": 4}),
        ("compress", {"overlapping": 0}),
        ("compress", {"overlapping": 2}),
        ("window_attention", {"heads": 3}),
        ("window_attention", {"head_dim": 13}),
        ("window_attention", {"window": 0}),
        ("window_attention", {"ratio": 0}),
        ("clamp", {"limit": float("nan")}),
        ("clamp", {"two_sided": 2}),
        ("add_constant", {"constant": float("nan")}),
    ],
    "fused": [("compressed_sparse_attention", attrs) for attrs in SPARSE]
    + [
        ("hyper_in", {"streams": 0}),
        ("hyper_in", {"streams": 3}),
        ("hyper_in", {"streams": 2**40}),
        ("hyper_in", {"iterations": 2**30}),
        ("hyper_out", {"streams": 2}),
        ("hash_route", {"top_k": 2}),
        ("hash_route", {"top_k": 10}),
        ("hash_route", {"experts": 8}),
        ("hash_route", {"normalize": 2}),
        ("hash_route", {"scoring": "max"}),
    ],
}
CASES = [
    pytest.param(build, op, attrs, id=f"{op}: {attrs}")
    for build, cases in WRONG.items()
    for op, attrs in cases
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: written(BUILDS[name], tmp_path_factory.mktemp(name)) for name in WRONG}


@pytest.mark.parametrize(("build", "op", "attrs"), CASES)
def test_what_makes_no_sense(
    folders: dict[str, Path], build: str, op: str, attrs: dict[str, Any]
) -> None:
    program = read_program((folders[build] / "program.bin").read_bytes())
    with pytest.raises(ArtifactError):
        load(folders[build], encode(with_attrs(program, op, attrs)))


NUMBERS = (-1, 0, 1, 2, 3, 5, 64, 1 << 14, 1 << 20, 1 << 28, (1 << 31) - 1, 1 << 40, 1 << 62)


def changes(program: Program) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every number among the attributes of every op is another one."""
    for op, attrs in {each.op: each.attrs for each in program.instructions}.items():
        for key, value in attrs.items():
            if isinstance(value, int):
                yield from ((op, {key: number}) for number in NUMBERS if number != value)


def test_any_number(folder: Path) -> None:
    """Refused, or a step of another model; never a crash."""
    program = read_program((folder / "program.bin").read_bytes())
    assert np.isfinite(logits(load(folder, encode(program)))).all()
    refused = ran = 0
    for op, attrs in changes(program):
        try:
            logits(load(folder, encode(with_attrs(program, op, attrs))))
            ran += 1
        except DeepmnnError:
            refused += 1
    assert refused > ran > 0


def test_more_keys_than_anybody_has(folders: dict[str, Path]) -> None:
    """All that there are, in room for these."""
    program = read_program((folders["fused"] / "program.bin").read_bytes())
    found, room = [], []
    for top_k in (11, 2**28):
        changed = with_attrs(program, "compressed_sparse_attention", {"top_k": top_k})
        backend = load(folders["fused"], encode(changed))
        found.append(logits(backend))
        room.append(backend.model.memory()["working memory"])
    np.testing.assert_array_equal(found[0], found[1])
    assert room[0] == room[1]


def test_windows_that_no_prompt_completes(tmp_path: Path) -> None:
    """Entries of a million tokens each take no room before there is one."""

    def build(b: GraphBuilder, x: str) -> str:
        kv, gate = (b.cache(b.linear(x, name, 2), f"{name}.rows") for name in ("kv", "gate"))
        entries, _ = b.compress(kv, gate, "bias", 1 << 20, True)
        keys = [b.cache(b.linear(x, "k", 1), "window"), entries]
        return b.window_attention(b.linear(x, "query", 2), keys, "y", "sinks", 2, 0.3, 4, 1 << 20)

    backend = load(written(build, tmp_path), (tmp_path / "program.bin").read_bytes())
    assert np.isfinite(logits(backend)).all()
    assert backend.model.memory()["working memory"][2] < 1 << 20
