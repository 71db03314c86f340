"""Grammars of tool calls: llguidance takes them, and what follows them is calls that fit."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from deepmnn.errors import RequestError
from deepmnn.text.tokenizer import Tokenizer
from deepmnn.text.tool_calls import ToolCall, ToolFormat, tool_format
from deepmnn.text.tool_calls.call import add_deltas
from deepmnn.text.tool_calls.deepseek import CALLS_END, END
from deepmnn.text.tool_calls.dsml import DsmlFormat
from deepmnn.text.tool_history import tool_messages
from tool_templates import behind_assistant, tool_tokenizer

llguidance = pytest.importorskip("llguidance")
llguidance_numpy = pytest.importorskip("llguidance.numpy")

EMPTY = {"type": "object", "properties": {}, "additionalProperties": False}
WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer", "minimum": 0, "maximum": 14},
        "unit": {"type": "string", "enum": ["°C", '"F"']},
    },
    "required": ["city", "unit"],
    "additionalProperties": False,
}
PLACES = {
    "type": "object",
    "properties": {
        "places": {"type": "array", "items": {"$ref": "#/$defs/place"}, "maxItems": 2},
        "code": {"type": "string", "maxLength": 3},
        "level": {"const": "high", "type": "string"},
    },
    "required": ["places"],
    "additionalProperties": False,
    "$defs": {"place": {"type": "object", "properties": {"x": {"type": ["number", "null"]}}}},
}
EITHER = {
    "anyOf": [{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}]
}
SCHEMAS: dict[str, dict[str, Any]] = {
    "get_weather": WEATHER,
    "now": EMPTY,
    "places": PLACES,
    "either": EITHER,
}


def tool(name: str) -> dict[str, Any]:
    function = {"name": name, "parameters": SCHEMAS[name]}
    return {"type": "function", "function": function}


TOOLS = [tool(name) for name in SCHEMAS]


class Model:
    """A tokenizer with a published template, its format and llguidance's view of it."""

    def __init__(self, directory: Path, template: str, *, special: bool) -> None:
        self.tokenizer = tool_tokenizer(directory, template, special=special)
        form = tool_format(self.tokenizer)
        assert form is not None
        self.form: ToolFormat = form
        self.eos = self.tokenizer.library.token_to_id("<｜end▁of▁sentence｜>")
        self.tokens = llguidance.LLTokenizer(
            self.tokenizer.library.to_str(), n_vocab=self.tokenizer.vocab_size, eos_token=self.eos
        )

    def marker(self, text: str) -> str:
        token = self.tokenizer.token_id(text)
        return json.dumps(text, ensure_ascii=False) if token is None else f"<[{token}]>"

    def matcher(self, tools: list[dict[str, Any]], *, parallel: bool) -> Any:
        lark = "start: answer\n" + self.form.grammar(tools, self.marker, parallel=parallel)
        grammar = llguidance.LLMatcher.grammar_from_lark(lark)
        assert not llguidance.LLMatcher.validate_grammar(grammar, self.tokens), lark
        return llguidance.LLMatcher(self.tokens, grammar)

    def accepts(self, matcher: Any, text: str) -> bool:
        """Whether a whole answer follows the grammar."""
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()

    def calls(self, text: str) -> tuple[str, list[ToolCall]]:
        splitter, said, calls = self.form.splitter(), "", list[ToolCall]()
        for delta in [*map(splitter.push, text), splitter.flush()]:
            said += delta[0]
            add_deltas(calls, delta[1])
        return said, calls


MODELS = {
    "r1": True,
    "v3.1": False,
    "v3.2": True,
    "v4": False,
    "v4.1": True,
    "qwen3": False,
}
"""Whether their markers are special tokens, too."""


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    directory = tmp_path_factory.mktemp("model")
    return Model(directory, request.param, special=MODELS[request.param])


def walk(model: Model, matcher: Any, rng: random.Random) -> Iterator[int]:
    """Random tokens that the grammar allows; those that end something more often."""
    import numpy as np

    mask = llguidance_numpy.allocate_token_bitmask(1, model.tokens.vocab_size)
    ending = {model.eos, *(model.tokenizer.token_id(char) for char in '"}]<')}
    while not matcher.is_stopped():
        llguidance_numpy.fill_next_token_bitmask(matcher, mask)
        bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
        allowed = np.flatnonzero(bits).tolist()
        likely = [token for token in allowed if token in ending]
        token = rng.choice(likely if likely and rng.random() < 0.4 else allowed)
        matcher.consume_token(token)
        yield token


@pytest.mark.parametrize("parallel", [False, True], ids=["one", "several"])
def test_what_follows_the_grammar_is_calls_that_fit(model: Model, parallel: bool) -> None:
    rng, ended = random.Random(0), 0
    matcher = model.matcher(TOOLS, parallel=parallel)
    for _ in range(5):
        matcher.reset()
        ids: list[int] = []
        for token in walk(model, matcher, rng):
            ids.append(token)
            if len(ids) > 400:
                break
        assert not matcher.is_error()
        if not matcher.is_stopped():  # a random text need not find its end
            continue
        ended += 1
        said, calls = model.calls(model.tokenizer.decode(ids[:-1], skip_special_tokens=False))
        assert said == ""
        assert calls if parallel else len(calls) == 1
        for call in calls:
            jsonschema.validate(json.loads(call.arguments), SCHEMAS[call.name])
    assert ended


def test_what_templates_write_follows_the_grammar(model: Model) -> None:
    calls = [
        ("get_weather", {"city": 'Zürich </b> "', "days": 3, "unit": '"F"'}),
        ("now", {}),
    ]
    places = ("places", {"places": [{"x": 1.5}, {}], "code": "a\\b", "level": "high"})
    for chosen, parallel, expected in (
        (calls, True, True),
        (calls, False, False),
        (calls[:1], False, True),
        # In DSML, text that a schema restricts comes as JSON.
        ([places], False, not isinstance(model.form, DsmlFormat)),
        ([("get_weather", {"city": "Bern"})], True, False),
        ([("get_weather", {"city": "Bern", "unit": "K"})], True, False),
        ([("other", {})], True, False),
    ):
        matcher = model.matcher(TOOLS, parallel=parallel)
        text = written(model.tokenizer, chosen)
        assert model.accepts(matcher, text) == expected, text


def written(tokenizer: Tokenizer, calls: list[tuple[str, dict[str, Any]]]) -> str:
    """Calls as the model's template writes them."""
    made = [
        {"id": f"{i}", "function": {"name": name, "arguments": arguments}}
        for i, (name, arguments) in enumerate(calls)
    ]
    chat = [{"role": "user", "content": "Q"}, {"role": "assistant", "tool_calls": made}]
    text = tokenizer.apply_chat_template(
        tool_messages(tokenizer, chat), add_generation_prompt=False
    )
    text = behind_assistant(text).strip()
    # R1's template forgets the end of the block where there is one call.
    return text + CALLS_END if text.endswith(END) else text


def test_text_of_dsml_may_hold_what_looks_like_an_end(tmp_path: Path) -> None:
    for special in (False, True):
        model = Model(tmp_path / f"{special}", "v3.2", special=special)
        said = "<p>a</p></｜DSML</｜DSML｜param" if not special else "<p>a</p></</"
        text = written(model.tokenizer, [("get_weather", {"city": said, "unit": "°C"})])
        assert model.accepts(model.matcher(TOOLS, parallel=False), text)
        assert json.loads(model.calls(text)[1][0].arguments)["city"] == said


@pytest.mark.parametrize(
    "tools",
    [
        [],
        ["now"],
        [{"type": "web_search"}],
        [{"type": "function", "function": {"name": ""}}],
        [{"type": "function", "function": {"name": 'f">\n'}}],
        [{"type": "function", "function": {"name": "f", "parameters": "none"}}],
        [{"type": "function", "function": {"name": "f", "parameters": {"type": "string"}}}],
    ],
)
def test_what_is_no_tool_is_refused(tools: list[Any], tmp_path: Path) -> None:
    model = Model(tmp_path, "qwen3", special=False)
    with pytest.raises(RequestError):
        model.form.grammar(tools, model.marker, parallel=True)


def test_a_tool_without_parameters_takes_none(tmp_path: Path) -> None:
    for template in ("v3.1", "v4", "qwen3"):
        model = Model(tmp_path / template, template, special=False)
        bare = {"type": "function", "function": {"name": "now"}}
        for arguments, expected in (({}, True), ({"a": 1}, False)):
            matcher = model.matcher([bare], parallel=False)
            text = written(model.tokenizer, [("now", arguments)])
            assert model.accepts(matcher, text) == expected


ODD = [
    {},
    {"type": "object"},
    {"type": "object", "properties": {"a": {"$ref": "#"}}},
    {"type": "object", "properties": {"a": {"$ref": "#/properties/b"}, "b": {"type": "null"}}},
    {"type": "object", "properties": {"a": True, "b": False}},
    {"type": "object", "properties": {"a": {}}, "required": 5},
    {"type": "object", "properties": {"a": {}}, "required": [{}]},
    {"type": "object", "properties": {"a": {}}, "required": ["b"]},
    {"type": "object", "properties": [1]},
    {"type": "object", "properties": {'a"b': {"type": "string"}, "｜DSML｜": {}}},
    {"type": "object", "properties": {"a": {"type": "string", "enum": []}}},
    {"type": "object", "properties": {"a": {"type": "string", "enum": ["</｜DSML｜", 5]}}},
    {"type": "object", "properties": {"a": {"type": "string", "enum": 5}}},
    {"type": "object", "properties": {"a": {"type": "string", "const": None}}},
    {"type": "object", "properties": {"a": {"type": "no such type"}}},
    {"type": "object", "properties": {"\u2028\n": {"type": "string", "pattern": "("}}},
    {"type": "object", "additionalProperties": {"type": "integer"}},
    {"oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
]


@pytest.mark.parametrize("schema", ODD, ids=str)
def test_odd_schemas_are_done_or_refused(schema: dict[str, Any], model: Model) -> None:
    """A grammar that llguidance refuses, `Grammars` refuses; nothing else may happen."""
    odd = {"type": "function", "function": {"name": "odd", "parameters": schema}}
    lark = "start: answer\n" + model.form.grammar([odd], model.marker, parallel=False)
    grammar = llguidance.LLMatcher.grammar_from_lark(lark)
    if llguidance.LLMatcher.validate_grammar(grammar, model.tokens):
        return
    matcher, rng = llguidance.LLMatcher(model.tokens, grammar), random.Random(0)
    ids: list[int] = []
    for token in walk(model, matcher, rng):
        ids.append(token)
        if len(ids) > 200:
            return
    if matcher.is_error():  # nothing satisfies the schema
        return
    text = model.tokenizer.decode(ids[:-1], skip_special_tokens=False)
    said, calls = model.calls(text)
    assert said == ""
    (call,) = calls
    jsonschema.validate(json.loads(call.arguments), {"type": "object", **schema})
