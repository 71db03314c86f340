"""What the engine refuses: impossible batches, caches and settings. Never a crash, always typed."""

import dataclasses
import os

import numpy as np
import pytest
from one_op import VOCAB, one_op
from program_dir import cpu_of, random_weights, write_program

from deepmnn import _core
from deepmnn.backends.base import Batch, sample_in_turn
from deepmnn.backends.cpu.backend import CpuBackend
from deepmnn.backends.cpu.lower import read_program
from deepmnn.backends.cpu.program import encode
from deepmnn.backends.reference import PagedCache
from deepmnn.errors import ArtifactError, RequestError
from deepmnn.graph.caches import CacheEntry


def i32(*values):
    return np.array(values, np.int32)


def cached(b, x):
    return b.attention(x, b.cache(x, "k"), b.cache(x, "v"), "y", 1, 1, 1.0)


@pytest.fixture(scope="module")
def backend():
    graph = one_op(cached, 8)
    return cpu_of(graph, random_weights(graph).__getitem__, threads=2)


@pytest.fixture
def batch():
    """Two sequences: 3 new tokens after 2 cached, 1 new token after none; 4-row blocks."""
    return Batch(
        ids=i32(1, 2, 3, 4),
        positions=i32(2, 3, 4, 0),
        sequence_starts=i32(0, 3, 4),
        context_lengths=i32(5, 1),
        block_tables=np.array([[0, 1], [2, -1]], np.int32),
        logit_rows=i32(2, 3),
    )


def test_the_batch_is_fine_as_it_is(backend, batch):
    assert backend.step(backend.new_cache(3, 4), batch).shape == (2, VOCAB)


@pytest.mark.parametrize("convert", [np.int64, np.uint16, list, lambda a: np.repeat(a, 2)[::2]])
def test_integers_of_other_types_are_converted(backend, batch, convert):
    fields = {"ids": convert(batch.ids), "positions": convert(batch.positions)}
    other = dataclasses.replace(batch, **fields)
    wanted = backend.step(backend.new_cache(3, 4), batch)
    assert np.array_equal(backend.step(backend.new_cache(3, 4), other), wanted)


CHANGES = {
    "id too large": {"ids": i32(1, 2, VOCAB, 4)},
    "id negative": {"ids": i32(1, -2, 3, 4)},
    "id beyond 32 bits": {"ids": np.array([1, 2, 2**40, 4])},
    "ids of floats": {"ids": np.array([1.5, 2, 3, 4])},
    "ids of two dimensions": {"ids": np.zeros((2, 2), np.int32)},
    "too few positions": {"positions": i32(2, 3, 4)},
    "negative position": {"positions": i32(2, 3, -4, 0)},
    "no tokens": {
        "ids": i32(),
        "positions": i32(),
        "sequence_starts": i32(0),
        "context_lengths": i32(),
        "block_tables": np.zeros((0, 2), np.int32),
        "logit_rows": i32(),
    },
    "no starts": {"sequence_starts": i32()},
    "starts do not begin at 0": {"sequence_starts": i32(1, 3, 4)},
    "starts end early": {"sequence_starts": i32(0, 2, 3)},
    "starts end late": {"sequence_starts": i32(0, 3, 5)},
    "a sequence without tokens": {"sequence_starts": i32(0, 4, 4)},
    "starts go back": {
        "sequence_starts": i32(0, 5, 4, 4),
        "context_lengths": i32(5, 1, 1),
        "block_tables": np.array([[0, 1], [2, -1], [2, -1]], np.int32),
    },
    "contexts without the new tokens": {"context_lengths": i32(2, 1)},
    "contexts negative": {"context_lengths": i32(5, -1)},
    "contexts too few": {"context_lengths": i32(5)},
    "contexts beyond the table": {"context_lengths": i32(9, 1)},
    "contexts huge": {"context_lengths": i32(2**31 - 1, 1)},
    "block unused": {"block_tables": np.array([[0, -1], [2, -1]], np.int32)},
    "block beyond the cache": {"block_tables": np.array([[0, 3], [2, -1]], np.int32)},
    "tables too few": {"block_tables": np.array([[0, 1]], np.int32)},
    "tables empty": {"block_tables": np.zeros((2, 0), np.int32)},
    "a written block is shared": {"block_tables": np.array([[0, 1], [1, -1]], np.int32)},
    "a written block twice": {"block_tables": np.array([[1, 1], [2, -1]], np.int32)},
    "row too large": {"logit_rows": i32(2, 4)},
    "row negative": {"logit_rows": i32(-1)},
}


@pytest.mark.parametrize("change", CHANGES)
def test_impossible_batches(backend, batch, change):
    bad = dataclasses.replace(batch, **CHANGES[change])
    cache = backend.new_cache(3, 4)
    with pytest.raises(RequestError):
        backend.step(cache, bad)
    assert np.isfinite(backend.step(cache, batch)).all()


def test_activations_beyond_64_bits(tmp_path):
    """Three sequences of 2^31 rows, almost all in one shared block: 2^31 bytes for each row."""
    graph = one_op(cached, 8)
    write_program(graph, random_weights(graph).__getitem__, tmp_path)
    program = read_program((tmp_path / "program.bin").read_bytes())
    large = dataclasses.replace(program, arenas=(program.arenas[0], 2**31 - 64, program.arenas[2]))
    (tmp_path / "program.bin").write_bytes(encode(large))
    backend = CpuBackend(tmp_path, threads=1)
    tables = np.full((3, 2048), 3, np.int32)
    tables[:, -1] = range(3)
    batch = Batch(
        ids=i32(1, 2, 3),
        positions=i32(0, 0, 0),
        sequence_starts=i32(0, 1, 2, 3),
        context_lengths=np.full(3, 2**31 - 1, np.int32),
        block_tables=tables,
        logit_rows=i32(),
    )
    with pytest.raises(RequestError, match="activations"):
        backend.step(backend.new_cache(4, 2**20), batch)


@pytest.mark.parametrize(
    ("blocks", "block_size", "dtype"),
    [
        *[(0, 4, "f32"), (-1, 4, "f32"), (4, 0, "f32"), (4, -3, "f32"), (4, 4, "f16"), (4, 4, "")],
        *[(2**31 - 1, 2**20, "f32"), (2**40, 4, "f32"), (4, 2**40, "f32")],
        (2**31 - 1, 64, "bf16"),
    ],
)
def test_impossible_caches(backend, blocks, block_size, dtype):
    with pytest.raises(RequestError):
        backend.new_cache(blocks, block_size, dtype)


def test_caches_know_their_size(backend):
    for dtype, element in [("f32", 4), ("bf16", 2)]:
        cache = backend.new_cache(8, 16, dtype)
        assert (cache.blocks, cache.block_size) == (8, 16)
        assert cache.nbytes == 2 * 8 * 16 * 8 * element


@pytest.mark.parametrize(("source", "target"), [(0, 3), (3, 0), (-1, 0), (0, -1), (2**40, 0)])
def test_impossible_copies(backend, source, target):
    with pytest.raises(RequestError):
        backend.new_cache(3, 4).copy_block(source, target)


def test_caches_of_other_models_and_backends(backend, batch):
    graph = one_op(cached, 9)
    other = cpu_of(graph, random_weights(graph).__getitem__)
    with pytest.raises(RequestError):
        backend.step(other.new_cache(3, 4), batch)
    with pytest.raises(RequestError):
        backend.step(PagedCache({"k": CacheEntry(8), "v": CacheEntry(8)}, 3, 4, "f32"), batch)


@pytest.mark.parametrize(
    "options", [{"threads": -1}, {"threads": 10**6}, {"isa": "mmx"}, {"mla_form": "folded"}]
)
def test_impossible_settings(tmp_path, options):
    graph = one_op(cached, 8)
    write_program(graph, random_weights(graph).__getitem__, tmp_path)
    with pytest.raises(RequestError):
        CpuBackend(tmp_path, **options)


def test_directories_that_are_not_models(tmp_path):
    with pytest.raises(ArtifactError):
        CpuBackend(tmp_path / "nowhere")
    with pytest.raises(ArtifactError):
        CpuBackend(tmp_path)
    (tmp_path / "program.bin").mkdir()
    with pytest.raises(ArtifactError):
        CpuBackend(tmp_path)


def test_draws_by_all_threads_are_those_of_one(backend):
    """More rows than threads, each with parameters of its own."""
    rng = np.random.default_rng(0)
    for count in (0, 1, 2, 9):
        logits = rng.normal(0, 3, (count, 300)).astype(np.float32)
        draws = [
            (row, *rest, float(rng.random(dtype=np.float32)))
            for row, rest in zip(
                logits,
                [(0.0, 0, 1.0, 0.0), (0.7, 0, 0.9, 0.0), (1.3, 5, 1.0, 0.1)] * 3,
                strict=False,
            )
        ]
        assert backend.sample(draws) == sample_in_turn(draws)
    fault = (np.array([1, np.nan], np.float32), 0.0, 0, 1.0, 0.0, 0.0)
    with pytest.raises(RequestError, match="logit"):
        backend.sample([*draws, fault])
    assert backend.sample(draws) == sample_in_turn(draws)


def test_the_program_says_what_its_ops_cost(backend):
    instructions = backend.model.instructions
    assert [entry["op"] for entry in instructions] == [
        *("embedding", "cache", "cache", "attention", "select_rows", "linear")
    ]
    width = 8
    costs = {entry["op"]: (entry["row_macs"], entry["context_macs"]) for entry in instructions}
    assert costs.pop("linear") == (VOCAB * width, 0)
    assert costs.pop("attention") == (0, 2 * width)
    assert set(costs.values()) == {(0, 0)}


def test_the_model_describes_itself(backend):
    model = backend.model
    assert (model.vocab_size, model.threads) == (VOCAB, min(2, len(os.sched_getaffinity(0))))
    assert model.isa in _core.isas()
    assert model.caches == {"k": (8, 1, 0, False), "v": (8, 1, 0, False)}
    assert model.weight_nbytes == 2 * 48 * 8 * 4


def test_kernels_have_limits():
    """tests/test_benchmark.py measures memory and the best kernels, which takes longer."""
    assert _core.measure_int8_peak(1, "scalar") > 1e6
    assert _core.measure_f32_peak(1, "scalar") > 1e6
