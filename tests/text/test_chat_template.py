"""A chat template is a stranger's program: whatever it does, the caller gets text or an error."""

from __future__ import annotations

import resource
from typing import Any

import pytest

from deepmnn.errors import RequestError, TokenizerError
from deepmnn.exporters.mnn.chat_template import jinja_fields
from deepmnn.text.chat_template import ChatTemplate

CHAT = [{"role": "user", "content": "Hello"}]

NESTED_TUPLE = (
    "{% set ns = namespace(t=()) %}{% for j in range(12) %}{% for i in range(20000) %}"
    "{% set ns.t = (ns.t,) %}{% endfor %}{% endfor %}{{ {ns.t: 1} | length }}"
)
"""Its hash recurses in C, without a limit."""

INVALID = {
    "many for": "".join(f"{{% for a{i} in [1] %}}" for i in range(25)) + "{% endfor %}" * 25,
    "many if": "{% if true %}" * 150 + "{% endif %}" * 150,
    "many brackets": "{{ " + "(" * 20000 + "1" + ")" * 20000 + " }}",
    "many lists": "{{ " + "[" * 5000 + "]" * 5000 + " }}",
    "long number": "{{ " + "9" * 5000 + " }}",
    "many nots": "{{ " + "not " * 20000 + "1 }}",
    "no end": "{% if x %}",
    "unknown filter": "{{ x | no_such }}",
    "bad escape": "{{ '\\ud800\\x' }}",
}

GREEDY = {
    "long text": "{{ 'a' * 2000000000 }}",
    "constant": "{{ '%2000000000d' % 1 }}",
    "join": "{{ range(99999) | join('a' * 99999) }}",
    "center": "{{ 'a' | center(3000000000) }}",
    "format": "{{ '{:>3000000000}'.format(1) }}",
    "list": "{{ ([0] * 3000000000) | length }}",
    "doubling": "{% set ns = namespace(t='aa') %}{% for i in range(60) %}"
    "{% set ns.t = ns.t ~ ns.t %}{% endfor %}{{ ns.t }}",
    "macro": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
}

TEMPTING = [
    "{{ ''.__class__.__mro__ }}",
    "{{ messages.__init__.__globals__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ self.__init__ }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ (1).__class__ }}{{ ''|attr('__class__') }}",
]


@pytest.mark.parametrize("source", INVALID.values(), ids=INVALID)
def test_a_source_that_is_no_template_is_a_typed_error(source: str) -> None:
    with pytest.raises(TokenizerError, match="chat template"):
        ChatTemplate(source).render(CHAT)


@pytest.mark.parametrize("source", GREEDY.values(), ids=GREEDY)
def test_a_greedy_template_takes_nothing_from_this_process(source: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(TokenizerError, match="chat template"):
        ChatTemplate(source).render(CHAT)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10


@pytest.mark.slow  # five seconds of processor time; tests/text/test_limited_process.py has a loop
def test_an_endless_template_ends() -> None:
    loops = "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3
    with pytest.raises(TokenizerError, match="5 seconds of processor time"):
        ChatTemplate(loops).render(CHAT)


def test_a_template_that_crashes_the_interpreter_is_a_typed_error() -> None:
    with pytest.raises(TokenizerError, match="SIGSEGV"):
        ChatTemplate(NESTED_TUPLE).render(CHAT)


@pytest.mark.parametrize("source", TEMPTING)
def test_a_template_reaches_nothing_but_its_variables(source: str) -> None:
    try:
        text = ChatTemplate(source).render(CHAT)
    except TokenizerError:
        return
    assert "class" not in text
    assert "root" not in text


def test_a_long_source_is_no_template() -> None:
    with pytest.raises(TokenizerError, match="characters"):
        ChatTemplate("x" * (2 << 20))


def test_messages_of_a_template_are_cut() -> None:
    with pytest.raises(TokenizerError) as raised:
        ChatTemplate("{{ raise_exception('x' * 1000000) }}").render(CHAT)
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize("value", [object(), {1}, float, b"x"])
def test_a_variable_must_be_data(value: Any) -> None:
    with pytest.raises(RequestError, match="JSON"):
        ChatTemplate("x").render(CHAT, tools=value)


def test_a_long_conversation_is_rendered() -> None:
    text = "一" * 1_000_000
    chat = [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
    source = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}{% endfor %}"
    assert ChatTemplate(source).render(chat) == f"<user>{text}<assistant>{text}"


@pytest.mark.parametrize("source", [*INVALID.values(), *GREEDY.values(), NESTED_TUPLE])
def test_export_survives_the_template(source: str) -> None:
    """Lowering for MNN parses it and computes what is constant."""
    try:
        fields = jinja_fields(source, {"bos_token": "<s>"})
    except TokenizerError:
        return
    assert isinstance(fields["chat_template"], str)
