"""From prompts, as callers hand them over, to the engine's requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from deepmnn.api.chat import Chat
from deepmnn.api.prompts import Prompt, read_prompts
from deepmnn.engine.request import Event, Request
from deepmnn.engine.sequence import Sequence as Answer
from deepmnn.errors import RequestError, shown
from deepmnn.text.reasoning import CLOSE, OPEN
from deepmnn.text.sampling_params import SamplingParams
from deepmnn.text.stream import TextStream

if TYPE_CHECKING:
    from deepmnn.api.llm import LLM
    from deepmnn.engine.engine import Engine

Params = SamplingParams | Sequence[SamplingParams] | None
"""For all prompts, or one for each; None is what generation_config.json recommends."""

_TAIL = 16
"""So many tokens at a prompt's end say whether it has opened the reasoning."""


@dataclass(frozen=True)
class Asked:
    """A prompt, checked and tokenised, and what is wanted of it."""

    ids: list[int]
    params: SamplingParams


def ask(model: LLM, prompts: object, params: Params) -> tuple[bool, list[Asked]]:
    """(whether it is a single prompt, all as the engine takes them).

    Raises RequestError, ContextLengthError or TokenizerError.
    """
    single, read = read_prompts(prompts)
    wanted = _params(model, params, len(read))
    if any(each.stop for each in wanted):
        model.tokenizer  # noqa: B018  # raises when there is none
    engine = model.driver.engine
    asked = []
    for prompt, each in zip(read, wanted, strict=True):
        asked.append(Asked(engine.check(encode(model, prompt, engine)), each))
    return single, asked


def requests(
    model: LLM,
    asked: Asked,
    deliver: Callable[[Event], object],
    index: int = 0,
    *,
    whole: bool = False,
) -> Iterator[Request]:
    """One request for each of the n answers to a prompt; see `Request`."""
    first = model.driver.engine.sequence(asked.ids, asked.params, _output(model, asked))
    yield Request(first, deliver, index, 0, whole=whole)
    for number in range(1, asked.params.n):
        sibling: Answer = first.sibling(number, _output(model, asked))
        yield Request(sibling, deliver, index, number, whole=whole)


def encode(model: LLM, prompt: Prompt, engine: Engine | None = None) -> Sequence[int]:
    """The token ids; with an engine, a text that it can not take is not tokenised first."""
    if isinstance(prompt, str):
        _check_length(model, prompt, engine)
        return model.tokenizer.encode(prompt)
    if not isinstance(prompt, Chat):
        return cast(Sequence[int], prompt)
    # Templates leave out nothing that the user says; of other messages they may.
    said = [m.get("content") for m in prompt.messages if m.get("role") == "user"]
    _check_length(model, "".join(t.strip() for t in said if isinstance(t, str)), engine)
    text = _rendered(model, prompt)
    _check_length(model, text, engine)
    return model.tokenizer.encode(text, add_special_tokens=False)


def _rendered(model: LLM, chat: Chat) -> str:
    """The prompt's text, up to where the answer begins."""
    names = dict(chat.variables)
    if chat.thinking is not None:  # DeepSeek's name, and Qwen's
        names = {"thinking": chat.thinking, "enable_thinking": chat.thinking} | names
    if chat.offered:
        names["tools"] = chat.offered
    text = model.tokenizer.apply_chat_template(chat.messages, **names)
    if chat.thinking is False and _opens_reasoning(text):
        text = f"{text.rstrip()}\n\n{CLOSE}\n\n"
    return text


def _opens_reasoning(text: str) -> bool:
    return text.rstrip().endswith(OPEN)


def _params(model: LLM, params: Params, prompts: int) -> list[SamplingParams]:
    """One for each prompt. Raises RequestError."""
    given = model.generation_config.params if params is None else params
    if isinstance(given, SamplingParams):
        return [given] * prompts
    if not isinstance(given, list | tuple) or not all(
        isinstance(each, SamplingParams) for each in given
    ):
        raise RequestError(
            f"the parameters are {shown(given)}", "deepmnn.SamplingParams, or a list of them"
        )
    if len(given) != prompts:
        raise RequestError(
            f"there are {len(given)} SamplingParams for {prompts} prompts", "one for each"
        )
    return list(given)


def _check_length(model: LLM, text: str, engine: Engine | None) -> None:
    """Raises ContextLengthError when the text surely has too many tokens."""
    if engine is None or len(text) < engine.context_length:
        return
    least = model.tokenizer.least_tokens(text)
    if least >= engine.context_length:
        raise engine.too_long(f"the prompt has at least {least:,} tokens")


def _output(model: LLM, asked: Asked) -> TextStream | None:
    """The text side of a request; None without a tokenizer, which only token ids can do."""
    if not model.has_tokenizer and not asked.params.stop:
        return None
    tokenizer = model.tokenizer
    end = tokenizer.decode(asked.ids[-_TAIL:], skip_special_tokens=False)
    inside = None if asked.params.raw else _opens_reasoning(end)
    stop = cast(tuple[str, ...], asked.params.stop)
    return TextStream(tokenizer, stop, inside, model.end_ids)
