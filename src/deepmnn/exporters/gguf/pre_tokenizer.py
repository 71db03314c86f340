"""Which pre-tokenizer of llama.cpp cuts text as a model's tokenizer does.

A GGUF file does not say how text is cut before byte-pair encoding: tokenizer.ggml.pre names one of
the ways that llama.cpp has built in. The name is found by what a tokenizer does: text is encoded
with the model's own merges behind each of llama.cpp's cuts, and the ids are compared.

llama.cpp has no normalizers: text that is not in NFC gets other ids than from a tokenizer that
composes it first (Qwen's).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

import tokenizers

from deepmnn.source.gguf.pre_tokenizers import PRE_TOKENIZERS, PreTokenizer

NAMES = (
    *("smollm", "gpt-2", "qwen2", "dbrx", "llama-bpe"),
    *("deepseek-v3", "deepseek-llm", "deepseek-coder", "default"),
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


def find_pre(library: tokenizers.Tokenizer) -> tuple[str, int]:
    """The name behind which a tokenizer gives its own ids, or the most of them; and on how many of
    TEXTS it does not give them all.
    """
    spec = json.loads(library.to_str())
    wanted = [_ids(library, text) for text in TEXTS]
    best, least, texts = NAMES[0], math.inf, 0
    ignores = bool(spec["model"].get("ignore_merges"))
    for name in sorted(NAMES, key=lambda name: PRE_TOKENIZERS[name].ignore_merges != ignores):
        made = _behind(spec, PRE_TOKENIZERS[name])
        wrong = [
            _difference(_ids(made, text), ids) for text, ids in zip(TEXTS, wanted, strict=True)
        ]
        if sum(wrong) < least:
            best, least, texts = name, sum(wrong), sum(map(bool, wrong))
        if not least:
            break
    return best, texts


def _difference(found: list[int], wanted: list[int]) -> int:
    """Ids that one has and the other has not; at least 1 where only the order differs."""
    ours, theirs = Counter(found), Counter(wanted)
    return ((ours - theirs) + (theirs - ours)).total() or int(found != wanted)


def _behind(spec: dict[str, Any], pre: PreTokenizer) -> tokenizers.Tokenizer:
    """A tokenizer with its own merges, and text cut as llama.cpp does."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    cuts = {
        "type": "Sequence",
        "pretokenizers": [*pre.parts, level | {"use_regex": pre.use_regex}],
    }
    model = spec["model"] | {"ignore_merges": pre.ignore_merges}
    changed = spec | {"normalizer": None, "pre_tokenizer": cuts, "model": model}
    return tokenizers.Tokenizer.from_str(json.dumps(changed))


def _ids(library: tokenizers.Tokenizer, text: str) -> list[int]:
    ids: list[int] = library.encode(text, add_special_tokens=False).ids
    return ids
