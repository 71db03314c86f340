"""How a model is loaded, and let go."""

from __future__ import annotations

import dataclasses
import inspect
import re
import shutil
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

import deepmnn
from artifact.test_artifact import reseal
from deepmnn import LLM, LoadOptions, SamplingParams
from deepmnn.backends.cpu.program import encode, read_program
from deepmnn.errors import (
    ArtifactError,
    CheckpointError,
    RequestError,
)
from tiny_llm import IDS, load


def test_the_engine_is_made_once_however_many_threads_ask_first(artifact: Path) -> None:
    model, gate = deepmnn.load(artifact, "reference"), Barrier(8)

    def first(_: int) -> int:
        gate.wait()
        return id(model.engine)

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(first, range(8)))) == 1


def test_files_that_the_manifest_does_not_list_are_not_read(artifact: Path, tmp_path: Path) -> None:
    path = tmp_path / "model"
    shutil.copytree(artifact, path)
    program = read_program((path / "program.bin").read_bytes())
    (path / "other").write_bytes((path / program.shards[0]).read_bytes())
    (path / "program.bin").write_bytes(encode(dataclasses.replace(program, shards=("other",))))
    reseal(path)
    with pytest.raises(ArtifactError, match=r"maps 'other'; expected model-.* as deepmnn.json"):
        deepmnn.load(path)


def test_a_dropped_model_is_collected(artifact: Path) -> None:
    model = deepmnn.load(artifact, "cpu", threads=2)
    backend = weakref.ref(model.backend)
    model.generate(IDS, SamplingParams(max_tokens=3))
    model.session().prefill(IDS)
    stream = model.stream(IDS)
    next(stream)
    del model, stream
    end = time.monotonic() + 30
    while backend() is not None:
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.mark.parametrize(
    "arguments",
    [
        {"backend": "gpu"},
        {"kv_dtype": "int3"},
        {"threads": 0},
        {"threads": "2"},
        {"threads": 1 << 40},
        {"cache_tokens": 10**30},
        {"kv_dtype": ["f32"]},
        {"cache_tokens": -5},
        {"max_batch_tokens": 0},
        {"max_sequences": 0},
        {"backend": ""},
        {"backend": 3},
        {"threads": True},
        {"cache_tokens": 2.0},
        {"max_sequences": 1 << 31},
        {"mnn": {"memory": "low"}},
        {"numa": "near"},
        {"numa": None},
        {"isa": 2},
        {"mla_form": "folded"},
        {"mla_form": ["auto"]},
        {"memory": "4 gigs"},
        {"memory": "-1"},
        {"memory": 0},
        {"memory": True},
        {"memory": 1.5},
        {"kv_disk": 1.5},
        {"kv_directory": 3},
        {"speculate": 3},
        {"speculate_tokens": 0},
        {"speculate_tokens": 16},
    ],
    ids=str,
)
def test_impossible_arguments(artifact: Path, arguments: dict[str, Any]) -> None:
    ((name, value),) = arguments.items()
    expected = re.escape(f"{name} is {value!r}; expected {EXPECTED[name]}")
    with pytest.raises(RequestError, match=expected):
        deepmnn.load(artifact, **arguments)
    with pytest.raises(RequestError, match=expected):
        LoadOptions(**arguments)


EXPECTED = {
    "backend": "'cpu' or 'mnn' or 'reference'",
    "threads": "an integer from 1 to 2147483647",
    "kv_dtype": "'f32' or 'bf16' or 'int8'",
    "cache_tokens": "an integer from 1 to 2147483647",
    "max_batch_tokens": "an integer from 1 to 2147483647",
    "max_sequences": "an integer from 1 to 2147483647",
    "mnn": "deepmnn.MnnOptions",
    "numa": "'off' or 'distribute' or 'isolate'",
    "isa": "the name of an instruction set, such as 'avx2'",
    "mla_form": "'auto' or 'absorbed' or 'expanded'",
    "memory": "a size such as '4GiB', '800MB' or a number of bytes",
    "kv_disk": "bytes, as in '2GiB'",
    "kv_directory": "a directory",
    "speculate": "'auto', 'mtp', 'ngram', 'off' or a model",
    "speculate_tokens": "an integer from 1 to 15",
}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"backend": "reference", "numa": "isolate"}, "backend 'cpu'"),
        ({"backend": "reference", "isa": "avx2"}, "backend 'cpu'"),
        ({"backend": "mnn", "numa": "distribute"}, "backend 'cpu'"),
        ({"backend": "reference", "memory": "1GiB"}, "backend 'cpu' or backend 'mnn'"),
        ({"backend": "mnn", "isa": "scalar"}, "backend 'cpu'"),
        ({"backend": "mnn", "mla_form": "absorbed"}, "backend 'cpu' or backend 'reference'"),
        ({"backend": "mnn", "kv_disk": "1GiB"}, "backend 'cpu' or backend 'reference'"),
        ({"backend": "mnn", "speculate": "ngram"}, "speculate 'off', or backend 'cpu'"),
        ({"backend": "mnn", "speculate_tokens": 3}, "backend 'cpu' or backend 'reference'"),
    ],
    ids=str,
)
def test_a_backend_refuses_what_it_does_not_know(
    artifact: Path, arguments: dict[str, Any], expected: str
) -> None:
    (_, backend), (name, value) = arguments.items()
    found = f"{name} is {value!r} with the backend {backend!r}; expected {expected}"
    with pytest.raises(RequestError, match=re.escape(found) + "$"):
        deepmnn.load(artifact, **arguments)


def test_load_takes_every_field_of_the_options() -> None:
    arguments = dict(inspect.signature(deepmnn.load).parameters)
    for own in ("path", "options", "needs", "progress"):
        del arguments[own]
    taken = {name: (p.annotation, p.default) for name, p in arguments.items()}
    declared = {f.name: (f.type, f.default) for f in dataclasses.fields(LoadOptions)}
    assert taken == declared
    assert set(EXPECTED) | {"quant"} == set(declared)


def test_every_argument_reaches_the_options(artifact: Path) -> None:
    given = {
        "backend": "cpu",
        "threads": 1,
        "kv_dtype": "bf16",
        "cache_tokens": 96,
        "max_batch_tokens": 8,
        "max_sequences": 3,
        "numa": "isolate",
        "isa": "scalar",
        "mla_form": "expanded",
    }
    for model in (deepmnn.load(artifact, **given), load_with(artifact, **given)):
        assert model.options == LoadOptions(**given)
        core, scheduler = model.backend.model, model.engine.scheduler
        assert (core.threads, core.isa) == (1, "scalar")
        assert (scheduler.max_batch_tokens, scheduler.max_sequences) == (8, 3)
        assert model.engine.manager.free_blocks == 96 // model.engine.manager.block_size
    mnn = deepmnn.MnnOptions(memory="normal")
    assert load(artifact, "mnn", mnn=mnn).options.mnn == mnn


def load_with(artifact: Path, **given: Any) -> LLM:
    return deepmnn.load(artifact, options=LoadOptions(**given))


def test_options_stand_alone(artifact: Path) -> None:
    for given in ({"threads": 1}, {"kv_dtype": "bf16", "numa": "isolate"}):
        with pytest.raises(RequestError, match=f"options and {' and '.join(given)} are given"):
            deepmnn.load(artifact, options=LoadOptions(), **given)
    with pytest.raises(RequestError, match=re.escape("expected deepmnn.LoadOptions")):
        deepmnn.load(artifact, options={"threads": 1})


def test_wrong_directories(artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected weights"):
        deepmnn.load(artifact.parent / "source")
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ArtifactError):
            deepmnn.load(path)
