"""program.bin is not trusted: whatever is in it, loading raises ArtifactError or the model runs."""

import dataclasses
import random
import struct

import numpy as np
import pytest
from one_op import one_op
from program_dir import SHARD, random_weights, write_program
from test_fused_ops import mla

from deepmnn.backends.base import Batch
from deepmnn.backends.cpu import program as program_module
from deepmnn.backends.cpu.backend import CpuBackend
from deepmnn.backends.cpu.lower import read_program
from deepmnn.backends.cpu.pieces import PAGE, ZEROS, Piece
from deepmnn.backends.cpu.program import MAX_PIECES, encode
from deepmnn.errors import ArtifactError, DeepmnnError, RequestError
from fuzz.mutations import rewrite


def everything(b, x):
    """A chain of ops with attributes, lists, indices, experts and a cache."""
    y = mla(2, 5, 3, 2, 4)(b, x)
    scores = b.softmax(b.linear(y, "router", 4), "scores")
    limited = b.group_limit(scores, "limited", 2, 1, "max")
    indices = b.top_k(limited, "indices", 2)
    y = b.expert_linear(y, indices, "experts", "up", 4, 6, False)
    y = b.combine(y, b.gather(scores, indices, "weights"), "combine")
    return b.concat(list(b.split(b.rms_norm(y, "norm", 0.1, 2), "split", (1, 2), 2)), "y", 2)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    folder = tmp_path_factory.mktemp("program")
    graph = one_op(everything, 12)
    write_program(graph, random_weights(graph).__getitem__, folder)
    return folder


@pytest.fixture(scope="module")
def data(directory):
    return (directory / "program.bin").read_bytes()


@pytest.fixture
def load(directory, tmp_path):
    (tmp_path / SHARD).symlink_to(directory / SHARD)

    def load_bytes(changed):
        rewrite(tmp_path / "program.bin", changed)
        return CpuBackend(tmp_path, threads=1)

    return load_bytes


def run(backend, first_id=0):
    """Two steps; whatever they compute."""
    cache = backend.new_cache(3, 4)
    for start, stop in [(0, 3), (3, 5)]:
        batch = Batch(
            ids=np.full(stop - start, first_id, np.int32),
            positions=np.arange(start, stop, dtype=np.int32),
            sequence_starts=np.array([0, stop - start], np.int32),
            context_lengths=np.array([stop], np.int32),
            block_tables=np.array([[2, 0]], np.int32),
            logit_rows=np.array([0], np.int32),
        )
        if start == 0:
            assert backend.step(cache, batch).shape == (1, backend.vocab_size)
        else:
            outputs = backend.run(cache, batch)
            assert {name: (1, width) for name, width in backend.model.outputs.items()} == {
                name: values.shape for name, values in outputs.items()
            }


def test_the_program_is_fine_as_it_is(load, data):
    run(load(data))


def test_truncated_at_every_byte(load, data):
    for length in range(len(data)):
        with pytest.raises(ArtifactError):
            load(data[:length])


def test_bytes_after_the_end(load, data):
    with pytest.raises(ArtifactError):
        load(data + b"\0")


@pytest.mark.parametrize("value", [0x00, 0x01, 0xFF])
def test_every_byte_replaced(load, data, value):
    """Most changes are refused; some (a scale, a name) make another model, which must run."""
    refused, places = 0, [at for at, byte in enumerate(data) if byte != value]
    for at in places:
        changed = bytearray(data)
        changed[at] = value
        try:
            run(load(bytes(changed)))
        except DeepmnnError:
            refused += 1
    assert refused > len(places) // 2


def test_random_words(load, data):
    rng = random.Random(1)
    for _ in range(2000):
        changed = bytearray(data)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(8, len(data) - 8)
            word = rng.choice([0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1])
            size = rng.choice([4, 8])
            changed[at : at + size] = struct.pack("<Q", word)[:size]
        try:
            run(load(bytes(changed)))
        except DeepmnnError:
            continue


def edit(program, table, index, **changes):
    items = list(getattr(program, table))
    items[index] = dataclasses.replace(items[index], **changes)
    return dataclasses.replace(program, **{table: tuple(items)})


def edit_piece(program, **changes):
    """Of the first weight, which has one."""
    (piece,) = program.weights[0].pieces
    return edit(program, "weights", 0, pieces=(dataclasses.replace(piece, **changes),))


def cut(program, at, *between):
    """The first weight in two pieces, and others between them."""
    (piece,) = program.weights[0].pieces
    first = dataclasses.replace(piece, nbytes=at)
    last = Piece(piece.shard, piece.offset + at, piece.nbytes - at)
    return edit(program, "weights", 0, pieces=(first, *between, last))


def many_pieces(program):
    page = Piece(ZEROS, 0, PAGE), Piece(0, 0, PAGE)
    return edit(program, "weights", 0, pieces=page * (MAX_PIECES // 2) + page[:1])


def find(program, op):
    return next(i for i, instruction in enumerate(program.instructions) if instruction.op == op)


def edit_op(program, at, **changes):
    return edit(program, "instructions", find(program, at), **changes)


def attrs(program, op, **changes):
    return edit_op(program, op, attrs=program.instructions[find(program, op)].attrs | changes)


def without(program, op, key):
    kept = dict(program.instructions[find(program, op)].attrs)
    del kept[key]
    return edit_op(program, op, attrs=kept)


def at(program, instruction, which, index, offset_of):
    """Puts an output or input of an instruction where another buffer is, `offset_of` its place."""
    step = program.instructions[instruction]
    return edit(program, "buffers", getattr(step, which)[index], offset=offset_of(step))


def share_outputs(program):
    op = find(program, "split")
    first = program.instructions[op].outputs[0]
    return at(program, op, "outputs", 1, lambda _: program.buffers[first].offset)


def share_input(program):
    op = find(program, "softmax")
    return at(program, op, "outputs", 0, lambda step: program.buffers[step.inputs[0]].offset)


def share_too_early(program):
    """The router's scores are read again after the limited ones were put in their place."""
    op = find(program, "group_limit")
    tokens, context, rows = program.arenas
    scores = program.instructions[op].inputs[0]
    moved = edit(program, "buffers", scores, offset=tokens)
    spare = dataclasses.replace(moved, arenas=(tokens + 64, context, rows))
    return at(spare, find(program, "top_k"), "outputs", 0, lambda _: tokens)


def ids_twice(program):
    """What the embedding reads would be another input's numbers, in another input's range."""
    first, second = program.inputs
    buffers = (*program.buffers, program.buffers[first])
    inputs = (first, second, len(program.buffers))
    return dataclasses.replace(program, buffers=buffers, inputs=inputs)


def second_logits(program):
    """The selected rows go to the caller, too, under the head's name."""
    (wanted,) = program.instructions[find(program, "select_rows")].outputs
    renamed = edit(program, "buffers", wanted, name="logits", offset=-1)
    return dataclasses.replace(renamed, outputs=(*program.outputs, wanted))


def test_a_second_output_is_fine_under_its_own_name(load, data):
    program = second_logits(read_program(data))
    backend = load(encode(edit(program, "buffers", program.outputs[1], name="wanted")))
    assert backend.outputs == ("logits", "wanted")
    run(backend)


BAD = {
    "outputs in the same bytes": share_outputs,
    "an output in its input's bytes": share_input,
    "a buffer overwritten before it is read": share_too_early,
    "two inputs of one name": ids_twice,
    "shard with a path": lambda p: dataclasses.replace(p, shards=("../" + SHARD,)),
    "shard missing": lambda p: dataclasses.replace(p, shards=("nothing.bin",)),
    "weight beyond its file": lambda p: edit_piece(p, offset=1 << 20),
    "weight offset wraps": lambda p: edit_piece(p, offset=2**64 - 64),
    "weight not aligned": lambda p: edit_piece(p, offset=4),
    "weight of another size": lambda p: edit_piece(p, nbytes=64),
    "weight without bytes": lambda p: edit_piece(p, nbytes=0),
    "weight of huge size": lambda p: edit_piece(p, nbytes=2**48 + 64),
    "weight in no shard": lambda p: edit_piece(p, shard=1),
    "weight without pieces": lambda p: edit(p, "weights", 0, pieces=()),
    "zeros of another size": lambda p: edit_piece(p, shard=ZEROS, nbytes=64),
    "zeros at an offset": lambda p: edit_piece(p, shard=ZEROS, offset=64),
    "pieces that are one": lambda p: cut(p, 64),
    "pieces that are no pages": lambda p: cut(p, 64, Piece(ZEROS, 0, 64)),
    "pieces of another size": lambda p: cut(p, 64, Piece(0, 0, PAGE)),
    "pieces that overflow": lambda p: edit(
        p, "weights", 0, pieces=(Piece(ZEROS, 0, 2**48), Piece(0, 0, 2**48)) * 8000
    ),
    "too many pieces": many_pieces,
    "weight of huge shape": lambda p: edit(p, "weights", 0, rows=2**31, cols=2**30),
    "weight without rows": lambda p: edit(p, "weights", 0, rows=0),
    "weight in another format": lambda p: edit(p, "weights", 0, format="w8"),
    "buffer outside its arena": lambda p: edit(p, "buffers", 3, offset=1 << 30),
    "buffer not aligned": lambda p: edit(p, "buffers", 3, offset=4),
    "buffer of zero width": lambda p: edit(p, "buffers", 3, shape=(0,)),
    "buffer of huge width": lambda p: edit(p, "buffers", 3, shape=(2**31, 2**31)),
    "buffer of another width": lambda p: edit(p, "buffers", 3, shape=(1,)),
    "arena too small": lambda p: dataclasses.replace(p, arenas=(64, 64, 64)),
    "arena negative": lambda p: dataclasses.replace(p, arenas=(-64, 0, 0)),
    "an output twice": lambda p: dataclasses.replace(p, outputs=p.outputs * 2),
    "two outputs of one name": second_logits,
    "an output of another name": lambda p: edit(p, "buffers", p.outputs[0], name="scores"),
    "an output of integers": lambda p: edit(p, "buffers", p.outputs[0], dtype="i32"),
    "an output of every token": lambda p: edit(p, "buffers", p.outputs[0], dim="tokens"),
    "an input as output": lambda p: dataclasses.replace(p, outputs=p.outputs + p.inputs[:1]),
    "no outputs": lambda p: dataclasses.replace(p, outputs=()),
    "instructions out of order": lambda p: dataclasses.replace(
        p, instructions=p.instructions[::-1]
    ),
    "an instruction twice": lambda p: dataclasses.replace(
        p, instructions=(*p.instructions, p.instructions[-1])
    ),
    "no instructions": lambda p: dataclasses.replace(p, instructions=()),
    "unknown op": lambda p: edit_op(p, "softmax", op="softmin"),
    "op without inputs": lambda p: edit_op(p, "softmax", inputs=()),
    "op without outputs": lambda p: edit_op(p, "linear", outputs=()),
    "op without weights": lambda p: edit_op(p, "linear", weights=(), readings=()),
    "attribute missing": lambda p: without(p, "top_k", "top_k"),
    "more experts than there are": lambda p: attrs(p, "top_k", top_k=5),
    "heads negative": lambda p: attrs(p, "mla_attention", heads=-2),
    "heads that do not divide": lambda p: attrs(p, "rms_norm", heads=4),
    "rank of another size": lambda p: attrs(p, "mla_attention", kv_lora_rank=4),
    "huge sizes": lambda p: attrs(p, "mla_attention", heads=2**62, v_head_dim=2**62),
    "frequencies of another size": lambda p: attrs(p, "mla_attention", inv_freq=(1.0, 2.0)),
    "frequencies that are no numbers": lambda p: attrs(p, "mla_attention", inv_freq="ab"),
    "scale is no number": lambda p: attrs(p, "mla_attention", scale=float("nan")),
    "unknown cache": lambda p: edit_op(p, "mla_attention", caches=(1,)),
    "op without its cache": lambda p: edit_op(p, "mla_attention", caches=()),
    "table read in order": lambda p: edit_op(p, "embedding", readings=("in_order",)),
    "table read by routing": lambda p: edit_op(p, "embedding", readings=("routed",)),
    "matrix read whole": lambda p: edit_op(p, "linear", readings=("whole",)),
    "vector read in order": lambda p: edit_op(p, "rms_norm", readings=("in_order",)),
    "cache of another width": lambda p: dataclasses.replace(p, caches={"latent": 6}),
    "groups that do not divide": lambda p: attrs(p, "group_limit", n_group=3),
    "unknown group score": lambda p: attrs(p, "group_limit", group_score="mean"),
    "sizes that do not add up": lambda p: attrs(p, "split", sizes=(2, 2)),
    "top_k as text": lambda p: attrs(p, "top_k", top_k="two"),
}


@pytest.mark.parametrize("change", BAD)
def test_programs_that_make_no_sense(load, data, change, monkeypatch):
    monkeypatch.setattr(program_module, "MAX_PIECES", 1 << 30)  # what is written, not what is read
    changed = encode(BAD[change](read_program(data)))
    monkeypatch.undo()
    with pytest.raises(ArtifactError):
        load(changed)


def test_an_older_version_says_what_to_do(load, data):
    with pytest.raises(ArtifactError, match=r"version 1; expected version 5; convert the model"):
        load(data[:8] + struct.pack("<I", 1) + data[12:])


def test_ids_stay_below_the_rows_of_whatever_is_looked_up(load, data):
    """The head has as many rows as the table: said to be looked up, the router's 4 limit them."""
    program = read_program(data)
    at = next(i for i, op in enumerate(program.instructions) if op.name == "router")
    backend = load(encode(edit(program, "instructions", at, readings=("looked_up",))))
    with pytest.raises(RequestError):
        run(backend, first_id=4)
    run(backend, first_id=3)


def test_many_weights_with_short_names(load, data):
    program = read_program(data)
    extra = dataclasses.replace(program.weights[0], name="")
    run(load(encode(dataclasses.replace(program, weights=program.weights + (extra,) * 2000))))


def test_a_short_shard(load, directory, data, tmp_path):
    (tmp_path / SHARD).unlink()
    for nbytes in (0, 64, (directory / SHARD).stat().st_size - 64):
        (tmp_path / SHARD).write_bytes((directory / SHARD).read_bytes()[:nbytes])
        with pytest.raises(ArtifactError):
            load(data)
