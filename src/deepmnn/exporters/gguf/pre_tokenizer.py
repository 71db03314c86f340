"""Which pre-tokenizer of llama.cpp cuts text as a model's tokenizer does.

A GGUF file does not say how text is cut before byte-pair encoding: tokenizer.ggml.pre names one of
the ways that llama.cpp has built in. The name is found by what a tokenizer does: text is encoded
with the model's own merges behind each of llama.cpp's cuts, and the ids are compared.

Source: llm_tokenizer_bpe in src/llama-vocab.cpp of llama.cpp. It has no normalizers: text that
is not in NFC gets other ids than from a tokenizer that composes it first (Qwen's).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import tokenizers

_LETTERS = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕ"
    "ἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭ"
    "Ꚁ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)
"""Letters with upper and lower case, as DeepSeek LLM's tokenizer lists them."""

_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_WORDS = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_TEXT = r"|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class Pre:
    """One of llama.cpp's.

    Attributes:
        name: tokenizer.ggml.pre.
        patterns: each cuts the pieces that the ones before it left.
        ignore_merges: a piece that is a token is that token, whatever the merges say.
    """

    name: str
    patterns: tuple[str, ...]
    ignore_merges: bool = False


PRES = (
    Pre("smollm", (r"\p{N}", _GPT2)),
    Pre("gpt-2", (_GPT2,)),
    Pre("qwen2", (_WORDS + _TEXT % r"\p{N}",)),
    Pre("dbrx", (_WORDS + _TEXT % r"\p{N}{1,3}",)),
    Pre("llama-bpe", (_WORDS + _TEXT % r"\p{N}{1,3}",), ignore_merges=True),
    Pre(
        "deepseek-v3",
        (
            r"\p{N}{1,3}",
            "[\u4e00-\u9fa5\u3040-\u30ff]+",
            r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
            r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
            r"|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
    ),
    Pre(
        "deepseek-llm",
        (
            r"[\r\n]",
            rf"\s?[{_LETTERS}]+",
            "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
            r"\s+$",
            _CJK,
            r"\p{N}+",
        ),
    ),
    Pre("deepseek-coder", (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}")),
)
"""Those of the models that deepmnn reads. The first that fits is taken: of two ways to cut numbers,
the finer, for a vocabulary without numbers of several digits fits both.
"""

TEXTS = (
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \nend   ",
    "a\r\nb\r\r\n\r c \n\t d",
    "🚀 (normal) 😶\u200d🌫️ (multiple emojis concatenated) ✅ 🦙🦙",
    "3 33 333 3333 33333 333333 3333333 33333333 3.3 3..3 3...3 x1 1x v2.5e-7",
    "What is 347 + 285? 544+77×5 = 929; (12-7)*3/4 <= 5 && a != b || c_d->e[0]",
    "កាន់តែពិសេសអាច😁 ?我想在apple工作1314151天～ ------======= нещо на Български",
    "''''''```````\"\"\"\"......!!!!!!??????",
    "I've been 'told he's there, 'RE you sure? 'M not sure I'll make it, We'Ve a'lL",
    "def f(x):\n    if x > 0:\n\treturn {'k': [x ** 2, \"s\"]}  # note\n\n\nclass A:\n  pass\n",
    "<html>&nbsp;</html> http://a.b/c?d=e#f user@example.org C:\\\\dir\\\\file ~/.x @tag #tag",
    "Größe ÄÖÜ ñandú çà œuvre ŁÓDŹ Ελληνικά Привет мир Ђурђевак",
    "שלום עולם مرحبا بالعالم १२३ नमस्ते दुनिया สวัสดีชาวโลก 안녕하세요 세계 こんにちは世界カタカナ",
    "你好，世界！这是一个测试。１２３　ＡＢＣ「引用」…… ½ ² ① Ⅷ € £ ∑∫√ ←→",
    "One  two   three    four.  Five,six;seven:eight - nine — ten\u00a0eleven\u3000twelve",
    "hELLO World iPhone XMLHttpRequest snake_case_name kebab-case-name CamelCaseName",
)
"""What tokenizers are compared on: spaces, numbers, code, punctuation and many scripts."""


def find_pre(library: tokenizers.Tokenizer) -> tuple[Pre, int]:
    """The pre-tokenizer behind which a tokenizer gives its own ids, or the most of them; and on how
    many of TEXTS it does not give them all.
    """
    spec = json.loads(library.to_str())
    wanted = [_ids(library, text) for text in TEXTS]
    best, least, texts = PRES[0], math.inf, 0
    ignores = bool(spec["model"].get("ignore_merges"))
    for pre in sorted(PRES, key=lambda pre: pre.ignore_merges != ignores):
        made = _behind(spec, pre)
        wrong = [
            _difference(_ids(made, text), ids) for text, ids in zip(TEXTS, wanted, strict=True)
        ]
        if sum(wrong) < least:
            best, least, texts = pre, sum(wrong), sum(map(bool, wrong))
        if not least:
            break
    return best, texts


def _difference(found: list[int], wanted: list[int]) -> int:
    """Ids that one has and the other has not; at least 1 where only the order differs."""
    ours, theirs = Counter(found), Counter(wanted)
    return ((ours - theirs) + (theirs - ours)).total() or int(found != wanted)


def _behind(spec: dict[str, Any], pre: Pre) -> tokenizers.Tokenizer:
    """A tokenizer with its own merges, and text cut as llama.cpp does."""
    splits = [
        {"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": False}
        for p in pre.patterns
    ]
    flags = {"add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    cuts = {"type": "Sequence", "pretokenizers": [*splits, {"type": "ByteLevel", **flags}]}
    model = spec["model"] | {"ignore_merges": pre.ignore_merges}
    changed = spec | {"normalizer": None, "pre_tokenizer": cuts, "model": model}
    return tokenizers.Tokenizer.from_str(json.dumps(changed))


def _ids(library: tokenizers.Tokenizer, text: str) -> list[int]:
    ids: list[int] = library.encode(text, add_special_tokens=False).ids
    return ids
