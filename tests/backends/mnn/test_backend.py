"""MNN against the reference backend on the same weights, in every way an engine runs a model."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import deepmnn
from deepmnn import SamplingParams
from deepmnn.backends.base import F32, Batch
from deepmnn.backends.mnn import backend as mnn_backend
from deepmnn.backends.mnn.backend import MOST_THREADS, MnnBackend
from deepmnn.backends.mnn.options import MnnOptions
from deepmnn.backends.reference.cache import PagedCache
from deepmnn.conversion.convert import convert
from deepmnn.errors import ArtifactError, RequestError, StorageError
from deepmnn.exporters.mnn.export import export
from deepmnn.exporters.mnn.folder import MnnFolder
from deepmnn.graph.caches import CacheEntry
from mnn_numbers import Given
from parity import SCHEDULES, Runner, prompts_for, relative_error, run_schedule
from tiny_artifact import tiny_artifact, write_config

Oracle = Callable[[list[int]], F32]
"""Token ids → the logits [tokens, vocab_size] of each."""

EXACT = MnnOptions(memory="normal")
VOCAB = 271
TOLERANCE = 1e-5
"""Of the largest logit: MNN adds in another order."""


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_artifact(tmp_path_factory.mktemp("mnn"), quant="w8")


@pytest.fixture(scope="module")
def folder(artifact: Path) -> MnnFolder:
    export(artifact, artifact.parent / "folder")
    return MnnFolder.open(artifact.parent / "folder")


@pytest.fixture(scope="module")
def oracle(artifact: Path) -> Oracle:
    return Given(artifact).logits


@pytest.fixture(scope="module")
def model(folder: MnnFolder) -> deepmnn.LLM:
    return deepmnn.load(folder.path, threads=2, max_batch_tokens=8, mnn=EXACT)


def close(got: F32, want: F32) -> None:
    assert relative_error(got, want) < TOLERANCE


# ---------------------------------------------------------------------------- steps


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_gives_the_oracles_logits(
    folder: MnnFolder, oracle: Oracle, schedule: str, threads: int
) -> None:
    lengths, steps = SCHEDULES[schedule]
    prompts = prompts_for(lengths, VOCAB)
    for logits, prompt in zip(
        run_schedule(MnnBackend(folder, threads, EXACT), prompts, steps), prompts, strict=True
    ):
        close(logits, oracle(prompt))


@pytest.mark.parametrize("chunk", [1, 2, 7, 100])
def test_a_long_step_runs_in_chunks(
    folder: MnnFolder, oracle: Oracle, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    """The other sequence's token makes MNN forget the first one's history every time."""
    monkeypatch.setattr(mnn_backend, "CHUNK", chunk)
    prompt, other = prompts_for([117, 4], VOCAB)
    runner, want = Runner(MnnBackend(folder, 1, EXACT), blocks=60), oracle(prompt)
    for turn, (start, stop) in enumerate([(0, 9), (9, 10), (10, 112), (112, 117)]):
        got = runner.step({0: prompt[start:stop], 1: [other[turn]]})
        close(got[0], want[start:stop])
        close(got[1], oracle(other)[turn : turn + 1])


def test_only_the_wanted_rows(folder: MnnFolder, oracle: Oracle) -> None:
    prompt = prompts_for([17], VOCAB)[0]
    backend, want = MnnBackend(folder, 1, EXACT), oracle(prompt)
    cache = backend.new_cache(4, 8)
    for rows in ([], [16], [0], [3, 9], [16, 2, 2], list(range(17))):
        got = backend.step(cache, one_sequence(prompt, rows))
        again = backend.run(cache, one_sequence(prompt, rows))
        assert tuple(again) == backend.outputs == ("logits",)
        np.testing.assert_array_equal(again["logits"], got)
        assert got.shape == (len(rows), VOCAB)
        assert got.dtype == np.float32
        if rows:
            close(got, want[rows])


def one_sequence(ids: list[int], rows: list[int]) -> Batch:
    return Batch(
        ids=np.array(ids, np.int32),
        positions=np.arange(len(ids), dtype=np.int32),
        sequence_starts=np.array([0, len(ids)], np.int32),
        context_lengths=np.array([len(ids)], np.int32),
        block_tables=np.array([[2, 0, 3]], np.int32),
        logit_rows=np.array(rows, np.int32),
    )


def test_mnn_copies_its_network_once_at_most(
    folder: MnnFolder, capfd: pytest.CaptureFixture[str]
) -> None:
    """It says so on stdout, where answers go."""
    runner = Runner(MnnBackend(folder, 1, EXACT), blocks=60)
    for count in (1, 2, 3, 1, 4, 5, 100, 1, 1):
        runner.step({0: [7] * count})
    assert capfd.readouterr() == ("", "")


def test_logits_stay_when_the_model_goes(folder: MnnFolder) -> None:
    backend = MnnBackend(folder, 1, EXACT)
    cache = backend.new_cache(4, 8)
    first = backend.step(cache, one_sequence([5, 9, 7], [0, 1, 2]))
    kept = first.copy()
    backend.step(cache, one_sequence([8, 8, 1, 3], [3]))
    assert first.flags.owndata
    np.testing.assert_array_equal(first, kept)


# ---------------------------------------------------------------------------- failures


def test_a_bad_batch_changes_nothing(folder: MnnFolder, oracle: Oracle) -> None:
    backend = MnnBackend(folder, 1, EXACT)
    cache = backend.new_cache(4, 8)
    backend.step(cache, one_sequence([5, 9, 7], [2]))
    for field, value in {
        "ids": [5, VOCAB, 7],
        "logit_rows": [3],
        "block_tables": [[4, 0]],
        "context_lengths": [2],
        "sequence_starts": [0, 2],
    }.items():
        batch = one_sequence([5, 9, 7], [2])
        setattr(batch, field, np.array(value, np.int32))
        with pytest.raises(RequestError):
            backend.step(cache, batch)
    with pytest.raises(RequestError, match="PagedCache"):
        backend.step(PagedCache({"x": CacheEntry(1)}, 4, 8, "f32"), one_sequence([5], [0]))
    close(backend.step(cache, one_sequence([5, 9, 8], [2])), oracle([5, 9, 8])[2:])


@pytest.mark.parametrize("history", [0, 1, 12])
def test_after_a_failed_step_the_next_one_is_right(
    folder: MnnFolder,
    oracle: Oracle,
    history: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """MNN refuses to run when its status says that something went wrong."""
    backend, prompt = MnnBackend(folder, 1, EXACT), prompts_for([20], VOCAB)[0]
    runner = Runner(backend)
    if history:
        runner.step({0: prompt[:history]})
    rewind = backend._rewind

    def fail(length: int) -> None:
        rewind(length)
        backend._llm.set_context({"status": 4})
        monkeypatch.undo()

    monkeypatch.setattr(backend, "_rewind", fail)
    with pytest.raises(RequestError, match=f"could not run 3 tokens after {history}"):
        runner.step({0: prompt[history : history + 3]})
    close(Runner(backend).step({0: prompt})[0], oracle(prompt))


def test_an_interrupt_leaves_the_model_usable(
    folder: MnnFolder, oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mnn_backend, "CHUNK", 4)
    backend, (prompt, other) = MnnBackend(folder, 1, EXACT), prompts_for([20, 20], VOCAB)
    runner = Runner(backend)
    runner.step({0: prompt[:13]})
    forward, calls = backend._forward, 0

    def interrupted(ids: np.ndarray, rows: np.ndarray) -> F32:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return forward(ids, rows)

    monkeypatch.setattr(backend, "_forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        runner.step({1: [*prompt[:3], *other]})
    close(runner.step({0: prompt[13:]})[0], oracle(prompt)[13:])


def test_a_folder_that_mnn_cannot_load(folder: MnnFolder, tmp_path: Path) -> None:
    shutil.copytree(folder.path, tmp_path / "f")
    broken = MnnFolder.open(tmp_path / "f")
    network = tmp_path / "f" / "llm.mnn"
    network.write_bytes(network.read_bytes()[:-700])
    with pytest.raises(ArtifactError, match=r"cannot load .*Load module failed"):
        MnnBackend(broken)
    network.unlink()
    with pytest.raises(ArtifactError, match=r"llm\.mnn"):
        MnnBackend(broken)
    shutil.copytree(folder.path, tmp_path / "\udc80")
    with pytest.raises(ArtifactError, match="UTF-8"):
        MnnBackend(MnnFolder.open(tmp_path / "\udc80"))


@pytest.mark.parametrize("options", [{"memory": "tiny"}, {"precision": "f16"}, {"memory": None}])
def test_impossible_options(options: dict[str, str]) -> None:
    with pytest.raises(RequestError, match="low"):
        MnnOptions(**options)


def test_impossible_caches(folder: MnnFolder) -> None:
    backend = MnnBackend(folder, 1)
    for dtype in ("bf16", "int8"):
        with pytest.raises(RequestError, match="'f32'"):
            backend.new_cache(4, 8, dtype)
    for blocks, block_size in ((0, 8), (4, 0), (1 << 31, 1 << 31)):
        with pytest.raises(RequestError, match="cache of"):
            backend.new_cache(blocks, block_size)
    for source, target in ((0, 4), (-1, 0)):
        with pytest.raises(RequestError, match="block"):
            backend.new_cache(4, 8).copy_block(source, target)


# ---------------------------------------------------------------------------- options


@pytest.mark.parametrize("memory", ["low", "normal", "high"])
@pytest.mark.parametrize("precision", ["low", "normal", "high"])
def test_every_level_computes_the_model(
    wide: tuple[MnnFolder, Oracle], memory: str, precision: str
) -> None:
    """MNN rounds activations to int8 where a matrix has whole blocks of codes."""
    folder, oracle = wide
    prompt = prompts_for([23], VOCAB)[0]
    backend = MnnBackend(folder, 1, MnnOptions(memory, precision))
    error = relative_error(Runner(backend).step({0: prompt})[0], oracle(prompt))
    if memory == "low":
        assert 1e-4 < error < 0.1
    else:
        assert error < (0.01 if precision == "low" else TOLERANCE)  # float16 on Arm


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> tuple[MnnFolder, Oracle]:
    """A dense model: rounding would send tokens to other experts, and those errors are large."""
    path = tmp_path_factory.mktemp("wide")
    sizes = {"hidden_size": 128, "intermediate_size": 192, "q_lora_rank": 64, "kv_lora_rank": 64}
    heads = {"qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64}
    write_config(path / "source", **sizes, **heads, first_k_dense_replace=2)
    convert(path / "source", path / "model", "w8", random_weights=True, seed=1)
    export(path / "model", path / "folder")
    return MnnFolder.open(path / "folder"), Given(path / "model").logits


def test_mapped_weights_go_with_the_model(
    folder: MnnFolder, oracle: Oracle, tmp_path: Path
) -> None:
    prompt = prompts_for([11], VOCAB)[0]
    pair = [MnnBackend(folder, 1, MnnOptions("normal", mmap=tmp_path)) for _ in range(2)]
    assert len(list(tmp_path.rglob("*.static"))) == 2
    for backend in pair:
        close(Runner(backend).step({0: prompt})[0], oracle(prompt))
    del pair, backend
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StorageError, match="none"):
        MnnBackend(folder, 1, MnnOptions(mmap=tmp_path / "none"))


def test_threads(folder: MnnFolder) -> None:
    assert 1 <= MnnBackend(folder).threads <= MOST_THREADS
    assert MnnBackend(folder, 10**6).threads == MOST_THREADS
    assert MnnBackend(folder, 3).threads == 3


# ---------------------------------------------------------------------------- the engine on top


@pytest.mark.parametrize("seed", range(4))
def test_sessions_at_random(model: deepmnn.LLM, oracle: Oracle, seed: int) -> None:
    """Three sequences take turns, grow, are cut, share beginnings."""
    rng = random.Random(seed)
    sessions = [model.session() for _ in range(2)] + [model.session(share_prefix=True)]
    shared = [rng.randrange(VOCAB) for _ in range(70)]
    for _ in range(25):
        session = rng.choice(sessions)
        if rng.random() < 0.3:
            session.rollback(rng.randint(0, session.length))
        if session.length == 0:
            new = [*shared[: rng.choice([0, 1, 40, 70])], rng.randrange(VOCAB)]
        else:
            new = [rng.randrange(VOCAB) for _ in range(rng.choice([1, 1, 2, 9, 33]))]
        if session.length + len(new) > 190:
            continue
        got = session.logits(new) if rng.random() < 0.5 else session.prefill(new)[None]
        close(got, oracle(session.ids)[-len(got) :])
    for session in sessions:
        session.close()


def test_greedy_answers_are_the_references(artifact: Path, model: deepmnn.LLM) -> None:
    params = SamplingParams(max_tokens=20, ignore_eos=True)
    prompts = prompts_for([3, 40, 9, 1], VOCAB)
    reference = Given(artifact)
    for got, prompt in zip(model.generate(prompts, params), prompts, strict=True):
        ids = list(prompt)
        for _ in range(20):
            ids.append(int(reference.logits(ids)[-1].argmax()))
        assert list(got.ids) == ids[len(prompt) :]


def test_sequences_run_one_at_a_time(model: deepmnn.LLM, folder: MnnFolder) -> None:
    params = SamplingParams(max_tokens=3, ignore_eos=True)
    order = [chunk.index for chunk in model.stream(prompts_for([5, 5, 5], VOCAB), params)]
    assert order == sorted(order)
    assert deepmnn.load(folder.path, max_sequences=9).engine.scheduler.max_sequences == 1


def test_the_next_turn_runs_its_own_tokens_only(
    model: deepmnn.LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed = []
    run = MnnBackend._run

    def counting(self: MnnBackend, ids: np.ndarray, every: bool) -> object:
        fed.append(len(ids))
        return run(self, ids, every)

    monkeypatch.setattr(MnnBackend, "_run", counting)
    prompt = prompts_for([80], VOCAB)[0]
    params = SamplingParams(max_tokens=20, ignore_eos=True)
    answer = model.generate(prompt, params)
    assert sum(fed) == 80 + 19
    fed.clear()
    again = model.generate([*prompt, *answer.ids, 7, 8, 9], params)
    assert again.cached_tokens == 96
    assert sum(fed) == 103 - 96 + 19


def test_two_models_take_turns_in_two_threads(folder: MnnFolder, oracle: Oracle) -> None:
    prompts, errors = prompts_for([30, 21], VOCAB), []

    def run(prompt: list[int]) -> None:
        runner = Runner(MnnBackend(folder, 2, EXACT))
        got = np.concatenate([runner.step({0: [token]})[0] for token in prompt])
        errors.append(relative_error(got, oracle(prompt)))

    threads = [threading.Thread(target=run, args=(prompt,)) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 2
    assert max(errors) < TOLERANCE


@pytest.mark.parametrize(
    "ending",
    [
        "",
        "held = model.logits([1, 2]); del model",
        "sys.exit(0)",
        "try: model.backend._forward(np.array([3, 4]), np.array([0, 9]))\n"
        "except IndexError as error: kept = error\n"
        "del model; gc.collect(); del kept",
    ],
    ids=["in use", "logits outlive it", "exit", "a traceback outlives it"],
)
def test_the_process_ends_well(folder: MnnFolder, ending: str) -> None:
    code = f"""
import gc, sys
import numpy as np
import deepmnn
model = deepmnn.load({str(folder.path)!r}, threads=2)
other = deepmnn.load({str(folder.path)!r}, threads=2)
session = model.session()
session.prefill([1, 2, 3])
other.logits([4, 5])
del session
{ending}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
