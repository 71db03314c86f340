"""program.bin: the bytes docs/program.md promises, and the way back."""

import dataclasses
import struct

import pytest

from deepmnn.backends.cpu.lower import format_program, lower, read_program
from deepmnn.backends.cpu.pieces import whole
from deepmnn.backends.cpu.program import DIMS, encode
from deepmnn.errors import ArtifactError, GraphError
from deepmnn.graph.builder import GraphBuilder
from deepmnn.graph.caches import CacheEntry
from deepmnn.graph.draft import optimize_parts
from deepmnn.graph.levels import MAX_LEVEL, optimize
from deepmnn.graph.passes.memory_plan import MemoryPlan, plan_memory
from deepmnn.graph.signatures import SIGNATURES, caches_written
from deepmnn.graph.workload import Workload
from deepmnn.models import build, build_parts
from tiny_models import ALL, CONFIGS

SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


def locate(graph):
    return {name: whole(number % 2, 64 * number, 64) for number, name in enumerate(graph.weights)}


def lowered(model_type, index, level):
    graph = build({"model_type": model_type, **CONFIGS[model_type][index]})
    graph = optimize(graph, level)[0]
    plan = plan_memory(graph, reuse=level == MAX_LEVEL)
    return graph, plan, lower(graph, plan, locate(graph), SHARDS)


@pytest.mark.parametrize(("model_type", "index"), ALL)
@pytest.mark.parametrize("level", [0, MAX_LEVEL])
def test_a_program_says_what_the_graph_says(model_type, index, level):
    graph, plan, data = lowered(model_type, index, level)
    program = read_program(data)
    assert encode(program) == data
    assert (program.name, list(program.shards)) == (graph.name, SHARDS)
    assert program.caches == graph.caches
    assert dict(zip(DIMS, program.arenas, strict=True)) == plan.nbytes
    names = [buffer.name for buffer in program.buffers]
    assert [names[i] for i in program.inputs] == graph.inputs
    assert [names[i] for i in program.outputs] == graph.outputs
    for buffer in program.buffers:
        value = graph.values[buffer.name]
        assert (buffer.dim, *buffer.shape) == value.shape
        assert (buffer.dtype, buffer.offset) == (value.dtype, plan.offsets[buffer.name])
    locations = locate(graph)
    for weight in program.weights:
        original = graph.weights[weight.name]
        shape = original.shape if len(original.shape) == 2 else (1, *original.shape)
        assert (weight.rows, weight.cols) == shape
        assert weight.format == original.format
        assert weight.pieces == locations[weight.name]
    assert len(program.instructions) == len(graph.nodes)
    for instruction, node in zip(program.instructions, graph.nodes, strict=True):
        assert (instruction.op, instruction.name) == (node.op, node.name)
        assert tuple(names[i] for i in instruction.inputs) == node.inputs
        assert tuple(names[i] for i in instruction.outputs) == node.outputs
        weights = tuple(program.weights[i].name for i in instruction.weights)
        assert weights == node.weights
        assert [list(graph.caches)[i] for i in instruction.caches] == [*caches_written(node)]
        caches = {key: node.attrs[key] for key in SIGNATURES[node.op].cache_attrs}
        assert instruction.attrs | caches == node.attrs


def test_a_program_says_how_weights_are_read_and_what_ops_cost():
    graph, _, data = lowered("deepseek_v3", 0, MAX_LEVEL)
    program = read_program(data)
    readings = {}
    for instruction in program.instructions:
        for weight, reading in zip(instruction.weights, instruction.readings, strict=True):
            readings.setdefault(program.weights[weight].name, set()).add(reading)
    assert readings["embed_tokens.weight"] == {"looked_up"}
    assert readings["lm_head.weight"] == {"in_order"}
    assert readings["norm.weight"] == {"whole"}
    assert readings["layers.1.mlp.experts.0.down_proj.weight"] == {"routed"}
    assert sum(found == {"routed"} for found in readings.values()) == 2 * 12
    work = Workload.of(graph)
    routed = sum(layer.top_k * layer.macs for layer in work.experts)
    costs = [instruction.row_macs for instruction in program.instructions]
    assert sum(costs) == work.dense_macs + work.row_macs + routed
    assert sum(i.context_macs for i in program.instructions) == work.context_macs


@pytest.mark.parametrize("level", [0, MAX_LEVEL])
def test_a_draft_part_comes_last(level):
    config = {"model_type": "deepseek_v3", **CONFIGS["deepseek_v3"][0]}
    made, _ = optimize_parts(build_parts(config), level)
    both = [(part, plan_memory(part, reuse=level == MAX_LEVEL)) for part in (made.main, made.draft)]
    locations = {name: whole(0, 64 * n, 64) for n, name in enumerate(made.weights)}
    data = lower(*both[0], locations, SHARDS, both[1])
    program = read_program(data)
    assert encode(program) == data
    assert len(program.instructions) == len(made.main.nodes)
    assert [each.name for each in program.draft.instructions] == [n.name for n in made.draft.nodes]
    names = [buffer.name for buffer in program.buffers]
    assert [names[i] for i in program.draft.inputs] == ["ids", "positions", "hidden"]
    assert [names[i] for i in program.draft.outputs] == ["state", "logits"]
    assert program.caches == made.main.caches | made.draft.caches
    arenas = [tuple(plan.nbytes[dim] for dim in DIMS) for _, plan in both]
    assert program.arenas == tuple(map(max, *arenas))
    used = [{i for each in part.instructions for i in (*each.inputs, *each.outputs)}
            for part in program.parts]  # fmt: skip
    assert not used[0] & used[1]
    arenas = tuple(both[0][1].nbytes[dim] for dim in DIMS)
    alone = dataclasses.replace(program.without_draft(), arenas=arenas)
    assert alone.caches == made.main.caches
    assert {weight.name for weight in alone.weights} == made.main.weights.keys()
    assert encode(alone) == lower(made.main, both[0][1], locations, SHARDS)
    text = format_program(program)
    assert f"{len(made.draft.nodes)} in a draft part" in text
    assert "layers.2.eh_proj" in text.partition("\ndraft part\n")[2]


def text(value):
    return struct.pack("<I", len(value)) + value


def tiny_program():
    """ids → embedding (w4) → select_rows, with one attribute of each type."""
    b = GraphBuilder("g")
    x = b.embedding(b.ids, "e", 5, 32)
    b.output(b.select_rows(x, "s"), "logits")
    b.graph.nodes[0].attrs.update(i=-3, f=0.5, s="é", li=(1, -2), lf=(0.5, 2.0))
    b.graph.weights["e.weight"].format = "w4"
    b.graph.caches["c"] = CacheEntry(3, window=7, exact=True)
    plan = MemoryPlan(
        {"ids": -1, "positions": -1, "e": 64, "logits": -1},
        {"tokens": 192, "context": 0, "rows": 0},
    )
    return b.graph, plan


def test_the_bytes_are_those_of_the_specification():
    graph, plan = tiny_program()
    data = lower(graph, plan, {"e.weight": whole(0, 128, 320)}, ["w"])
    u32 = struct.Struct("<I").pack
    expected = b"DMNPROG\0" + u32(5) + text(b"g")
    expected += u32(1) + text(b"w")
    expected += u32(1) + text(b"e.weight") + b"\6" + struct.pack("<qq", 5, 32)
    expected += u32(1) + struct.pack("<IQQ", 0, 128, 320)
    expected += u32(1) + text(b"c") + struct.pack("<3IB", 3, 1, 7, 1)
    expected += u32(4)
    expected += text(b"ids") + b"\1\0" + u32(0) + struct.pack("<q", -1)
    expected += text(b"positions") + b"\1\0" + u32(0) + struct.pack("<q", -1)
    expected += text(b"e") + b"\0\0" + u32(1) + u32(32) + struct.pack("<q", 64)
    expected += text(b"logits") + b"\0\2" + u32(1) + u32(32) + struct.pack("<q", -1)
    expected += struct.pack("<3q", 192, 0, 0)
    expected += u32(1)
    expected += u32(2) + u32(0) + u32(1)
    expected += u32(1) + u32(3)
    expected += u32(2)
    expected += (
        text(b"embedding")
        + text(b"e")
        + u32(1)
        + u32(0)
        + u32(1)
        + u32(2)
        + u32(1)
        + u32(0)
        + b"\3"
    )
    expected += u32(0) + struct.pack("<2Q", 0, 0)
    expected += u32(5) + text(b"i") + b"\0" + struct.pack("<q", -3)
    expected += text(b"f") + b"\1" + struct.pack("<d", 0.5)
    expected += text(b"s") + b"\2" + text("é".encode())
    expected += text(b"li") + b"\3" + u32(2) + struct.pack("<2q", 1, -2)
    expected += text(b"lf") + b"\4" + u32(2) + struct.pack("<2d", 0.5, 2.0)
    expected += text(b"select_rows") + text(b"s") + u32(1) + u32(2) + u32(1) + u32(3) + u32(0)
    expected += u32(0) + struct.pack("<2Q", 0, 0) + u32(0)
    assert data == expected


def test_missing_places_are_graph_errors():
    graph, plan = tiny_program()
    with pytest.raises(GraphError, match=r"e\.weight.*no shard"):
        lower(graph, plan, {}, ["w"])
    with pytest.raises(GraphError, match=r"e\.weight.*no shard"):
        lower(graph, plan, {"e.weight": whole(1, 0, 64)}, ["w"])
    del plan.offsets["e"]
    with pytest.raises(GraphError, match="'e' has no place"):
        lower(graph, plan, {"e.weight": whole(0, 0, 64)}, ["w"])


def test_truncated_programs_are_refused():
    graph, plan = tiny_program()
    data = lower(graph, plan, {"e.weight": whole(0, 128, 320)}, ["w"])
    for size in range(len(data)):
        with pytest.raises(ArtifactError, match=r"program\.bin"):
            read_program(data[:size])
    with pytest.raises(ArtifactError, match="follow"):
        read_program(data + b"\0")


def test_other_versions_and_wrong_positions_are_refused():
    data = lowered("llama", 0, 0)[2]
    for version in (1, 2, 3, 4, 6):
        with pytest.raises(ArtifactError, match=f"version {version}, this deepmnn reads 5"):
            read_program(data[:8] + struct.pack("<I", version) + data[12:])
    program = read_program(data)
    for change, what in (
        ({"outputs": (len(program.buffers),)}, "buffer"),
        ({"weights": ()}, "weight"),
        ({"caches": {}}, "cache"),
    ):
        with pytest.raises(ArtifactError, match=f"{what} .* does not exist"):
            read_program(encode(dataclasses.replace(program, **change)))


def test_flipped_bytes_are_refused_or_read():
    graph, plan = tiny_program()
    data = lower(graph, plan, {"e.weight": whole(0, 128, 320)}, ["w"])
    refused = 0
    for position in range(len(data)):
        for flip in (1, 0x80, 0xFF):
            damaged = bytearray(data)
            damaged[position] ^= flip
            try:
                read_program(bytes(damaged))
            except ArtifactError:
                refused += 1
    assert refused > len(data)


def test_a_program_can_be_read_by_people():
    _, _, data = lowered("deepseek_v3", 0, MAX_LEVEL)
    shown = format_program(read_program(data))
    assert "program deepseek_v3" in shown
    assert "mla_attention(layers.0.self_attn.q_b_proj" in shown
    assert "layers.1.mlp.experts.0.gate_proj+up_proj.weight f32[64, 36]" in shown
    assert "more" in shown
    assert "cache layers.0.latent: 24 elements per token" in shown
    assert "writes layers.1.latent" in shown
