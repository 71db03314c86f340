"""The model as an event loop asks it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager

import pytest

import deepmnn
from deepmnn.cli.options import bundled
from deepmnn.engine.completion import Completion
from deepmnn.errors import ContextLengthError, OverloadedError, RequestError
from deepmnn.serve.service import Answer, Service
from deepmnn.text.sampling_params import SamplingParams

QUESTION = [{"role": "user", "content": "What is 12 + 30?"}]


@pytest.fixture(scope="module")
def model() -> deepmnn.LLM:
    return deepmnn.load(bundled(), threads=1, max_sequences=4)


@asynccontextmanager
async def serving(model: deepmnn.LLM, **limits: int) -> AsyncIterator[Service]:
    service = Service(model, "tiny-r1", **limits)
    try:
        yield service
    finally:
        service.close()


async def whole(answer: Answer) -> list[Completion]:
    made: dict[int, Completion] = {}
    async for chunk in answer:
        made.setdefault(chunk.choice, Completion()).add(chunk)
    return [made[choice] for choice in sorted(made)]


def run(work: Callable[[], Coroutine[None, None, None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), 60))


async def until_idle(service: Service) -> None:
    while service.active:
        await asyncio.sleep(0.001)


def test_answers_are_those_of_generate(model: deepmnn.LLM) -> None:
    params = [SamplingParams(max_tokens=count, n=1 + count % 2) for count in (20, 31, 40, 11, 60)]
    expected = model.generate([QUESTION] * len(params), params)

    async def work() -> None:
        async with serving(model) as service:
            answers = [await service.ask(QUESTION, each) for each in params]
            found = await asyncio.gather(*map(whole, answers))
            for made, given in zip(found, expected, strict=True):
                one = given if isinstance(given, list) else [given]
                assert [each.text for each in made] == [each.text for each in one]
                assert [each.ids for each in made] == [each.ids for each in one]
            assert service.active == 0
            endless = await service.ask(QUESTION, SamplingParams(ignore_eos=True))
            service.cancel_all()
            assert [made.finish_reason for made in await whole(endless)] == ["cancelled"]

    run(work)


def test_an_answer_that_nobody_wants_is_gone_before_the_next_step(model: deepmnn.LLM) -> None:
    async def work() -> None:
        async with serving(model) as service:
            answer = await service.ask(QUESTION, SamplingParams(ignore_eos=True, n=3))
            first = await anext(answer)
            assert first.finish_reason is None
            answer.cancel()
            answer.cancel()
            # The driver does what is asked of it in turn, between two steps.
            assert model.driver.run(lambda engine: not engine.scheduler.busy)
            assert [made.finish_reason for made in await whole(answer)] == ["cancelled"] * 3
            assert service.active == 0

    run(work)


def test_a_full_queue_refuses_and_takes_again(model: deepmnn.LLM) -> None:
    async def work() -> None:
        async with serving(model, max_queue=2) as service:
            endless = SamplingParams(ignore_eos=True)
            asked = [await service.ask(QUESTION, endless) for _ in range(6)]
            with pytest.raises(OverloadedError, match=r"6 answers .* at most 6"):
                await service.ask(QUESTION, endless)
            asked[0].cancel()
            while service.active == 6:
                await asyncio.sleep(0.001)
            with pytest.raises(OverloadedError):
                await service.ask(QUESTION, SamplingParams(n=2))
            last = await service.ask(QUESTION, SamplingParams(max_tokens=3))
            for answer in asked:
                answer.cancel()
            (made,) = await whole(last)
            assert made.finish_reason == "length"
            await until_idle(service)

    run(work)


def test_what_is_refused_takes_no_place(model: deepmnn.LLM) -> None:
    async def work() -> None:
        async with serving(model) as service:
            with pytest.raises(RequestError, match="empty"):
                await service.ask([], SamplingParams())
            with pytest.raises(ContextLengthError):
                await service.ask("one " * 5000, SamplingParams())
            waiting = asyncio.ensure_future(service.ask(QUESTION, SamplingParams(ignore_eos=True)))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert service.active == 0

    run(work)


def test_tokens(model: deepmnn.LLM) -> None:
    async def work() -> None:
        async with serving(model) as service:
            assert await service.tokens("12 + 30") == model.encode("12 + 30")
            assert await service.tokens(deepmnn.Chat(QUESTION)) == model.encode(QUESTION)

    run(work)


@pytest.mark.parametrize("text", ["What is 12 + 30?", ""])
def test_thinking_can_be_closed(model: deepmnn.LLM, text: str) -> None:
    chat = [{"role": "user", "content": text}]
    opened = model.tokenizer.decode(model.encode(chat), skip_special_tokens=False)
    closed = model.encode(deepmnn.Chat(chat, thinking=False))
    assert opened.endswith("<think>\n")
    assert model.tokenizer.decode(closed, skip_special_tokens=False) == (
        opened.rstrip() + "\n\n</think>\n\n"
    )
    assert model.encode(deepmnn.Chat(chat, thinking=True)) == model.encode(chat)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tool_choice": "any"}, "tool_choice is 'any'; expected 'auto' or 'none' or 'required'"),
        ({"tool_choice": "required"}, "there are no tools"),
        ({"tools": [{"name": "add"}]}, "tool 0 is"),
        ({"tools": [{"function": {"name": ""}}]}, "tool 0 is"),
        ({"tools": [{"function": {"name": "add", "parameters": "x"}}]}, "the parameters of 'add'"),
        ({"tools": [{"function": {"name": "add"}}] * 2}, "two tools have the name 'add'"),
        (
            {"tools": [{"function": {"name": "add"}}], "tool_name": "sub"},
            r"the tool 'sub' must be called; expected one of \['add'\]",
        ),
    ],
)
def test_an_impossible_chat_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        deepmnn.Chat(QUESTION, **fields)  # type: ignore[arg-type]
