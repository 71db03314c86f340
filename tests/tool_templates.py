"""The parts of published chat templates that write tool calls, laid out over several lines.

R1, V3.1: deepseek-ai/DeepSeek-R1 and DeepSeek-V3.1, tokenizer_config.json (MIT). V3.2: what
encoding/encoding_dsv32.py of deepseek-ai/DeepSeek-V3.2 (MIT) writes, as a template; V4 and V4.1
have other names in it. Qwen: Qwen/Qwen2.5-0.5B-Instruct (Apache-2.0); Qwen3 takes arguments as
text, too. SmolLM2: HuggingFaceTB/SmolLM2-135M-Instruct (Apache-2.0), which knows no tools.
"""

from __future__ import annotations

from pathlib import Path

from byte_tokenizer import MARKS, R1_TEMPLATE, write_tokenizer
from deepmnn.text.tokenizer import Tokenizer

V31 = """\
{%- set ns = namespace(is_first=false, is_tool=false, is_last_user=false) -%}
{{ bos_token }}
{%- for message in messages %}
  {%- if message['role'] == 'user' %}
    {%- set ns.is_last_user = true -%}
    {{ '<｜User｜>' + message['content'] }}
  {%- endif %}
  {%- if message['role'] == 'assistant' and message['tool_calls'] is defined
    and message['tool_calls'] is not none %}
    {%- if ns.is_last_user %}{{ '<｜Assistant｜></think>' }}{% endif %}
    {%- set ns.is_last_user = false -%}
    {%- set ns.is_first = false -%}
    {%- for tool in message['tool_calls'] %}
      {%- set call = '<｜tool▁call▁begin｜>' + tool['function']['name'] + '<｜tool▁sep｜>'
        + tool['function']['arguments'] + '<｜tool▁call▁end｜>' -%}
      {%- if not ns.is_first %}
        {%- if message['content'] is none -%}
          {{ '<｜tool▁calls▁begin｜>' + call }}
        {%- else -%}
          {{ message['content'] + '<｜tool▁calls▁begin｜>' + call }}
        {%- endif %}
        {%- set ns.is_first = true -%}
      {%- else -%}
        {{ call }}
      {%- endif %}
    {%- endfor -%}
    {{ '<｜tool▁calls▁end｜><｜end▁of▁sentence｜>' }}
  {%- endif %}
  {%- if message['role'] == 'assistant' and (message['tool_calls'] is not defined
    or message['tool_calls'] is none) %}
    {%- if ns.is_last_user %}{{ '<｜Assistant｜></think>' }}{% endif -%}
    {%- set ns.is_last_user = false -%}
    {{ message['content'] + '<｜end▁of▁sentence｜>' }}
  {%- endif %}
  {%- if message['role'] == 'tool' -%}
    {{ '<｜tool▁output▁begin｜>' + message['content'] + '<｜tool▁output▁end｜>' }}
  {%- endif %}
{%- endfor -%}
{% if add_generation_prompt and ns.is_last_user %}{{ '<｜Assistant｜></think>' }}{% endif %}"""

V32 = """\
{%- set dsml = '｜DSML｜' -%}
{{ bos_token }}
{%- if tools %}{% for tool in tools %}{{ tool['function'] | tojson }}{% endfor %}{% endif %}
{%- for message in messages %}
  {%- if message['role'] == 'user' -%}
    {{ '<｜User｜>' + message['content'] + '<｜Assistant｜></think>' }}
  {%- elif message['role'] == 'tool' -%}
    {{ '\\n\\n<function_results>\\n<result>' + message['content']
      + '</result>\\n</function_results>\\n\\n</think>' }}
  {%- elif message['role'] == 'assistant' -%}
    {{ message.get('content', '') }}
    {%- if message.get('tool_calls') -%}
      {{ '\\n\\n<' + dsml + 'function_calls>\\n' }}
      {%- for call in message['tool_calls'] -%}
        {{ '<' + dsml + 'invoke name="' + call['function']['name'] + '">\\n' }}
        {%- set arguments = call['function']['arguments'] %}
        {%- if arguments is mapping %}
          {%- for key, value in arguments.items() -%}
            {{ '<' + dsml + 'parameter name="' + key + '" string="' }}
            {{- 'true' if value is string else 'false' }}{{ '">' }}
            {{- value if value is string else value | tojson }}
            {{- '</' + dsml + 'parameter>\\n' }}
          {%- endfor %}
        {%- endif -%}
        {%- if not arguments %}{{ '\\n' }}{% endif -%}
        {{ '</' + dsml + 'invoke>\\n' }}
      {%- endfor -%}
      {{ '</' + dsml + 'function_calls>' }}
    {%- endif -%}
    {{ '<｜end▁of▁sentence｜>' }}
  {%- endif %}
{%- endfor %}"""

V4 = V32.replace("function_calls", "tool_calls").replace(
    "message.get('tool_calls')", "message['tool_calls']"
)
V41 = (
    V32.replace("function_calls>", " calls>")
    .replace("'invoke", "' invoke")
    .replace("'parameter", "' parameter")
)

QWEN = """\
{%- if tools %}
  {{- '<|im_start|>system\\n# Tools\\n<tools>' }}
  {%- for tool in tools %}{{ '\\n' }}{{ tool | tojson }}{% endfor %}
  {{- '\\n</tools>\\n<tool_call>\\n{"name": <function-name>, "arguments": <args-json-object>}\\n' }}
  {{- '</tool_call><|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
  {%- if message.role == 'user' or (message.role == 'assistant' and not message.tool_calls) %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
  {%- elif message.role == 'assistant' %}
    {{- '<|im_start|>' + message.role }}
    {%- if message.content %}{{ '\\n' + message.content }}{% endif %}
    {%- for tool_call in message.tool_calls %}
      {%- if tool_call.function is defined %}{% set tool_call = tool_call.function %}{% endif %}
      {{- '\\n<tool_call>\\n{"name": "' }}{{ tool_call.name }}{{ '", "arguments": ' }}
      {{- tool_call.arguments | tojson }}
      {{- '}\\n</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
  {%- elif message.role == 'tool' %}
    {{- '<|im_start|>user\\n<tool_response>\\n' + message.content }}
    {{- '\\n</tool_response><|im_end|>\\n' }}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

QWEN3 = QWEN.replace(
    "{{- tool_call.arguments | tojson }}",
    "{%- if tool_call.arguments is string %}{{ tool_call.arguments }}"
    "{% else %}{{ tool_call.arguments | tojson }}{% endif %}",
)

SMOLLM2 = """\
{% for message in messages %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

TEMPLATES = {
    "r1": R1_TEMPLATE,
    "v3.1": V31,
    "v3.2": V32,
    "v4": V4,
    "v4.1": V41,
    "qwen2.5": QWEN,
    "qwen3": QWEN3,
}
"""Those that write calls."""

SPECIAL = {
    "r1": (
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁calls▁end｜>",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁sep｜>",
        "<｜tool▁call▁end｜>",
    ),
    "v3.2": ("｜DSML｜",),
}
SPECIAL |= {"v3.1": SPECIAL["r1"], "v4": SPECIAL["v3.2"], "v4.1": SPECIAL["v3.2"]}
"""The special tokens in them, where models have any."""


def tool_tokenizer(directory: Path, template: str, *, special: bool = False) -> Tokenizer:
    """One token a byte, and a published template; special: its markers are special tokens."""
    extra = SPECIAL.get(template, ()) if special else ()
    source = TEMPLATES.get(template, SMOLLM2)
    write_tokenizer(directory, chat_template=source, extra_special_tokens=list(extra))
    return Tokenizer(directory)


def behind_assistant(text: str) -> str:
    """What a template writes where the last answer stands, up to its end."""
    for mark in ("<｜Assistant｜></think>", MARKS[1], "<|im_start|>assistant"):
        text = text.rpartition(mark)[2]
    return text.replace("<｜end▁of▁sentence｜>", "").removesuffix("<|im_end|>\n")
