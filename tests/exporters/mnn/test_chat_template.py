"""What MNN's engine renders is what jinja2 renders of the template as its makers wrote it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from byte_tokenizer import R1_TEMPLATE
from deepmnn.conversion.bundled import CHECKPOINT
from deepmnn.errors import TokenizerError
from deepmnn.exporters.mnn.chat_template import jinja_fields
from deepmnn.exporters.mnn.tokenizer import pack_tokenizer
from deepmnn.text.chat_template import ChatTemplate, Message
from deepmnn.text.tokenizer import Tokenizer
from mnn_text import mnn_text

SPECIAL = {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<|im'end|>"}

# The published templates' constructs, laid out over several lines.
DEEPSEEK_V31 = """\
{% if not thinking is defined %}{% set thinking = false %}{% endif %}
{%- set ns = namespace(is_tool=false, system_prompt='', is_first_sp=true, is_last_user=false) %}
{%- for message in messages %}
  {%- if message['role'] == 'system' %}
    {%- if ns.is_first_sp %}
      {%- set ns.system_prompt = ns.system_prompt + message['content'] %}
      {%- set ns.is_first_sp = false %}
    {%- else %}
      {%- set ns.system_prompt = ns.system_prompt + '\\n\\n' + message['content'] %}
    {%- endif %}
  {%- endif %}
{%- endfor %}
{{- bos_token }}{{ ns.system_prompt }}
{%- for message in messages %}
  {%- if message['role'] == 'user' %}
    {%- set ns.is_last_user = true -%}
    {{ '<｜User｜>' + message['content'] }}
  {%- endif %}
  {%- if message['role'] == 'assistant' and message['tool_calls'] is defined
      and message['tool_calls'] is not none %}
    {%- for tool in message['tool_calls'] %}{{- tool['function']['name'] }}{% endfor %}
  {%- endif %}
  {%- if message['role'] == 'assistant' and (message['tool_calls'] is not defined
      or message['tool_calls'] is none) %}
    {%- if ns.is_last_user %}
      {{- '<｜Assistant｜>' }}
      {%- if message['prefix'] is defined and message['prefix'] and thinking %}
        {{- '<think>' }}
      {%- else %}
        {{- '</think>' }}
      {%- endif %}
    {%- endif %}
    {%- set ns.is_last_user = false %}
    {%- set content = message['content'] %}
    {%- if '</think>' in content %}
      {%- set content = content.split('</think>', 1)[1] %}
    {%- endif %}
    {{- content + eos_token }}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt and ns.is_last_user and not ns.is_tool %}
  {{- '<｜Assistant｜>' }}{{ '<think>' if thinking else '</think>' }}
{%- endif %}
"""
QWEN3 = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}{% for tool in tools %}{{- tool | tojson }}{% endfor %}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string
        and not(message.content.startswith('<tool>') and message.content.endswith('</tool>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content %}
        {%- set reasoning = message.reasoning_content or '' %}
        {%- if '</think>' in content %}
            {%- set before = content.split('</think>')[0].rstrip('\\n') %}
            {%- set reasoning = before.split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or reasoning) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning.strip('\\n') }}
            {{- '\\n</think>\\n\\n' + content }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""
LLAMA3 = """\
{% if not tools is defined %}{% set tools = none %}{% endif %}
{% set loop_messages = messages %}{% for message in loop_messages %}
{% set content = '<|' + message['role'] + '|>\\n\\n' + message['content'] | trim + '<|eot|>' %}
{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}
{{ content }}{% endfor %}
{% if add_generation_prompt %}{{ '<|assistant|>\\n\\n' }}{% endif %}

"""
ALTERNATING = """\
{# every second message is the user's #}
{% if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim + '\\n\\n' -%}
    {% set messages = messages[1:] %}
{% else %}
    {% set system_message = '' %}
{% endif %}
{{ bos_token + system_message }}
{% for message in messages %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('Conversation roles must alternate') }}
    {% endif %}
    {% if message['role'] in ('user', 'human') %}
        {{ '[INST] ' ~ message.get('content') ~ ' [/INST]' }}
    {% elif message['role'] == 'assistant' %}
        {{ ' ' + message['content'] + ' ' + eos_token -}}
    {% else %}
        {{ raise_exception('no such role') }}
    {% endif %}
{% endfor %}
"""


def _user(content: str = " Hi  there ") -> Message:
    return {"role": "user", "content": content}


def _assistant(content: str = "Hello!") -> Message:
    return {"role": "assistant", "content": content}


_SYSTEM = {"role": "system", "content": 'Be brief.\nNo "quotes".'}
CONVERSATIONS: list[list[Message]] = [
    [_user()],
    [_SYSTEM, _user()],
    [_user(), _assistant(), _user("x\n\ny")],
    [
        _SYSTEM,
        _user(),
        _assistant("<think>\nhm {{a}} {% b %}\n</think>\n\nans"),
        _user("'q' \\n \\"),
    ],
    [_SYSTEM, _user(), _assistant("a</think>b</think>c"), _user(), _assistant("</think>"), _user()],
    [_user(""), _assistant(""), _user("中文 👍\n")],
    [_SYSTEM, _user(), _assistant("last")],
]


def _rendered(folder: Path, fields: dict[str, Any], messages: list[Message], **names: Any) -> str:
    """What MNN makes of the conversation."""
    jinja = {**fields, "context": {**fields.get("context", {}), **names}}
    mnn = mnn_text(folder, pack_tokenizer(None, vocab_size=1, stop_ids=[]), jinja)
    return str(mnn.apply_chat_template(messages))


@pytest.mark.parametrize(
    "source",
    [R1_TEMPLATE, DEEPSEEK_V31, QWEN3, LLAMA3, ALTERNATING, Tokenizer(CHECKPOINT).chat_template],
    ids=["r1", "v3.1", "qwen3", "llama3", "alternating", "tiny-r1"],
)
def test_templates(tmp_path: Path, source: str) -> None:
    fields = jinja_fields(source, SPECIAL)
    assert fields.keys() == {"chat_template", "bos", "eos"}
    original, lowered = ChatTemplate(source), ChatTemplate(fields["chat_template"])
    rendered = 0
    for names in ({}, {"thinking": True}, {"enable_thinking": False}):
        for messages in CONVERSATIONS:
            try:
                prompt = original.render(messages, special_tokens=SPECIAL, **names)
            except TokenizerError:  # the template refuses it
                continue
            rendered += 1
            assert _rendered(tmp_path, fields, messages, **names) == prompt
            assert lowered.render(messages, **names) == prompt
    assert rendered >= 15


_MESSAGES: list[Message] = [
    {"role": "system", "content": "S"},
    _user(" two  words "),
    _assistant("a</t>b</t>c"),
    _user("q"),
]
EXPRESSIONS = [
    "messages[0].x or 'd'",
    "messages[0].role and 'd'",
    "messages[0].x and 'd'",
    "messages[0].role == 'system' and messages[0].content",
    "messages[0]['x'] is defined",
    "messages[0]['x'] is not defined or messages[0]['x'] is none",
    "messages[0].x | default('d')",
    "messages[0].content | default('d')",
    "'' | default('d', true)",
    "messages[0].get('role')",
    "messages[0].get('x', 'd')",
    "messages[0]['a key']",
    "messages[2].content.split('</t>', 1)[1]",
    "messages[2].content.split('</t>', 1)[0]",
    "messages[1].content.split('</t>', 1)[1]",
    "messages[2].content.rsplit('</t>', 1)[-1]",
    "messages[1].content.strip().upper()",
    "messages[1].content.strip(' s')",
    "messages[1].content | trim | capitalize",
    "messages[1].content.replace('o', '0')",
    "('a' + messages[0].content).lower()",
    "(messages | last).role",
    "(messages | first)['role']",
    "messages[-1].role",
    "messages[1:3][0].role",
    "messages[::-1][0].role",
    "messages | length",
    "messages[messages | length - 2].role",
    "messages[1:] | list | length > 2",
    "messages[0].x ~ 'y'",
    "1 ~ 'y' ~ 2",
    "3 - 1 - 1",
    "3 - (1 - 1)",
    "-(messages | length)",
    "messages[0].role in ['system', 'user']",
    "messages[0].role not in ('system', 'user')",
    "messages[0].role is in ['system']",
    "messages[0].role is eq 'system'",
    "1 < messages | length < 9",
    "not messages[0].x",
    "messages[0].x is mapping",
    "messages[0] is mapping",
    "messages[0] is iterable",
    "messages is sequence",
    "messages[0].content is string",
    "tools is none",
    "'t' if tools else 'n'",
    "'t' if tools is not none else 'n'",
    "'a' if messages[0].x",
    "bos_token + 'x'",
    "none",
    "True",
    "7 // 2",
    "'a' 'b'",
    "'\\u00e9\\'\\\\n\\n'",
    "{'a': messages[0].role}['a']",
    "[1, 2][1]",
    "['a', messages[0].role][-1]",
    "range(3) | length",
    "namespace(a=messages[0].role).a",
    "{'a': 1}.a",
]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_expressions(tmp_path: Path, expression: str) -> None:
    """Printed, tested and as an element."""
    source = (
        f"[{{{{ {expression} }}}}]{{% if ({expression}) %}}true{{% else %}}false{{% endif %}}"
        f"{{% set copy = [{expression}] %}}{{{{ copy[0] or '' }}}}"
    )
    fields = jinja_fields(source, SPECIAL)
    prompt = ChatTemplate(source).render(_MESSAGES, special_tokens=SPECIAL)
    assert "note" not in fields
    assert _rendered(tmp_path, fields, _MESSAGES).lower() == prompt.lower()


STATEMENTS = [
    "{{ 1.5 }}{{ none }}{{ true }}",
    "x\n",
    "x {# c #}\ny",
    "a {% if messages %}b{% endif %} c",
    "a {% raw %}{{ b }} {% c %}{% endraw %} d",
    "a\n  {%- if messages -%}\n b \n{%- endif %}\n c",
    "  {% if messages %}\nx\n  {% endif %}\n\ty",
    "{% if tools %}a{% elif messages[0].x %}b{% elif true %}c{% else %}d{% endif %}",
    "{% if messages[0].x %}a{% elif messages[1].role == 'user' %}b{% else %}c{% endif %}",
    "{% if messages[0].x %}a{% elif false %}b{% else %}{% if messages %}c{% endif %}{% endif %}",
    "{% if messages[0].x %}{{ raise_exception('x') }}{% else %}b{% endif %}",
    "{% for m in messages if m.role == 'user' %}{{ loop.index }}{{ loop.last }}{% endfor %}",
    "{% for m in messages %}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.length }}{% endfor %}",
    "{% for m in messages %}{{ 'f' if loop.first }}{{ m.role }}, {% endfor %}",
    "{% for m in messages %}{% for n in messages %}{{ loop.index }}{% endfor %};{% endfor %}",
    "{% for m in messages %}{{ m.content.split('</t>', 1)[1] }};{% endfor %}",
    "{% for i in range(2, 9, 3) %}{{ i }}{% endfor %}",
    "{% set x = 1 %}{% for m in messages %}{% set x = x + 1 %}{{ x }}{% endfor %}{{ x }}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}"
    "{{ ns.n }}",
    "{% set bos_token = bos_token + '!' %}{{ bos_token }}",
    "{% if tools is not defined %}{% set tools = none %}{% endif %}{{ 'x' if tools is none }}",
    "{{ messages[0].role }}{{ '{{' }}{{ '%}' }}{{ \"it's\" }}",
    "{% if messages[0].content == 'S' and messages[2].content.split('</t>', 1)[1] %}y{% endif %}",
]


@pytest.mark.parametrize("source", STATEMENTS)
def test_statements(tmp_path: Path, source: str) -> None:
    fields = jinja_fields(source, SPECIAL)
    prompt = ChatTemplate(source).render(_MESSAGES, special_tokens=SPECIAL)
    assert "note" not in fields
    assert _rendered(tmp_path, fields, _MESSAGES) == prompt


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("{{ loop.index % 2 }}", "Mod in line 1"),
        ("\n{{ messages[0].content[0] }}", "Getitem in line 2"),
        ("{{ messages[0].content[:2] }}", "Getitem"),
        ("{{ messages[0].content | length }}", "the filter length"),
        ("{{ messages | map(attribute='role') | join(',') }}", "the filter join"),
        ("{{ messages | selectattr('role') | list }}", "the filter list"),
        ("{{ messages[0].role.title() }}", "the method title"),
        ("{{ messages[0].role.split() }}", "the method split with 0 arguments"),
        ("{{ messages[0].role.strip('　') }}", "strip"),
        ("{{ messages[0].role is divisibleby 3 }}", "the test divisibleby"),
        ("{{ cycler('a') }}", "the function cycler"),
        ("{% for m in messages %}{{ loop.previtem }}{% endfor %}", "Getattr"),
        ("{% for m in messages %}{% break %}{% endfor %}", "Break"),
        ("{% for m in messages %}{% else %}x{% endfor %}", "For"),
        ("{% for m in messages if m.role.split('a', 1)[1] %}{% endfor %}", "Getitem"),
        ("{% for (a, b), c in messages %}{% endfor %}", "For"),
        ("{% set a, b = 1, 2 %}", "Assign"),
        ("{% set a %}b{% endset %}", "AssignBlock"),
        ("{% macro f(a) %}{{ a }}{% endmacro %}", "Macro"),
        ("{% generation %}x{% endgeneration %}", "generation"),
        ("{{ messages[0].n + 1.5 }}", "the constant 1.5"),
        ("{{ 'a' + raise_exception('b') }}", "the function raise_exception"),
    ],
)
def test_what_mnn_has_no_form_for(source: str, what: str) -> None:
    fields = jinja_fields(source + "\n", SPECIAL)
    assert fields["chat_template"] == source
    assert fields["context"] == {"tools": None, "documents": None, **SPECIAL}
    assert what in fields["note"]


def test_half_a_character() -> None:
    with pytest.raises(TokenizerError, match="surrogates"):
        jinja_fields("a\ud800", SPECIAL)
    with pytest.raises(TokenizerError, match="surrogates"):
        jinja_fields("a", {"eos_token": "\udfff"})


def test_a_template_runs_nothing_when_it_is_rewritten() -> None:
    fields = jinja_fields("{{ ''.__class__ }}{{ ''['__class__'] }}", SPECIAL)
    assert "str" not in fields["chat_template"]
