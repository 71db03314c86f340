"""Prompts as callers and other libraries hand them over: one meaning is taken, all else refused."""

from __future__ import annotations

import array
import enum
import itertools
from collections import UserDict, UserList, deque
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from deepmnn import LLM, SamplingParams
from deepmnn.api.chat import Chat
from deepmnn.errors import ContextLengthError, RequestError
from deepmnn.text.tool_calls import tool_format
from deepmnn.text.tool_prompt import describe_tools, tell_tools
from tiny_llm import CHAT, IDS

FIVE = SamplingParams(max_tokens=5, ignore_eos=True)


class Named(enum.IntEnum):
    FIVE = 5


class Word(enum.StrEnum):
    HELLO = "hello"


class Text(str):
    """A string that says something else than it is."""

    def __str__(self) -> str:
        return "not this"


class OtherTensor:
    """Of a library that only speaks numpy's protocol."""

    def __init__(self, values: Any) -> None:
        self.values = values

    def __array__(self, *_: Any, **__: Any) -> Any:
        return np.asarray(self.values)


class Model:
    """A message as pydantic makes them: iterable, without a length."""

    def model_dump(self) -> dict[str, str]:
        return CHAT[0]

    def __iter__(self) -> Any:
        return iter(CHAT[0].items())


TOKEN_IDS = {
    "list": list,
    "tuple": tuple,
    "deque": deque,
    "UserList": UserList,
    "array of Python": lambda ids: array.array("q", ids),
    "numpy": np.array,
    "numpy uint16": lambda ids: np.array(ids, np.uint16),
    "numpy objects": lambda ids: np.array(ids, object),
    "list of numpy integers": lambda ids: list(np.array(ids, np.int32)),
    "list of arrays without dimensions": lambda ids: [np.array(i) for i in ids],
    "torch": torch.tensor,
    "torch, every second": lambda ids: torch.tensor(np.repeat(ids, 2))[::2].int(),
    "list of torch numbers": lambda ids: list(torch.tensor(ids)),
    "numpy's protocol": OtherTensor,
    "enum": lambda ids: [Named(5), *ids[1:]],
    "dict": lambda ids: {"input_ids": ids},
    "dict with mask": lambda ids: {"input_ids": [0, 0, *ids], "attention_mask": [0, 0] + [1] * 12},
    "UserDict of tensors": lambda ids: UserDict(
        input_ids=torch.tensor([*ids, 2]), attention_mask=torch.tensor([True] * 12 + [False])
    ),
}


@pytest.mark.parametrize("kind", TOKEN_IDS)
def test_token_ids_of_any_library(model: LLM, kind: str) -> None:
    made: Any = TOKEN_IDS[kind](IDS)  # type: ignore[operator]
    assert model.generate(made, FIVE).ids == model.generate(IDS, FIVE).ids
    assert model.encode(made) == IDS
    assert set(map(type, model.encode(made))) == {int}
    (alone,) = model.generate([made], FIVE)
    assert alone.ids == model.generate(IDS, FIVE).ids
    if "dict" not in kind.lower():
        np.testing.assert_array_equal(model.logits(made), model.logits(IDS))
        with model.session() as session:
            session.prefill(made)
            session.decode(made[0] if hasattr(made, "__getitem__") else 5)
            session.rollback(np.int64(12))
            assert session.ids == IDS


def test_a_range_is_token_ids(model: LLM) -> None:
    assert model.generate(range(3, 9), FIVE).ids == model.generate([3, 4, 5, 6, 7, 8], FIVE).ids
    with pytest.raises(ContextLengthError, match="1,000,000,000,000 tokens"):
        model.generate(range(10**12))
    for call in (model.logits, model.session().prefill):
        with pytest.raises(ContextLengthError):
            call(range(10**12))


MATRICES = {
    "lists": lambda rows: rows,
    "numpy": np.array,
    "torch": torch.tensor,
    "list of tensors": lambda rows: [torch.tensor(row) for row in rows],
    "tuple of arrays": lambda rows: tuple(map(np.array, rows)),
    "list of dicts": lambda rows: [{"input_ids": row} for row in rows],
}


@pytest.mark.parametrize("kind", MATRICES)
@pytest.mark.parametrize("rows", [[IDS], [IDS, IDS[::-1]]], ids=["one row", "two rows"])
def test_a_matrix_is_a_list_of_its_rows(model: LLM, kind: str, rows: list[list[int]]) -> None:
    given = model.generate(MATRICES[kind](rows), FIVE)  # type: ignore[operator]
    assert [each.ids for each in given] == [model.generate(row, FIVE).ids for row in rows]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("tensors", [None, "np", "pt"])
def test_what_a_hugging_face_tokenizer_returns(model: LLM, side: str, tensors: str | None) -> None:
    """Its padding is no part of a prompt."""
    theirs: Any = transformers.PreTrainedTokenizerFast.from_pretrained(model.path)
    theirs.padding_side = side
    texts = ["hello", "a longer prompt", "x"]
    batch = theirs(texts, padding=True, return_tensors=tensors)
    given = model.generate(batch, FIVE)
    wanted = [model.generate(theirs(text).input_ids, FIVE) for text in texts]
    assert [each.ids for each in given] == [each.ids for each in wanted]
    assert [each.prompt_tokens for each in given] == [5, 15, 1]
    one = theirs("hello", return_tensors=tensors)
    alone: Any = model.generate(one, FIVE)
    assert (alone if tensors is None else alone[0]).ids == given[0].ids
    chat = theirs.apply_chat_template(
        CHAT, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    (talked,) = model.generate(chat, FIVE)
    assert talked.ids == model.generate(CHAT, FIVE).ids


@pytest.mark.parametrize("text", [np.str_("hello"), Text("hello"), np.array("hello"), Word.HELLO])
def test_text_of_other_classes(model: LLM, text: Any) -> None:
    assert model.encode(text) == model.encode("hello")
    assert model.generate(text, FIVE).ids == model.generate("hello", FIVE).ids


def test_texts_in_an_array_are_a_batch(model: LLM) -> None:
    texts = ["hello", "a"]
    for made in (np.array(texts), tuple(texts), deque(texts), np.array(texts, object)):
        given = model.generate(made, FIVE)
        assert [each.ids for each in given] == [model.generate(t, FIVE).ids for t in texts]


PARTS = [{"type": "text", "text": "What is"}, {"type": "text", "text": "2 + 2?"}]


@pytest.mark.parametrize(
    ("messages", "plain"),
    [
        ([{"role": "user", "content": PARTS[:1]}], "What is"),
        ([{"role": "user", "content": PARTS}], "What is\n2 + 2?"),
        ([{"role": "user", "content": tuple(PARTS)}], "What is\n2 + 2?"),
        ([{"role": "user", "content": ["What is", PARTS[1]]}], "What is\n2 + 2?"),
        ([UserDict(role="user", content="What is")], "What is"),
        (({"role": "user", "content": "What is"},), "What is"),
    ],
    ids=range(6),
)
def test_conversations(model: LLM, messages: Any, plain: str) -> None:
    wanted = model.encode([{"role": "user", "content": plain}])
    assert model.encode(messages) == wanted
    assert model.generate(messages, FIVE).prompt_tokens == len(wanted)
    (alone,) = model.generate([messages], FIVE)
    assert alone.prompt_tokens == len(wanted)


CALL = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
CALLED = [
    *CHAT,
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "4"},
]
TOOLS = [{"type": "function", "function": {"name": "f"}}]


def test_calls_are_written_as_the_template_writes_them(model: LLM) -> None:
    """R1's knows calls, and no tools: those stand in the system message, with its own markers."""
    form = tool_format(model.tokenizer)
    assert form is not None
    assert model.encode(CALLED) == model.tokenizer.encode_chat(CALLED)
    told = describe_tools(CALLED, TOOLS, form)
    assert "<｜tool▁calls▁begin｜>" in told[0]["content"]
    assert model.encode(Chat(CALLED, TOOLS)) == model.tokenizer.encode_chat(told)
    assert model.encode(Chat(CALLED, TOOLS, tool_choice="none")) == model.encode(CALLED)


def test_calls_are_told_in_text_where_the_template_knows_none(
    model: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deepmnn.api.requests.tool_format", lambda tokenizer: None)
    assert model.encode(CALLED) == model.tokenizer.encode_chat(tell_tools(CALLED, []))
    told = tell_tools(CALLED, TOOLS)
    assert model.encode(Chat(CALLED, TOOLS)) == model.tokenizer.encode_chat(told)
    assert model.encode(Chat(CALLED, TOOLS, tool_choice="none")) == model.encode(CALLED)


IMPOSSIBLE: dict[str, Any] = {
    "nothing": None,
    "a number": 5,
    "empty": [],
    "an empty array": np.array([]),
    "an empty prompt in a list": [[]],
    "an empty tensor in a list": [torch.tensor([1]), torch.tensor([], dtype=torch.int64)],
    "floats": [1.5],
    "whole floats": [1.0, 2.0],
    "floats of numpy": np.array([1.0, 2.0]),
    "floats of torch": torch.tensor([1.0, 2.0]),
    "bfloat16": torch.tensor([[1.0, 2.0]]).bfloat16(),
    "booleans": [True, False],
    "a boolean among ids": [1, True],
    "numpy booleans": np.array([True, False]),
    "torch booleans": torch.tensor([True]),
    "a tensor without dimensions": torch.tensor(5),
    "a tensor without data": torch.empty(3, device="meta", dtype=torch.int64),
    "three dimensions": np.ones((1, 2, 3), int),
    "ids and lists": [[1], 2],
    "texts and ids": ["a", 2],
    "texts and messages": ["a", CHAT[0]],
    "conversations and ids": [CHAT, 3],
    "lists of texts": [["a", "b"]],
    "none in a list": [1, None],
    "negative": [-1],
    "too large": [10_000],
    "larger than 64 bits": [2**70],
    "of 5,000 digits": [10**5000],
    "one message": CHAT[0],
    "bytes": b"ab",
    "bytes in a list": [b"ab"],
    "a view of bytes": memoryview(b"ab"),
    "a set": {1, 2},
    "a generator": (i for i in (1, 2)),
    "an endless one": itertools.count(),
    "a generator in a list": [(i for i in (1, 2))],
    "keys": {"a": 1}.keys(),
    "a class": np.ndarray,
    "an object": object(),
    "an object of pydantic": Model(),
    "messages of pydantic": [Model()],
    "a message of pydantic among dicts": [CHAT[0], Model()],
    "pairs": [("user", "hello")],
    "an image": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
    "an image and text": [{"role": "user", "content": [*PARTS, {"type": "image"}]}],
    "a text part without text": [{"role": "user", "content": [{"type": "text"}]}],
    "content that is none": [{"role": "user", "content": None}],
    "content that is missing": [{"role": "user"}],
    "content that is a number": [{"role": "user", "content": 5}],
    "content that is bytes": [{"role": "user", "content": b"a"}],
    "a role that is missing": [{"content": "a"}],
    "a role that is a number": [{"role": 1, "content": "a"}],
    "another dict": [{"prompt": "hello"}],
    "a mask that is too short": {"input_ids": [1, 2, 3], "attention_mask": [1, 1]},
    "a mask of one number": {"input_ids": [1, 2, 3], "attention_mask": 1},
    "all masked": {"input_ids": [1, 2], "attention_mask": [0, 0]},
    "input_ids that are none": {"input_ids": None},
    "input_ids that are text": {"input_ids": "abc", "attention_mask": None, "role": "user"},
}


@pytest.mark.parametrize("kind", IMPOSSIBLE)
def test_impossible_prompts(model: LLM, kind: str) -> None:
    for call in (model.generate, model.stream):
        with pytest.raises(RequestError) as caught:
            call(IMPOSSIBLE[kind])
        assert len(str(caught.value)) < 500
        assert "\n" not in str(caught.value)
    assert not model.engine.scheduler.busy


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([Model()], "model_dump"),
        (CHAT[0], "Put a message into a list"),
        ((i for i in (1, 2)), "Make it a list"),
        (b"ab", "Decode it"),
        ([1, 2.5], "the prompt has the item 2.5"),
        ([[1, 2], [3, "a"]], "prompt 1"),
        ([-1], "token id -1 is outside the vocabulary; expected 0 to 270"),
        ([10_000], "token id 10000"),
        ([CHAT[0], {"role": "user", "content": [{"type": "image"}]}], "message 1"),
    ],
    ids=range(9),
)
def test_refusals_say_what_is_wrong(model: LLM, prompt: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        model.generate(prompt)


def test_a_prompt_that_fills_the_context_is_refused(model: LLM) -> None:
    for length in (192, 500):
        with pytest.raises(ContextLengthError, match="192") as caught:
            model.generate([1] * length)
        assert "cache_tokens" not in str(caught.value), "the context is full, not the cache"
    for text in ("x" * 400, CHAT * 20):
        with pytest.raises(ContextLengthError):
            model.generate(text)
    assert len(model.encode("x" * 400)) == 401, "to count tokens is no request"
    with pytest.raises(ContextLengthError):
        model.logits([1] * 193)
    with pytest.raises(RequestError):
        model.logits([])
    assert not model.engine.scheduler.busy


def test_what_a_mask_hides_is_not_there() -> None:
    from deepmnn.api.prompts import read_prompts

    nested = {"input_ids": [[9, 1, 2], torch.tensor([3, 9, 4])], "attention_mask": np.eye(3)[:2]}
    assert read_prompts(nested) == (False, [[9], [9]])
    assert read_prompts({"input_ids": (1, 2)}) == (True, [[1, 2]])
