"""The oracle is the tokenizers library; MNN's tokenizer reads what is written for it."""

from __future__ import annotations

import json
import random
import unicodedata
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import (
    AddedToken,
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from tokenizers import Tokenizer as Library

from deepmnn.errors import TokenizerError
from deepmnn.exporters.mnn.tokenizer import pack_tokenizer
from deepmnn.text.tokenizer import Tokenizer
from mnn_text import mnn_text

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|"
_REST = "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
_PUNCTUATION = "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~]"
_HAN = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
# The patterns of the published tokenizer.json (DeepSeek-V2's letters shortened).
PATTERNS: dict[str, list[str]] = {
    "deepseek-v3": [
        "\\p{N}{1,3}",
        "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
        _PUNCTUATION + "[A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
        "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
    ],
    "deepseek-v2": [
        "[\r\n]",
        "\\s?[A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u0250\u0370-\u052f\U00010400-\U0001044f]+",
        "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
        "\\s+$",
        _HAN,
    ],
    "deepseek-coder": ["[\r\n]", "\\s?\\p{L}+", "\\s?\\p{P}+", _HAN],
    "qwen2": [_CONTRACTIONS + "\\p{N}" + _REST],
    "llama3": [_CONTRACTIONS + "\\p{N}{1,3}" + _REST],
    "tiny-r1": ["\\p{N}", " ?\\p{L}+ ?| ?[^\\s\\p{L}\\p{N}]+[ \\r\\n]*|\\s+"],
}
DIGITS = {"deepseek-v2", "deepseek-coder"}
MARKS = ["<think>", "</think>", "<｜User｜>", "<｜end▁of▁sentence｜>", "é▁ x", "é▁"]

TEXTS = [
    "The quick brown fox jumps over the lazy dog. It's 2024-01-31, they'LL've paid $1,234,567.89!",
    "DeepSeek-V3 是一个强大的混合专家（MoE）语言模型，总参数为671B，每个token激活37B……",
    "日本語のテキスト：カタカナ、ひらがな、漢字。ｶﾀｶﾅ半角も。「こんにちは」と言った。",
    "한국어 문장입니다. 안녕하세요? Русский: съешь же ещё. Ελληνικά: ψυχοφθόρα βδελυγμία.",
    "العربية: مرحبا ١٢٣٤، كيف؟ עברית: שלום. فارسی: می\u200cخواهم. हिन्दी: नमस्ते, क्\u200dया? १२३",
    "ไทย: สวัสดีชาวโลก தமிழ் తెలుగు",
    "Tiếng Việt: Cộng hòa xã hội chủ nghĩa. Příliš žluťoučký kůň. İstanbul'da ıspanak.",
    "Emoji: 👍🏽 👨\u200d👩\u200d👧\u200d👦 🇩🇪🇯🇵 ❤️ ☺︎ 🤷🏿\u200d♀️ ✨✨ ∑∫√∞≠ ½ ² Ⅷ ① № ™ ©",
    'def f(x):\n\treturn {k: v**2 for k, v in x.items() if v >= 0x1F and not k[0] == "_"}  # ok\n',
    "    for (int i = 0; i < n; ++i) { a[i] += b[i] << 3; /* c */ }   \t  \r\n\r\n  x\n \n",
    "https://example.com/a?b=c&d=%20e#f user@host.org C:\\path\\file.txt 1;22;333;4444;55555",
]
_PIECES = [
    *"abXY019 '’\"!?.,;:-_/\\()[]{}<>#$%&*+=@^`|~\n\r\t\x0b\x0c\x1f中文龥あンー한Жéßİıﬁ½²१١１๑",
    *"👍\u200d\ufe0f🇩\u00a0\u3000\u2009\u200b\ufeff。，「」～”…€∑→©™क्ำاא𝕏𐐀𠀀\U000e0020",
    *("  ", "   ", "\n\n", "\r\n", " \n", "'s", "'LL", "e\u0301", "<0x41>", "Ġ", "▁", *MARKS),
]


def _mixed(count: int) -> Iterator[str]:
    """Random texts of 1 .. 40 pieces."""
    rng = random.Random(7)
    for number in range(count):
        yield "".join(rng.choice(_PIECES) for _ in range(1 + number % 40))


@cache
def _characters() -> list[str]:
    """Some of every Unicode category, but for the few that the module owns up to."""
    categories: dict[str, list[str]] = {}
    for char in map(chr, range(0x110000)):
        categories.setdefault(unicodedata.category(char), []).append(char)
    del categories["Cs"], categories["Cn"]
    apart = {*map(chr, range(8)), "\x85", "\u2028", "\u2029"}
    chosen = (c for some in categories.values() for c in some[:10] + some[:: len(some) // 20 + 1])
    return sorted(set(chosen) - apart)


def _byte_level(name: str, ignore_merges: bool = False) -> Library:
    library = Library(models.BPE(ignore_merges=ignore_merges))
    steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in PATTERNS[name]]
    digits = [pre_tokenizers.Digits(individual_digits=True)] if name in DIGITS else []
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.pre_tokenizer = pre_tokenizers.Sequence([*steps, *digits, letters])
    library.decoder = decoders.ByteLevel()
    return library


def _trained(library: Library, size: int = 1200) -> Library:
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken("<｜begin▁of▁sentence｜>", normalized=False)],
    )
    library.train_from_iterator([*TEXTS, *_mixed(200)], trainer)
    library.add_tokens([AddedToken(mark, normalized=False) for mark in MARKS])
    return library


def _all_pairs(library: Library) -> Library:
    """Merges any two bytes, so that every border between two pieces shows in the ids."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [(left, right) for left in alphabet for right in alphabet]
    random.Random(3).shuffle(pairs)
    tokens = [*alphabet, *(left + right for left, right in pairs)]
    library.model = models.BPE({token: index for index, token in enumerate(tokens)}, pairs)
    return library


def _saved(directory: Path, library: Library, **config: Any) -> Tokenizer:
    directory.mkdir(parents=True, exist_ok=True)
    library.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer(directory)


def _loaded(directory: Path, library: Library, **config: Any) -> tuple[Tokenizer, Any]:
    tokenizer = _saved(directory / "hf", library, **config)
    packed = pack_tokenizer(tokenizer, vocab_size=1 << 17, stop_ids=[])
    return tokenizer, mnn_text(directory / "mnn", packed)


def _assert_same(tokenizer: Tokenizer, mnn: Any, texts: list[str]) -> None:
    for text in texts:
        assert mnn.tokenizer_encode(text) == tokenizer.encode(text), ascii(text)


@pytest.mark.parametrize("name", PATTERNS)
def test_texts_have_the_same_tokens(tmp_path: Path, name: str) -> None:
    tokenizer, mnn = _loaded(tmp_path, _trained(_byte_level(name)))
    _assert_same(tokenizer, mnn, ["", *TEXTS, "\n".join(TEXTS), *_mixed(400)])


@pytest.mark.parametrize("name", ["deepseek-v3", "deepseek-v2", "llama3"])
def test_all_kinds_of_characters_are_split_alike(tmp_path: Path, name: str) -> None:
    tokenizer, mnn = _loaded(tmp_path, _all_pairs(_byte_level(name)))
    texts = [f"a{c}b {c} {c}{c}1{c}2\n{c}中{c}. {c}é  {c}" for c in _characters()]
    assert len(texts) > 400
    _assert_same(tokenizer, mnn, texts)


def test_what_is_not_composed_is_composed(tmp_path: Path) -> None:
    library = _byte_level("qwen2")
    library.normalizer = normalizers.NFC()
    tokenizer, mnn = _loaded(tmp_path, _trained(library))
    split = [unicodedata.normalize("NFD", text) for text in TEXTS]
    assert sum(text not in TEXTS for text in split) > 3
    joiners = ["a\u200db\u200c\ufeff\u200e\x1b", "\u212b\u2126\uf900\u0958", "ﬁ²"]
    _assert_same(tokenizer, mnn, [*TEXTS, *split, *joiners])


def test_gpt2s_own_pattern(tmp_path: Path) -> None:
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    tokenizer, mnn = _loaded(tmp_path, _trained(library))
    _assert_same(tokenizer, mnn, [*TEXTS, *_mixed(200)])


def _byte_fallback() -> Library:
    """Llama 2's form: words begin with ▁, characters beyond the vocabulary are bytes."""
    library = Library(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    library.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    library.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=800, show_progress=False, special_tokens=names, limit_alphabet=150
    )
    library.train_from_iterator(TEXTS, trainer)
    found = json.loads(library.to_str())
    found["added_tokens"] = found["added_tokens"][:3]  # the bytes are ordinary tokens
    return Library.from_str(json.dumps(found))


def test_byte_fallback(tmp_path: Path) -> None:
    tokenizer, mnn = _loaded(tmp_path, _byte_fallback())
    _assert_same(tokenizer, mnn, [*TEXTS, *_mixed(300), "a</s> b <s>"])
    shown = "".join(map(mnn.tokenizer_decode, tokenizer.encode(TEXTS[0])))
    assert shown == " " + TEXTS[0]


@pytest.mark.parametrize("name", ["deepseek-v3", "qwen2"])
def test_tokens_show_their_text(tmp_path: Path, name: str) -> None:
    tokenizer, mnn = _loaded(tmp_path, _trained(_byte_level(name)))
    for index in range(tokenizer.vocab_size):
        text = tokenizer.decode([index], skip_special_tokens=False)
        if "\ufffd" not in text and "\0" not in text:
            assert mnn.tokenizer_decode(index) == text
    for beyond in (tokenizer.vocab_size, 10**6, -1):
        assert mnn.tokenizer_decode(beyond) == ""


def test_added_tokens_take_blanks_and_leave_gaps(tmp_path: Path) -> None:
    library = _trained(_byte_level("llama3"))
    found = json.loads(library.to_str())
    flags = {"single_word": False, "normalized": False, "special": True}
    first = library.get_vocab_size() + 17  # nobody has the ids before
    found["added_tokens"] += [
        {"id": first + 5 * i, "content": text, "lstrip": left, "rstrip": right, **flags}
        for i, (text, left, right) in enumerate([("<L>", True, False), ("<R>", False, True)])
    ]
    library = Library.from_str(json.dumps(found))
    tokenizer, mnn = _loaded(tmp_path, library)
    _assert_same(tokenizer, mnn, ["a <L> b", "a <R>  b", "<L><R>", " <L>\n<R> \n", "<L", "é▁ xé▁"])
    assert mnn.tokenizer_decode(first - 1) == ""


def test_a_begin_token_is_added_unless_the_template_writes_it(tmp_path: Path) -> None:
    library = _trained(_byte_level("deepseek-v3"))
    library.post_processor = processors.TemplateProcessing(
        single="<｜begin▁of▁sentence｜> $A", special_tokens=[("<｜begin▁of▁sentence｜>", 0)]
    )
    tokenizer, mnn = _loaded(tmp_path / "base", library)
    assert tokenizer.encode("x")[0] == 0
    _assert_same(tokenizer, mnn, ["x", "", "<think>"])
    _, mnn = _loaded(tmp_path / "chat", library, chat_template="{{ bos_token }}")
    assert mnn.tokenizer_encode("x") == tokenizer.encode("x", add_special_tokens=False)
    library.post_processor = processors.TemplateProcessing(
        single="$A <｜begin▁of▁sentence｜>", special_tokens=[("<｜begin▁of▁sentence｜>", 0)]
    )
    with pytest.raises(TokenizerError, match="after the text"):
        _loaded(tmp_path / "end", library)


def test_no_tokenizer(tmp_path: Path) -> None:
    mnn = mnn_text(tmp_path, pack_tokenizer(None, vocab_size=9, stop_ids=[3, 8]))
    assert mnn.tokenizer_encode("abc") == [0]
    assert mnn.tokenizer_encode("") == [0]
    assert mnn.tokenizer_decode(3) == ""


def test_ids_beyond_the_table(tmp_path: Path) -> None:
    tokenizer = _saved(tmp_path, _trained(_byte_level("llama3")))
    size = tokenizer.vocab_size
    assert pack_tokenizer(tokenizer, vocab_size=size, stop_ids=[size - 1])
    with pytest.raises(TokenizerError, match=f"a token has the id {size - 1}; .*vocab_size"):
        pack_tokenizer(tokenizer, vocab_size=size - 1, stop_ids=[])
    with pytest.raises(TokenizerError, match="a stop token has the id 9"):
        pack_tokenizer(None, vocab_size=9, stop_ids=[9])


def _set(*path: str | int, to: object) -> Callable[[Any], None]:
    def change(found: Any) -> None:
        for step in path[:-1]:
            found = found[step]
        found[path[-1]] = to

    return change


_STEPS = ("pre_tokenizer", "pretokenizers")
UNSUPPORTED = {
    "normalizer": _set("normalizer", to={"type": "Lowercase"}),
    "replaced pattern": _set(
        "normalizer", to={"type": "Replace", "pattern": {"Regex": " +"}, "content": " "}
    ),
    "pre-tokenizer": _set(*_STEPS, 0, to={"type": "Whitespace"}),
    "prefix space": _set(*_STEPS, 1, "add_prefix_space", to=True),
    "behavior": _set(*_STEPS, 0, "behavior", to="MergedWithNext"),
    "no bytes": _set("pre_tokenizer", to=None),
    "suffix": _set("model", "end_of_word_suffix", to="</w>"),
    "decoder": _set("decoder", to=None),
    "single word": _set("added_tokens", 1, "single_word", to=True),
    "long token": _set("added_tokens", 1, "content", to="x" * 65536),
    "model": _set("model", to={"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_mnn_has_no_form_for(tmp_path: Path, name: str) -> None:
    found = json.loads(_trained(_byte_level("llama3"), 300).to_str())
    UNSUPPORTED[name](found)
    if name == "model":
        found["added_tokens"] = []
    tokenizer = _saved(tmp_path, Library.from_str(json.dumps(found)))
    with pytest.raises(TokenizerError):
        pack_tokenizer(tokenizer, vocab_size=1 << 17, stop_ids=[])


def test_an_added_token_that_is_normalised(tmp_path: Path) -> None:
    library = _byte_fallback()
    library.add_special_tokens([AddedToken("<tool>", normalized=True)])
    with pytest.raises(TokenizerError, match="<tool>"):
        _loaded(tmp_path, library)
