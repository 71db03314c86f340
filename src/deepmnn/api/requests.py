"""From prompts, as callers hand them over, to the engine's requests."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from deepmnn.api.chat import Chat
from deepmnn.api.prompts import Prompt, read_prompts
from deepmnn.engine.request import Event, Request
from deepmnn.engine.sequence import Sequence as Answer
from deepmnn.errors import RequestError, shown
from deepmnn.text.constraint import Constraint, json_answer
from deepmnn.text.reasoning import CLOSE, OPEN
from deepmnn.text.sampling_params import SamplingParams
from deepmnn.text.stream import TextStream
from deepmnn.text.tokenizer import Tokenizer
from deepmnn.text.tool_calls import ToolFormat, generic_format, tool_format
from deepmnn.text.tool_history import takes_tools, tool_messages, writes_calls
from deepmnn.text.tool_prompt import describe_tools, tell_tools

if TYPE_CHECKING:
    from deepmnn.api.llm import LLM
    from deepmnn.engine.engine import Engine

Params = SamplingParams | Sequence[SamplingParams] | None
"""For all prompts, or one for each; None is what generation_config.json recommends."""

_TAIL = 16
"""So many tokens at a prompt's end say whether it has opened the reasoning."""


@dataclass(frozen=True)
class Asked:
    """A prompt, checked and tokenised, and what is wanted of it.

    tools: how its answers call tools. constraint: what holds the first of them to a grammar.
    """

    ids: list[int]
    params: SamplingParams
    tools: ToolFormat | None
    constraint: Constraint | None


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
        ids = engine.check(encode(model, prompt, engine))
        chat = prompt if isinstance(prompt, Chat) else None
        tools = _format(model.tokenizer) if chat is not None and chat.offered else None
        asked.append(Asked(ids, each, tools, _constraint(model, chat, tools, ids, each)))
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
    engine, output = model.driver.engine, _output(model, asked)
    first = engine.sequence(asked.ids, asked.params, output, asked.constraint)
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
    messages = chat.messages
    if chat.offered or any(m.get("tool_calls") or m.get("role") == "tool" for m in messages):
        form = _own_format(model.tokenizer)
        if form is None:
            messages = tell_tools(messages, chat.offered)
        else:
            messages = tool_messages(model.tokenizer, messages)
            if chat.offered and takes_tools(model.tokenizer):
                names["tools"] = chat.offered
            elif chat.offered:
                messages = describe_tools(messages, chat.offered, form)
    text = model.tokenizer.apply_chat_template(messages, **names)
    if chat.thinking is False and _opens_reasoning(text):
        text = f"{text.rstrip()}\n\n{CLOSE}\n\n"
    return text


def _format(tokenizer: Tokenizer) -> ToolFormat:
    """How answers call tools: as the model's template says, or as its messages tell it to."""
    return _own_format(tokenizer) or generic_format(tokenizer)


def _own_format(tokenizer: Tokenizer) -> ToolFormat | None:
    """The template's; None where it writes no calls, or writes them in a way that is not read."""
    found = tool_format(tokenizer)
    return found if found is not None and writes_calls(tokenizer) else None


def _constraint(
    model: LLM, chat: Chat | None, tools: ToolFormat | None, ids: list[int], params: SamplingParams
) -> Constraint | None:
    """What holds an answer to the calls or the schema that are wanted, if any are.

    Where a schema is wanted and tools are offered, the answer may be either.
    """
    schema = params.json_schema
    demanded = chat.demanded if chat is not None else []
    if schema is None and not demanded:
        return None
    grammars, answers = model.grammars, []
    callable = demanded or (chat.offered if chat is not None else [])
    if tools is not None and chat is not None and callable:
        parallel = chat.parallel_tool_calls
        answers.append(tools.grammar(callable, grammars.marker, parallel=parallel))
    if schema is not None and not demanded:
        answers.append(json_answer(schema))
    return grammars.constraint(_either(answers), _inside_reasoning(model, ids, params))


def _either(answers: list[str]) -> str:
    """A grammar whose rule `answer` is that of one of these."""
    if len(answers) == 1:
        return answers[0]
    renamed = [
        re.sub(r"^answer\b", f"answer_{number}", text, count=1, flags=re.M)
        for number, text in enumerate(answers)
    ]
    any_of = " | ".join(f"answer_{number}" for number in range(len(answers)))
    return "\n".join([f"answer: {any_of}", *renamed])


def _inside_reasoning(model: LLM, ids: list[int], params: SamplingParams) -> bool | None:
    """Whether a prompt has opened the reasoning; None where that is not told apart."""
    if not params.split_reasoning:
        return None
    return _opens_reasoning(model.tokenizer.decode(ids[-_TAIL:], skip_special_tokens=False))


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
    inside = _inside_reasoning(model, asked.ids, asked.params)
    stop = cast(tuple[str, ...], asked.params.stop)
    return TextStream(model.tokenizer, stop, inside, model.end_ids, asked.tools)
