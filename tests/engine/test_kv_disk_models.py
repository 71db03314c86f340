"""Real models over a cache that is too small: the same logits and tokens, bit for bit."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

import deepmnn
from deepmnn import LLM, SamplingParams, _core
from deepmnn.conversion.convert import convert
from deepmnn.engine import kv_disk
from deepmnn.errors import RequestError, StorageError
from tiny_artifact import tiny_artifact, write_config

GQA: dict[str, Any] = {
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 40,
    "tie_word_embeddings": False,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("kv_disk")
    write_config(directory / "gqa", **GQA)
    convert(directory / "gqa", directory / "gqa-model", quant="w8", random_weights=True, seed=4)
    return {"mla": tiny_artifact(directory, quant="w8"), "gqa": directory / "gqa-model"}


def prompt(number: int, length: int) -> list[int]:
    return np.random.default_rng(number).integers(2, 270, length).tolist()


def conversations(model: LLM) -> list[np.ndarray]:
    """Logits of six sessions in turns, with a rollback, beside requests that need room, too."""
    sessions = [model.session(share_prefix=number % 2 == 1) for number in range(6)]
    logits = []
    for number, session in enumerate(sessions):
        logits.append(session.prefill(prompt(7, 35) + prompt(number, 40)))
    for turn in range(4):
        for number, session in enumerate(sessions):
            if turn == 2:
                session.rollback(session.length - 5 * number)
            logits.append(session.decode(turn + number))
            if turn == 1:
                logits.append(session.prefill(prompt(turn, 9)))
        if turn == 2:
            model.generate([prompt(n, 100) for n in range(2)], SamplingParams(max_tokens=3))
    for session in sessions:
        session.close()
    return logits


@pytest.mark.parametrize("kv_dtype", ["f32", "bf16", "int8"])
@pytest.mark.parametrize("kind", ["mla", "gqa"])
def test_sessions_over_a_small_cache(
    models: dict[str, Path], kind: str, kv_dtype: str, tmp_path: Path
) -> None:
    large = deepmnn.load(models[kind], threads=2, kv_dtype=kv_dtype, cache_tokens=2048)
    small = deepmnn.load(
        models[kind],
        threads=2,
        kv_dtype=kv_dtype,
        cache_tokens=192,
        kv_disk="8MiB",
        kv_directory=tmp_path,
    )
    for got, wanted in zip(conversations(small), conversations(large), strict=True):
        np.testing.assert_array_equal(got, wanted)
    disk = small.engine.manager.disk
    assert disk is not None
    assert disk.written > 20
    assert disk.read > 20
    assert not disk.lost


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("kind", ["mla", "gqa"])
def test_answers_over_a_small_cache(
    models: dict[str, Path], kind: str, backend: str, tmp_path: Path
) -> None:
    """Prefixes that come back, and answers that give way to one another."""
    prompts = [prompt(number, 80 + number) for number in range(5)]
    params = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)
    answers = []
    small = {"cache_tokens": 192, "kv_disk": 1 << 23, "kv_directory": tmp_path}
    for options in ({"cache_tokens": 2048}, small):
        # One form: rows of the two differ in the last bits, and who computes them with requests.
        model = deepmnn.load(models[kind], backend, threads=2, mla_form="absorbed", **options)
        found = [model.generate(each, params) for each in (*prompts, *prompts)]
        found += model.generate(prompts, params)
        answers.append([each.ids for each in found])
    assert answers[0] == answers[1]
    disk = model.engine.manager.disk
    assert disk is not None
    assert disk.read > 10
    assert not disk.lost


def test_a_block_of_every_kind_of_cache(models: dict[str, Path]) -> None:
    rng = np.random.default_rng(0)
    for kind in models.values():
        for backend in ("cpu", "reference"):
            made = deepmnn.load(kind, backend).backend
            for dtype in ("f32", "bf16", "int8"):
                cache = made.new_cache(3, 4, dtype)
                given = rng.integers(0, 256, cache.block_nbytes, np.uint8)
                cache.write_block(2, given)
                cache.copy_block(2, 0)
                got = np.empty_like(given)
                cache.read_block(0, got)
                assert (got == given).all()
                cache.read_block(1, got)
                assert not got.any()
                for block in (-1, 3):
                    with pytest.raises(RequestError):
                        cache.read_block(block, got)
                    with pytest.raises(RequestError):
                        cache.write_block(block, given)
                if backend == "cpu":
                    for wrong in (given[:-1], np.append(given, given)):
                        with pytest.raises(RequestError):
                            cache.read_block(0, wrong)
                        with pytest.raises(RequestError):
                            cache.write_block(0, wrong)


@pytest.mark.parametrize("dtype", ["f32", "bf16", "int8"])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("kind", ["mla", "gqa"])
def test_the_disk_must_hold_a_block(
    models: dict[str, Path], kind: str, backend: str, dtype: str, tmp_path: Path
) -> None:
    """What `load` lets through, the engine takes, to the byte."""
    given = {"kv_dtype": dtype, "kv_directory": tmp_path}
    with pytest.raises(RequestError, match="kv_disk is 1,000 bytes; expected") as caught:
        deepmnn.load(models[kind], backend, kv_disk=1000, **given)
    least = int(str(caught.value).split("expected ")[1].split(" ")[0].replace(",", ""))
    disk = deepmnn.load(models[kind], backend, kv_disk=least, **given).engine.manager.disk
    assert disk is not None
    assert disk.capacity == 1
    with pytest.raises(RequestError, match="kv_disk is"):
        deepmnn.load(models[kind], backend, kv_disk=least - 1, **given)
    assert deepmnn.load(models[kind], backend, kv_disk=0).engine.manager.disk is None


def test_what_the_disk_cannot_be_is_refused_before_a_weight_is_read(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*given: Any, **named: Any) -> Any:
        raise AssertionError("loaded")

    (tmp_path / "file").write_text("")
    monkeypatch.setattr(_core, "Model", never)
    monkeypatch.setattr("deepmnn.artifact.reader.Artifact.verify", never)
    for directory in (tmp_path / "file", Path("/proc/nope")):
        for given in ({"kv_disk": "8MB"}, {"memory": "16GiB"}):
            with pytest.raises(StorageError, match=f"^{directory}: .*kv_disk=0 does without"):
                deepmnn.load(models["mla"], kv_directory=directory, **given)
    with pytest.raises(RequestError, match="kv_disk is 10 bytes"):
        deepmnn.load(models["mla"], kv_disk=10, kv_directory=tmp_path)
    with pytest.raises(RequestError, match="kv_directory is given, and nothing is written"):
        deepmnn.load(models["mla"], kv_directory=tmp_path)


def test_a_budget_that_is_given_takes_disk(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv_disk, "_is_memory", lambda device: False)  # wherever tests run
    model = deepmnn.load(models["mla"], memory="16GiB", threads=1, kv_directory=tmp_path)
    disk = model.engine.manager.disk
    assert disk is not None
    assert disk.line().endswith(f"written to a file in {tmp_path}, at most 4.3 GB")
    off = deepmnn.load(models["mla"], memory="16GiB", threads=1, kv_directory=tmp_path, kv_disk=0)
    assert off.engine.manager.disk is None


def test_disk_that_nobody_asked_for_may_be_missing(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("")  # no directory
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = deepmnn.load(models["mla"], memory="16GiB", threads=1)
    assert model.engine.manager.disk is None
    with pytest.raises(StorageError, match="a directory to keep KV blocks in"):
        deepmnn.load(models["mla"], kv_disk="8MB")


def test_a_budget_leaves_no_rows_in_a_directory_in_memory(models: dict[str, Path]) -> None:
    shared = Path("/dev/shm")
    if not (shared.is_dir() and kv_disk._is_memory(shared.stat().st_dev)):
        pytest.skip("/dev/shm is no tmpfs here")
    with TemporaryDirectory(dir=shared) as directory:
        with pytest.raises(StorageError, match="is in memory"):
            deepmnn.load(models["mla"], memory="16GiB", kv_directory=directory)
        deepmnn.load(models["mla"], kv_disk="8MB", kv_directory=directory)
