"""What a model's text side is made of: tokenizer files, settings, chat templates."""

from __future__ import annotations

import base64
import contextlib
import copy
import json
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from byte_tokenizer import R1_TEMPLATE, write_tokenizer
from deepmnn.errors import ConfigError
from deepmnn.text.chat_template import ChatTemplate
from deepmnn.text.generation_config import GenerationConfig
from deepmnn.text.text_files import TextFiles
from deepmnn.text.tokenizer import Tokenizer
from fuzz.harness import FileTarget
from fuzz.mutations import mutate_bytes, mutate_json
from fuzz.parts import PartsTarget

TEXTS = (
    "",
    "1+1 aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!",
    "<think>\n é你好🐋 \u0301\ufdfa\x00",
    "a" * 3000,
)


def use_tokenizer(tokenizer: Tokenizer) -> None:
    """All that a tokenizer is asked."""
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert tokenizer.least_tokens(text) <= len(ids)
        tokenizer.decode(ids, skip_special_tokens=False)
        stream = tokenizer.detokenizer()
        for token in ids[:50]:
            stream.push(token)
            tokenizer.special_text(token)
        stream.flush()
    tokenizer.decode([])
    tokenizer.token_id("a")
    tokenizer.leading_special("<think>")


ANY = {"String": " "}
CHARSMAP = base64.b64encode((8).to_bytes(4, "little") + b"\1\2\3\4\5\6\7\x08" + b"ab\0c\0").decode()
PARTS: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "normalizer": (
        "normalizers",
        [
            *({"type": name} for name in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Nmt")),
            *({"type": name} for name in ("StripAccents", "ByteLevel", "Bert", "Unknown")),
            {"type": "Replace", "pattern": {"Regex": "."}, "content": "aaaaaaaaaa"},
            {"type": "Replace", "pattern": ANY, "content": "▁"},
            {"type": "Replace", "pattern": {"String": ""}, "content": "xyz"},
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Strip", "strip_left": True, "strip_right": True},
            {
                "type": "BertNormalizer",
                "clean_text": True,
                "handle_chinese_chars": True,
                "strip_accents": None,
                "lowercase": True,
            },
            {"type": "Precompiled", "precompiled_charsmap": CHARSMAP},
            {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
        ],
    ),
    "pre_tokenizer": (
        "pretokenizers",
        [
            *({"type": name} for name in ("Whitespace", "WhitespaceSplit", "BertPreTokenizer")),
            {"type": "UnicodeScripts"},
            {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True},
            {"type": "Split", "pattern": ANY, "behavior": "Removed", "invert": False},
            *(
                {"type": "Split", "pattern": {"Regex": r}, "behavior": "Isolated", "invert": True}
                for r in ("(a+)+$", r"\p{N}{1,3}", "(a|a)*b", "(?<x>a)\\k<x>", "", "[", "a{9999}")
            ),
            {"type": "Digits", "individual_digits": True},
            {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False},
            {"type": "Punctuation", "behavior": "Contiguous"},
            {"type": "CharDelimiterSplit", "delimiter": "a"},
            {"type": "FixedLength", "length": 0},
            {"type": "FixedLength", "length": 3},
        ],
    ),
    "decoder": (
        "decoders",
        [
            *({"type": name} for name in ("ByteFallback", "Fuse", "WordLevel")),
            {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True},
            {"type": "Replace", "pattern": ANY, "content": "y" * 50},
            {"type": "Strip", "content": "a", "start": 1, "stop": 0},
            {"type": "Strip", "content": "a", "start": 0, "stop": 5},
            {"type": "WordPiece", "prefix": "##", "cleanup": True},
            {"type": "BPEDecoder", "suffix": ""},
            {"type": "CTC", "pad_token": "", "word_delimiter_token": "", "cleanup": True},
            {"type": "Metaspace", "replacement": "a", "add_prefix_space": True},
        ],
    ),
    "post_processor": (
        "processors",
        [
            {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True},
            {"type": "BertProcessing", "sep": ["a", 1], "cls": ["b", 2]},
            {
                "type": "RobertaProcessing",
                "sep": ["a", 1],
                "cls": ["b", 1 << 31],
                "trim_offsets": True,
                "add_prefix_space": True,
            },
            {
                "type": "TemplateProcessing",
                "single": [
                    {"SpecialToken": {"id": "<s>", "type_id": 0}},
                    {"Sequence": {"id": "A", "type_id": 0}},
                ],
                "pair": [
                    {"Sequence": {"id": "A", "type_id": 0}},
                    {"Sequence": {"id": "B", "type_id": 1}},
                ],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
            },
        ],
    ),
}


def models(vocab: dict[str, int]) -> list[dict[str, Any]]:
    """Of other types than the base's; BPE with what its builder stumbles over."""
    bpe = {"type": "BPE", "vocab": vocab, "merges": [["a", "b"], "b c"], "unk_token": "zz"}
    return [
        bpe,
        {**bpe, "merges": [], "dropout": 0.5},
        {**bpe, "merges": [], "continuing_subword_prefix": "é"},
        {**bpe, "merges": [], "end_of_word_suffix": "</w>", "byte_fallback": True},
        {"type": "WordLevel", "vocab": vocab, "unk_token": "zz"},
        {
            "type": "WordPiece",
            "vocab": vocab,
            "unk_token": "a",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
        },
        {"type": "Unigram", "vocab": [["a", -1.0], ["aa", -1e300]], "unk_id": 0},
        {"type": "Unigram", "vocab": [["a", -1.0], ["é", 0]], "unk_id": 7, "byte_fallback": True},
        {"type": "Unigram", "vocab": [], "unk_id": None},
    ]


class TokenizerFiles(PartsTarget):
    """tokenizer.json and what lies beside it."""

    names = (
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "chat_template.jinja",
        "config.json",
    )

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        write_tokenizer(folder)
        spec = json.loads((folder / "tokenizer.json").read_bytes())
        settings = json.loads((folder / "tokenizer_config.json").read_bytes())
        sampling = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "eos_token_id": [1, 2]}
        beside = {
            "tokenizer_config.json": {**settings, "chat_template": "{{ messages }}"},
            "generation_config.json": sampling,
            "special_tokens_map.json": {"eos_token": "</s>", "image_token": {"content": "<i>"}},
            "added_tokens.json": {"<tool>": 263},
            "config.json": {"eos_token_id": 1},
        }
        whole: list[dict[str, Any]] = [spec]
        for field, (_, kinds) in PARTS.items():
            whole += [spec | {field: kind} for kind in kinds]
        whole += [spec | {"model": model} for model in models({"a": 0, "b": 1, "ab": 2, "é": 3})]
        for fields in (spec, *whole):
            parts = {"tokenizer.json": fields} | (beside if not self.seeds else {})
            self.seeds.append(self.pack({n: json.dumps(f).encode() for n, f in parts.items()}))

    def use(self) -> None:
        config = TextFiles(self.model).fields("config.json", ConfigError)
        GenerationConfig.read(self.model, config)
        use_tokenizer(Tokenizer(self.model))

    def mutate_part(self, rng: np.random.Generator, name: str, data: bytes) -> bytes:
        if name != "tokenizer.json" or rng.integers(4) == 0:
            return super().mutate_part(rng, name, data)
        try:
            spec = json.loads(data)
        except (ValueError, RecursionError):
            spec = None
        if not isinstance(spec, dict):
            return super().mutate_part(rng, name, data)
        return json.dumps(damaged(rng, spec)).encode()


def damaged(rng: np.random.Generator, base: dict[str, Any]) -> Any:
    """A file with other parts, or with a wrong value in some place, or with both."""
    spec: Any = {**base}
    while rng.random() < 0.4:
        field = str(rng.choice(list(PARTS)))
        inner, kinds = PARTS[field]
        parts = [copy.deepcopy(kinds[i]) for i in rng.integers(len(kinds), size=rng.integers(1, 5))]
        spec[field] = parts[0] if len(parts) == 1 else {"type": "Sequence", inner: parts}
        if rng.random() < 0.1:
            for _ in range(int(rng.integers(60))):
                spec[field] = {"type": "Sequence", inner: [spec[field]]}
    if rng.random() < 0.1:
        found = models({"a": 0, "b": 1, "ab": 2, "é": 3})
        spec["model"] = found[int(rng.integers(len(found)))]
    model = spec.get("model")
    large = {}
    if isinstance(model, dict):
        large = {name: model[name] for name in ("vocab", "merges") if name in model}
        if rng.random() < 0.7:  # a place in the vocabulary is one of hundreds
            spec["model"] = {name: value for name, value in model.items() if name not in large}
    for _ in range(int(rng.integers(4))):
        spec = mutate_json(rng, spec)
    if isinstance(spec, dict) and isinstance(spec.get("model"), dict):
        spec["model"] = large | spec["model"]
    return spec


TEMPLATES = (
    R1_TEMPLATE,
    "{% for m in messages %}{{ m.role + m['content'] | trim }}{% endfor %}",
    "{% macro a(x, y=2) %}{{ caller() }}{{ x * y }}{% endmacro %}{% call a('b') %}c{% endcall %}",
    "{% set ns = namespace(n=0) %}{% for i in range(9) %}{% set ns.n = ns.n + i %}{% endfor %}"
    "{{ ns.n }}{{ messages | tojson(indent=2) }}{{ strftime_now('%Y') }}",
    "{% filter upper %}{% generation %}a{% endgeneration %}{% endfilter %}{# c #}"
    "{% raw %}{{{% endraw %}",
    "{{ raise_exception('no') if messages[0]['role'] == 'user' and not tools is defined }}",
    "{{ 'a' * 10 ** 2 }}{{ ''.__class__.__mro__ }}{{ messages.append(1) }}",
    "{% include 'x' %}{% import '/etc/passwd' as p %}",
    "{{ '%s' | format('a') }}{{ [1, 2][::-1] | join(',') }}{{ 'é' | length }}"
    "{% if 1 < 2 <= 3 %}a{% endif %}",
)


class Template(FileTarget):
    """A chat template. The parser runs here as well, to guide: the rest is in another process."""

    file = "chat_template.jinja"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.seeds = [template.encode() for template in TEMPLATES]
        self._engine = ChatTemplate("")._engine

    def use(self) -> None:
        text = self.path.read_bytes().decode("utf-8", "replace")
        with contextlib.suppress(jinja2.TemplateError, RecursionError, ValueError):
            jinja2.Environment().parse(text)
        messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": None}]
        template = ChatTemplate(text)
        template._engine = self._engine  # starting one for each would take most of the time
        template.render(messages, special_tokens={"bos_token": "<s>"})

    def mutate(self, rng: np.random.Generator, data: bytes) -> bytes:
        if rng.integers(3) == 0:
            other = self.seeds[int(rng.integers(len(self.seeds)))]
            begin, end = sorted(rng.integers(0, len(other) + 1, 2).tolist())
            at = int(rng.integers(len(data) + 1))
            return data[:at] + other[begin:end] + data[at:]
        return mutate_bytes(rng, data)
