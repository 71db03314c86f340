from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from byte_tokenizer import BOS, EOS, R1_TEMPLATE, write_tokenizer
from deepmnn.errors import RequestError, TokenizerError
from deepmnn.text.tokenizer import Tokenizer

CALL = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
USER = {"role": "user", "content": "What is 1 + 1?"}
CHATS: list[list[dict[str, Any]]] = [
    [USER],
    [{"role": "system", "content": "Be brief."}, USER],
    [
        USER,
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\n2"},
        {"role": "user", "content": "  And\n3 + 4 <b>&amp;</b> ñ 你好 🐋?  "},
    ],
    [USER, {"role": "assistant", "content": None, "tool_calls": [CALL, CALL]}],
    [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [CALL, CALL]},
        {"role": "tool", "content": "2"},
        {"role": "tool", "content": "3"},
    ],
    [USER, {"role": "tool", "content": "2"}, {"role": "assistant", "content": "It is 2."}, USER],
]
TEMPLATES = [
    R1_TEMPLATE,
    "{% for m in messages %}\n  {% if loop.first %}first\n  {% endif %}\n"
    "{{ m | tojson }}\n{% endfor %}",
    "{% for m in messages %}{% if m.role == 'tool' %}{% continue %}{% endif %}{{ m.role }};"
    "{% endfor %}{{ eos_token }}{{ unk_token }}{{ tools is none }}{{ flag is defined }}",
    "{% for m in messages %}{% generation %}{{ m['role'] }}{% endgeneration %}{% endfor %}",
    "{{ messages | tojson(indent=2) }}{{ messages[0]['content'][:4] | upper }}",
]


@pytest.mark.parametrize("template", TEMPLATES, ids=range(len(TEMPLATES)))
@pytest.mark.parametrize("chat", CHATS, ids=range(len(CHATS)))
def test_chat_template_is_rendered_as_transformers_does(
    tmp_path: Path, chat: list[dict[str, Any]], template: str
) -> None:
    transformers = pytest.importorskip("transformers")
    write_tokenizer(tmp_path, chat_template=template)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    ours = Tokenizer(tmp_path)
    # Not tokenizer.apply_chat_template: it drops content=None, which R1's tool calls ask for.
    render = transformers.utils.chat_template_utils.render_jinja_template
    names = {"chat_template": template, **theirs.special_tokens_map}
    for flag in (True, False):
        wanted = render(conversations=[chat], add_generation_prompt=flag, **names)[0][0]
        assert ours.apply_chat_template(chat, add_generation_prompt=flag) == wanted
        if all(message["content"] is not None for message in chat):
            ids = theirs.apply_chat_template(chat, add_generation_prompt=flag, return_dict=False)
            assert ours.encode_chat(chat, add_generation_prompt=flag) == ids


def test_template_variables_reach_the_template(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, chat_template="{{ thinking }}")
    assert Tokenizer(tmp_path).apply_chat_template([USER], thinking=False) == "False"


def test_chat_template_file_comes_first_and_named_templates_are_known(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "named"}]
    write_tokenizer(tmp_path, chat_template=named)
    assert Tokenizer(tmp_path).apply_chat_template([USER]) == "named"
    (tmp_path / "chat_template.jinja").write_text("file")
    assert Tokenizer(tmp_path).apply_chat_template([USER]) == "file"


@pytest.mark.parametrize(
    "template",
    [
        "{% if %}",
        "{{ messages[0].content.nothing.here }}",
        "{{ raise_exception('roles must alternate') }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{% for i in range(10**9) %}x{% endfor %}",
        "{{ 1 // 0 }}",
    ],
)
def test_a_bad_template_is_a_typed_error(tmp_path: Path, template: str) -> None:
    write_tokenizer(tmp_path, chat_template=template)
    with pytest.raises(TokenizerError):
        Tokenizer(tmp_path).apply_chat_template([USER])


@pytest.mark.parametrize(
    "messages",
    [[], "hello", [1], [{"content": "x"}], [{"role": 3}], [{"role": "user", "content": {1}}]],
)
def test_bad_messages_are_request_errors(tmp_path: Path, messages: Any) -> None:
    write_tokenizer(tmp_path)
    with pytest.raises(RequestError):
        Tokenizer(tmp_path).encode_chat(messages)


def test_text_goes_there_and_back(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    write_tokenizer(tmp_path, add_bos_token=None)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    ours = Tokenizer(tmp_path)
    for text in ("", "hello", f"{BOS}<｜User｜>hi<think>", "tabs\t\r\n 你好 🐋 \u200d"):
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == theirs.decode(
            theirs.encode(text), skip_special_tokens=True
        )
    assert ours.decode(ours.encode(BOS), skip_special_tokens=False) == BOS
    with pytest.raises(RequestError):
        ours.encode("lone surrogate \ud800")
    with pytest.raises(RequestError):
        ours.encode(7)
    with pytest.raises(RequestError):
        ours.decode([-1])


def test_add_bos_token_puts_it_in_front_once(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, add_bos_token=True)
    tokenizer = Tokenizer(tmp_path)
    bos = tokenizer.token_id(BOS)
    assert tokenizer.encode("a")[0] == bos
    assert tokenizer.encode(BOS + "a").count(bos) == 1
    assert bos not in tokenizer.encode("a", add_special_tokens=False)


@pytest.mark.parametrize("seed", range(20))
def test_detokenizer_adds_up_for_any_ids(tmp_path: Path, seed: int) -> None:
    """Random bytes are mostly not valid UTF-8; special tokens have no text."""
    write_tokenizer(tmp_path)
    tokenizer = Tokenizer(tmp_path)
    rng = random.Random(seed)
    ids = [rng.randrange(tokenizer.vocab_size) for _ in range(200)]
    ids += tokenizer.encode("naïve 你好 🐋", add_special_tokens=False)
    if seed % 2:
        ids += tokenizer.encode("🐋", add_special_tokens=False)[:-1]
    detokenizer = tokenizer.detokenizer()
    deltas = [detokenizer.push(token) for token in ids] + [detokenizer.flush()]
    assert "".join(deltas) == tokenizer.decode(ids)
    assert detokenizer.flush() == ""


def test_detokenizer_never_shows_half_a_character(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    tokenizer = Tokenizer(tmp_path)
    detokenizer = tokenizer.detokenizer()
    text = "a 你 🐋 ñ"
    deltas = [detokenizer.push(i) for i in tokenizer.encode(text, add_special_tokens=False)]
    assert [delta for delta in deltas if delta] == list(text)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", b""),
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", b"[1, 2]"),
        ("tokenizer.json", b'{"model": {"type": "BPE", "vocab": 3}}'),
        ("tokenizer.json", b"\xff\xfe"),
        ("tokenizer_config.json", b"{"),
        ("tokenizer_config.json", b"[]"),
        ("tokenizer_config.json", b"\xff"),
        ("tokenizer_config.json", b"[" * 100_000),
        ("tokenizer_config.json", b'{"bos_token": 3}'),
        ("tokenizer_config.json", b'{"eos_token": {"text": "x"}}'),
        ("tokenizer_config.json", b'{"chat_template": 5}'),
        ("chat_template.jinja", b"\xff"),
        ("special_tokens_map.json", b"no"),
    ],
)
def test_malformed_files_are_typed_errors(tmp_path: Path, name: str, content: bytes) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TokenizerError, match=name.partition(".")[0]):
        Tokenizer(tmp_path)


def test_mutated_files_never_raise_anything_else(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    rng = random.Random(0)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        original = (tmp_path / name).read_bytes()
        for _ in range(100):
            data = bytearray(original)
            for _ in range(rng.randint(1, 4)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            (tmp_path / name).write_bytes(data[: rng.randint(1, len(data) * 2)])
            try:
                tokenizer = Tokenizer(tmp_path)
                tokenizer.decode(tokenizer.encode_chat([USER]))
            except (TokenizerError, RequestError):
                pass
        (tmp_path / name).write_bytes(original)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        Tokenizer(tmp_path)
    write_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    tokenizer = Tokenizer(tmp_path)
    assert not tokenizer.has_chat_template
    assert tokenizer.special_tokens == {}
    with pytest.raises(TokenizerError, match="as plain text"):
        tokenizer.encode_chat([USER])
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": EOS}}))
    assert Tokenizer(tmp_path).special_tokens == {"eos_token": EOS}
