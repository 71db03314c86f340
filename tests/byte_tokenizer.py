"""A tokenizer with one token per byte (so that characters are split), in DeepSeek-R1's dress."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
MARKS = ["<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"]

# DeepSeek-R1's template, laid out over several lines: tool calls, tool outputs, reasoning dropped
# from earlier turns, and an answer that begins inside its reasoning.
R1_TEMPLATE = """\
{%- if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif -%}
{%- set ns = namespace(is_first=false, is_tool=false, is_output_first=true, system_prompt='') -%}
{%- for message in messages %}
  {%- if message['role'] == 'system' %}{% set ns.system_prompt = message['content'] %}{% endif %}
{%- endfor -%}
{{ bos_token }}{{ ns.system_prompt }}
{%- for message in messages %}
  {%- if message['role'] == 'user' %}
    {%- set ns.is_tool = false -%}
    {{ '<｜User｜>' + message['content'] }}
  {%- endif %}
  {%- if message['role'] == 'assistant' and message['content'] is none %}
    {%- set ns.is_tool = false -%}
    {%- for tool in message['tool_calls'] %}
      {%- set call = '<｜tool▁call▁begin｜>' + tool['type'] + '<｜tool▁sep｜>'
        + tool['function']['name'] + '\\n```json\\n' + tool['function']['arguments']
        + '\\n```<｜tool▁call▁end｜>' -%}
      {%- if not ns.is_first -%}
        {{ '<｜Assistant｜><｜tool▁calls▁begin｜>' + call }}
        {%- set ns.is_first = true -%}
      {%- else -%}
        {{ '\\n' + call }}{{ '<｜tool▁calls▁end｜><｜end▁of▁sentence｜>' }}
      {%- endif %}
    {%- endfor %}
  {%- endif %}
  {%- if message['role'] == 'assistant' and message['content'] is not none %}
    {%- if ns.is_tool -%}
      {{ '<｜tool▁outputs▁end｜>' + message['content'] + '<｜end▁of▁sentence｜>' }}
      {%- set ns.is_tool = false -%}
    {%- else %}
      {%- set content = message['content'] -%}
      {%- if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif -%}
      {{ '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}
    {%- endif %}
  {%- endif %}
  {%- if message['role'] == 'tool' %}
    {%- set ns.is_tool = true -%}
    {%- set begin = '<｜tool▁outputs▁begin｜>' if ns.is_output_first else '\\n' -%}
    {{ begin + '<｜tool▁output▁begin｜>' + message['content'] + '<｜tool▁output▁end｜>' }}
    {%- set ns.is_output_first = false %}
  {%- endif %}
{%- endfor -%}
{% if ns.is_tool %}{{ '<｜tool▁outputs▁end｜>' }}{% endif %}
{%- if add_generation_prompt and not ns.is_tool %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}"""


def write_tokenizer(directory: Path, **config: Any) -> None:
    """tokenizer.json and tokenizer_config.json; `config` overrides or adds fields (None drops)."""
    directory.mkdir(parents=True, exist_ok=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate([BOS, EOS, PAD, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in (BOS, EOS, PAD)])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in MARKS])
    tokenizer.save(str(directory / "tokenizer.json"))
    fields = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": {"__type": "AddedToken", "content": BOS, "lstrip": False, "rstrip": False},
        "eos_token": EOS,
        "pad_token": PAD,
        "add_bos_token": True,
        "clean_up_tokenization_spaces": False,
        "chat_template": R1_TEMPLATE,
        **config,
    }
    kept = {name: value for name, value in fields.items() if value is not None}
    (directory / "tokenizer_config.json").write_text(json.dumps(kept), encoding="utf-8")
