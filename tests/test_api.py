from __future__ import annotations

import dataclasses
import inspect
import json
import re
import shutil
import time
import weakref
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest

import deepmnn
from deepmnn import LLM, Chunk, Completion, LoadOptions, SamplingParams
from deepmnn.backends.base import F32
from deepmnn.engine.engine import Engine
from deepmnn.engine.kv_cache import BlockTable
from deepmnn.engine.scheduler import Span
from deepmnn.errors import (
    ArtifactError,
    ConfigError,
    ContextLengthError,
    RequestError,
    TokenizerError,
)
from tiny_artifact import tiny_artifact

IDS = [5, 17, 200, 33, 33, 9, 150, 71, 8, 262, 0, 41]
CHAT = [{"role": "user", "content": "What is 2 + 2?"}]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_artifact(tmp_path_factory.mktemp("api"))


@pytest.fixture(scope="module", params=["reference", "cpu", "mnn"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(artifact: Path, backend: str) -> LLM:
    return load(artifact, backend, threads=2, max_batch_tokens=8)


def load(artifact: Path, backend: str, **options: Any) -> LLM:
    """For MNN the model is exported beside the artifact, and runs on one thread: its threads spin
    for one another, for half a minute where others need the processors too.
    """
    if backend == "mnn":
        options["threads"] = 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(artifact.parent / "cache"))
        return deepmnn.load(artifact, backend, **options)


def close(a: Any, b: Any) -> None:
    np.testing.assert_allclose(a, b, atol=2e-4 * float(np.abs(b).max()))


def test_backends_agree(artifact: Path) -> None:
    close(
        deepmnn.load(artifact, "cpu").logits(IDS), deepmnn.load(artifact, "reference").logits(IDS)
    )


def test_logits_in_chunks_or_whole_or_by_session(model: LLM, artifact: Path, backend: str) -> None:
    logits = model.logits(IDS)
    assert logits.shape == (len(IDS), model.vocab_size)
    assert logits.dtype == np.float32
    whole = load(artifact, backend, max_batch_tokens=512).logits(IDS)
    close(logits, whole)
    with model.session() as session:
        close(session.prefill(IDS[:7]), logits[6])
        for index in range(7, len(IDS)):
            close(session.decode(IDS[index]), logits[index])
        assert session.length == len(IDS)
        session.rollback(5)
        close(session.prefill(IDS[5:]), logits[-1])


def test_a_guess_of_several_tokens_gets_the_rows_of_one_by_one(model: LLM) -> None:
    guess = model.generate(IDS, SamplingParams(max_tokens=5, ignore_eos=True)).ids
    with model.session() as session:
        wanted = [session.prefill(IDS), *(session.decode(token) for token in guess)]

    def verify(engine: Engine) -> F32:
        table = BlockTable(list(IDS))
        engine.run_pending([table])
        table.ids += guess
        engine.manager.append(table, len(guess))
        try:
            return engine.forward([Span(table, len(guess), rows=len(guess))])
        finally:
            engine.manager.free(table)

    rows = model.driver.run(verify)
    close(rows, np.stack(wanted[1:]))
    assert rows[:-1].argmax(-1).tolist() == guess[1:]


def test_rollback_equals_a_fresh_prefill(model: LLM) -> None:
    with model.session() as rolled, model.session() as fresh:
        rolled.prefill(IDS * 6)
        rolled.rollback(40)
        close(rolled.decode(3), fresh.prefill([*(IDS * 6)[:40], 3]))


def test_a_shared_prefix_gives_the_same_logits(model: LLM) -> None:
    ids = IDS * 8
    with model.session() as first, model.session(share_prefix=True) as second:
        wanted = first.prefill(ids)
        before = model.engine.manager.free_blocks
        close(second.prefill(ids), wanted)
        assert before - model.engine.manager.free_blocks < len(ids) // 32
        close(second.decode(7), first.decode(7))


def test_a_batch_answers_as_each_prompt_alone(model: LLM) -> None:
    params = SamplingParams(max_tokens=12)
    prompts: list[list[int]] = [IDS[: 3 + i] for i in range(5)]
    together = model.generate(prompts, params)
    for prompt, answer in zip(prompts, together, strict=True):
        alone = model.generate(prompt, params)
        assert alone.ids == answer.ids
        assert alone.text == answer.text
        assert answer.prompt_tokens == len(prompt)
        assert answer.completion_tokens == len(answer.ids)


def test_greedy_generation_follows_the_logits(model: LLM) -> None:
    answer = model.generate(IDS, SamplingParams(max_tokens=9, ignore_eos=True))
    ids = IDS + answer.ids
    assert answer.ids == model.logits(ids)[len(IDS) - 1 : -1].argmax(-1).tolist()
    assert answer.finish_reason == "length"
    assert answer.text == model.tokenizer.decode(answer.ids)


def test_the_chat_template_opens_the_reasoning(model: LLM) -> None:
    params = SamplingParams(max_tokens=20, ignore_eos=True)
    ids = model.tokenizer.encode_chat(CHAT)
    assert model.tokenizer.decode(ids[-8:]).endswith("<think>\n")
    chat, plain = model.generate(CHAT, params), model.generate("What is 2 + 2?", params)
    assert chat.prompt_tokens == len(ids)
    assert chat.text == ""
    assert chat.reasoning.strip() == model.tokenizer.decode(chat.ids).strip()
    assert plain.reasoning == ""
    assert isinstance(model.generate([CHAT], params), list)


def test_stream_adds_up_to_generate(model: LLM) -> None:
    params = SamplingParams(max_tokens=15, temperature=1.0, seed=3)
    whole = model.generate("hello", params)
    chunks = list(model.stream("hello", params))
    added = Completion()
    for chunk in chunks:
        added.add(chunk)
    assert (added.ids, added.text, added.finish_reason) == (
        whole.ids,
        whole.text,
        whole.finish_reason,
    )
    assert [c.finish_reason is None for c in chunks] == [True] * (len(chunks) - 1) + [False]
    assert [c.completion_tokens for c in chunks] == list(range(1, len(chunks) + 1))
    assert chunks[-1].decode_seconds > 0 < chunks[-1].prefill_seconds
    assert added.tokens_per_second == pytest.approx((len(chunks) - 1) / chunks[-1].decode_seconds)


def test_two_streams_take_turns(model: LLM) -> None:
    params = SamplingParams(max_tokens=10, ignore_eos=True)
    wanted = [model.generate(prompt, params).ids for prompt in ([1, 2, 3], [4, 5])]
    streams = [model.stream(prompt, params) for prompt in ([1, 2, 3], [4, 5])]
    got: list[list[int]] = [[], []]
    for pair in zip(*streams, strict=False):
        for ids, chunk in zip(got, pair, strict=True):
            ids += chunk.ids
    for ids, stream in zip(got, streams, strict=True):
        ids += [token for chunk in stream for token in chunk.ids]
    assert got == wanted


def test_closing_a_stream_frees_its_blocks(model: LLM) -> None:
    free = model.engine.manager.free_blocks
    stream = model.stream(IDS, SamplingParams(max_tokens=50))
    next(stream)
    stream.close()
    model.stream(IDS)  # never started
    assert not model.engine.scheduler.busy
    assert model.engine.manager.free_blocks == free


def test_a_dropped_session_frees_its_blocks(model: LLM) -> None:
    free = model.engine.manager.free_blocks
    session = model.session()
    session.prefill(IDS)
    assert model.engine.manager.free_blocks < free
    del session
    assert model.engine.manager.free_blocks == free


def test_threads_get_what_each_would_alone(model: LLM) -> None:
    """Streams and whole answers, of one prompt or several, greedy or not, and sessions."""
    text = model.generate("go on", SamplingParams(max_tokens=40, ignore_eos=True)).text
    stop = next(c for c in text if c not in "\ufffd" and text.index(c) > 3)
    asked: list[tuple[Any, SamplingParams]] = [
        ("go on", SamplingParams(max_tokens=40, ignore_eos=True, stop=stop)),
        (IDS * 5, SamplingParams(max_tokens=8, temperature=1.0, seed=4)),
        ([IDS, IDS[:3], "hello"], SamplingParams(max_tokens=15)),
        (CHAT, SamplingParams(max_tokens=10, temperature=0.7, top_p=0.9, seed=1)),
    ]
    wanted = [added(model.stream(prompts, params)) for prompts, params in asked]
    logits = model.logits(IDS)

    def client(number: int) -> None:
        for turn in range(8):
            which = (number + turn) % 4
            prompts, params = asked[which]
            if turn % 4 == number % 4:
                with model.session() as session:
                    close(session.prefill(IDS), logits[-1])
                    session.rollback(6)
                    close(session.decode(IDS[6]), logits[6])
            if turn % 2:
                stream = model.stream(prompts, params)
                next(stream)
                stream.close()
            assert added(model.stream(prompts, params, whole=bool(turn % 3))) == wanted[which]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(client, range(8)))
    engine = model.engine
    assert not engine.scheduler.busy
    assert engine.manager.free_blocks == engine.cache.blocks


def added(chunks: Iterator[Chunk]) -> dict[int, tuple[list[int], str, str, str | None]]:
    """What each answer comes to."""
    answers: dict[int, Completion] = defaultdict(Completion)
    for chunk in chunks:
        answers[chunk.index].add(chunk)
    return {i: (a.ids, a.text, a.reasoning, a.finish_reason) for i, a in answers.items()}


def test_the_engine_is_made_once_however_many_threads_ask_first(artifact: Path) -> None:
    model, gate = deepmnn.load(artifact, "reference"), Barrier(8)

    def first(_: int) -> int:
        gate.wait()
        return id(model.engine)

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(first, range(8)))) == 1


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


def test_stop_strings_end_the_answer(model: LLM) -> None:
    params = SamplingParams(max_tokens=40, ignore_eos=True)
    full = model.generate("go on", params)
    stop = next(c for c in full.text if c not in "\ufffd" and full.text.index(c) > 3)
    cut = model.generate("go on", SamplingParams(max_tokens=40, ignore_eos=True, stop=stop))
    assert cut.finish_reason == "stop"
    assert cut.text == full.text[: full.text.index(stop)]
    assert cut.completion_tokens < full.completion_tokens


def test_impossible_prompts(model: LLM) -> None:
    impossible = ([], 5, [[]], [1.5], [[1], 2], None, [CHAT, 3], [-1], [10_000], CHAT[0], b"ab")
    for prompt in impossible:
        with pytest.raises(RequestError):
            model.generate(prompt)
        with pytest.raises(RequestError):
            model.stream(prompt)
    with pytest.raises(RequestError, match="SamplingParams"):
        model.generate(IDS, {"temperature": 1.0})
    for length in (192, 500):
        with pytest.raises(ContextLengthError, match="192") as caught:
            model.generate([1] * length)
        assert "cache_tokens" not in str(caught.value), "the context is full, not the cache"
    with pytest.raises(ContextLengthError):
        model.logits([1] * 193)
    with pytest.raises(RequestError):
        model.logits([])
    assert not model.engine.scheduler.busy


def test_an_answer_ends_where_the_context_does(model: LLM) -> None:
    answer = model.generate([1] * 180, SamplingParams(ignore_eos=True))
    assert (answer.completion_tokens, answer.finish_reason) == (12, "length")


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
        {"kv_dtype": None},
        {"threads": True},
        {"cache_tokens": 2.0},
        {"max_batch_tokens": None},
        {"max_sequences": 1 << 31},
        {"mnn": {"memory": "low"}},
        {"numa": "near"},
        {"numa": None},
        {"isa": 2},
        {"mla_form": "folded"},
        {"mla_form": ["auto"]},
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
}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"backend": "reference", "numa": "isolate"}, "backend 'cpu'"),
        ({"backend": "reference", "isa": "avx2"}, "backend 'cpu'"),
        ({"backend": "mnn", "numa": "distribute"}, "backend 'cpu'"),
        ({"backend": "mnn", "isa": "scalar"}, "backend 'cpu'"),
        ({"backend": "mnn", "mla_form": "absorbed"}, "backend 'cpu' or backend 'reference'"),
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
    for own in ("path", "options", "progress"):
        del arguments[own]
    taken = {name: (p.annotation, p.default) for name, p in arguments.items()}
    declared = {f.name: (f.type, f.default) for f in dataclasses.fields(LoadOptions)}
    assert taken == declared
    assert set(EXPECTED) == set(declared)


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


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_both_forms_of_latent_attention_give_the_same(artifact: Path, backend: str) -> None:
    expanded, absorbed = (
        deepmnn.load(artifact, backend, mla_form=form).logits(IDS)
        for form in ("expanded", "absorbed")
    )
    close(absorbed, expanded)
    assert (absorbed != expanded).any(), "they round differently"


def test_bf16_cache_is_close(artifact: Path) -> None:
    wanted = deepmnn.load(artifact, "reference").logits(IDS)
    for backend in ("reference", "cpu"):
        model = deepmnn.load(artifact, backend, kv_dtype="bf16")
        got = model.logits(IDS)
        assert model.kv_bytes_per_token == 2 * 2 * (18 + 6)
        assert 0 < np.abs(got - wanted).max() < 0.05 * np.abs(wanted).max()


def test_int8_cache_is_close(artifact: Path) -> None:
    wanted = deepmnn.load(artifact, "reference").logits(IDS)
    for backend in ("reference", "cpu"):
        model = deepmnn.load(artifact, backend, kv_dtype="int8")
        got = model.logits(IDS)
        assert model.kv_bytes_per_token == 51
        assert 0 < np.abs(got - wanted).max() < 0.05 * np.abs(wanted).max()


def test_wrong_directories(artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="convert"):
        deepmnn.load(artifact.parent / "source")
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ArtifactError):
            deepmnn.load(path)


def test_without_a_tokenizer_token_ids_still_work(tmp_path: Path) -> None:
    model = deepmnn.load(tiny_artifact(tmp_path, tokenizer=False), "reference")
    answer = model.generate(IDS, SamplingParams(max_tokens=3))
    assert len(answer.ids) == 3
    assert answer.text == ""
    for call in (lambda: model.generate("hi"), lambda: model.generate(CHAT)):
        with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
            call()
    with pytest.raises(TokenizerError):
        model.generate(IDS, SamplingParams(stop="x"))


@pytest.mark.parametrize(
    ("content", "eos_ids", "params"),
    [
        ({"eos_token_id": [3, 4]}, {3, 4}, SamplingParams()),
        ({"eos_token_id": 7, "temperature": 0.6}, {7}, SamplingParams()),
        (
            {"do_sample": True, "temperature": 0.6, "top_p": 0.95},
            {1},
            SamplingParams(temperature=0.6, top_p=0.95),
        ),
        ({"do_sample": True}, {1}, SamplingParams(temperature=1.0)),
    ],
    ids=range(4),
)
def test_generation_config(
    artifact: Path, tmp_path: Path, content: Any, eos_ids: set[int], params: SamplingParams
) -> None:
    found = read_generation_config(artifact, tmp_path, json.dumps(content))
    assert (found.eos_ids, found.params) == (eos_ids, params)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"eos_token_id": "x"}', '{"do_sample": true, "top_p": 7}']
)
def test_malformed_generation_config(artifact: Path, tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError):
        read_generation_config(artifact, tmp_path, text)


def read_generation_config(artifact: Path, tmp_path: Path, text: str) -> Any:
    from deepmnn.text.generation_config import GenerationConfig

    shutil.copy(artifact / "config.json", tmp_path)
    (tmp_path / "generation_config.json").write_text(text)
    return GenerationConfig.read(tmp_path, json.loads((tmp_path / "config.json").read_text()))
