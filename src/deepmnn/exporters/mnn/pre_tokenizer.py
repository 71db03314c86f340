r"""Normalizers and pre-tokenizers of a tokenizer.json as MNN can say them.

MNN matches patterns with an engine of its own. It folds every character beyond ASCII to one of
seven classes (letter, number, space, mark, punctuation, symbol, other), knows \p by its first
letter only, no anchors, and misreads without a word what it does not know. So a pattern passes here
when it lies within what that engine does as Oniguruma does, after exact rewrites (`$` is `(?!.)`).
A class of characters beyond ASCII goes to std::wregex, which takes it as it is. Anything else is a
TokenizerError.

Over all of Unicode, in the patterns of DeepSeek, Qwen and Llama 3, only these are split elsewhere
than by Oniguruma, so that their tokens and those beside them can differ:

- the control characters U+0001 .. U+0007 and U+0085, the separators U+2028 and U+2029, and
  characters that came with Unicode 16;
- 'ſ, which (?i:'s) means as well;
- before NFC: marks that are out of order, or that join a letter across another mark.

std::wregex recurses in the Linux wheel: tens of thousands of Han characters without a break, in
DeepSeek's patterns, exhaust the stack.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

from deepmnn.errors import TokenizerError
from deepmnn.exporters.mnn import mtok

HINT = "MNN's tokenizer cannot do this: export without a tokenizer and encode outside MNN."
"""What to do about a tokenizer that MNN has no form for."""
_BEHAVIORS = {"Isolated": mtok.ISOLATED, "Removed": mtok.REMOVED}
_SPACES = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
"""Unicode's White_Space, as the inside of a class."""

# The patterns that MNN's engine matches as Oniguruma does: alternatives of quantified characters
# and classes, which match something (MNN knows no empty match) and may end in a look-ahead or a
# group of plain alternatives (nothing may follow: MNN never tries a group's next alternative).
_ESCAPE = r"\\(?:[rntfsS]|[pP]\{[LNMPS]\}|[!-/:-@\[-`{-~])"
_CLASS_TEXT = r"(?:(?!&&)[^\\\[\]\-])"
_CLASS = rf"\[\^?(?:{_CLASS_TEXT}-{_CLASS_TEXT}|{_CLASS_TEXT}|{_ESCAPE}|-(?=\]))++\]"
_ATOM = rf"(?:{_CLASS}|{_ESCAPE}|[^\\\[\](){{}}|*+?^$])"
_MAYBE = rf"{_ATOM}(?:[*?]|\{{0+(?:,\d*)?\}})(?![*+?{{])"
_SOME = rf"{_ATOM}(?:\+|\{{0*[1-9]\d*(?:,\d*)?\}})?+(?![*+?{{])"
_WORDS = rf"\(\?i?:{_ATOM}++(?:\|{_ATOM}++)*+\)"
_END = rf"(?:{_WORDS}|\(\?!{_ATOM}\))?+"
_BRANCH = rf"(?:{_MAYBE})*+(?:{_SOME}(?:{_MAYBE}|{_SOME})*+{_END}|{_WORDS})"
_FOLDED = re.compile(rf"{_BRANCH}(?:\|{_BRANCH})*+", re.DOTALL)
_DOLLAR = re.compile(rf"({_CLASS}|\\.)|\$", re.DOTALL)
# Beyond ASCII: one class, perhaps with a space before it.
_WIDE = re.compile(rf"(\\s\?)?(\[\^?(?:{_CLASS_TEXT}-{_CLASS_TEXT}|{_CLASS_TEXT})++\]\+?)")


def normalizer(found: Mapping[str, Any] | None) -> bytes:
    """A tokenizer.json's "normalizer". Raises TokenizerError for what MNN cannot do."""
    steps = [step for part in _parts(found, "normalizers") for step in _normalizer_steps(part)]
    return mtok.normalizers(steps) if steps else mtok.NOTHING


def pre_tokenizer(found: Mapping[str, Any] | None) -> bytes:
    """A tokenizer.json's "pre_tokenizer". Raises TokenizerError for what MNN cannot do."""
    steps = [_pre_tokenizer_step(part) for part in _parts(found, "pretokenizers")]
    return mtok.pre_tokenizers(steps) if steps else mtok.NOTHING


def is_byte_level(found: Mapping[str, Any] | None) -> bool:
    """Whether a "pre_tokenizer" turns bytes into GPT-2's letters."""
    return any(part["type"] == "ByteLevel" for part in _parts(found, "pretokenizers"))


def _parts(found: Mapping[str, Any] | None, name: str) -> Iterator[Mapping[str, Any]]:
    if found is not None and found["type"] == "Sequence":
        for part in found[name]:
            yield from _parts(part, name)
    elif found is not None:
        yield found


def _normalizer_steps(part: Mapping[str, Any]) -> Iterator[bytes]:
    match part:
        case {"type": "NFC"}:
            yield from (mtok.replace(old, new) for old, new in _nfc())
        case {"type": "Prepend", "prepend": content}:
            yield mtok.prepend(content)
        case {"type": "Replace", "pattern": {"String": pattern}, "content": content} if pattern:
            yield mtok.replace(pattern, content)
        case _:
            raise _unsupported("normalizer", part)


def _nfc() -> Iterator[tuple[str, str]]:
    """Canonical composition as replacements in order: characters that are not NFC, then pairs.

    MNN's own form of NFC knows no pairs, and turns joiners and control characters into spaces.
    """
    pairs = []
    for char in map(chr, range(0x110000)):
        parts = unicodedata.normalize("NFD", char)
        if (composed := unicodedata.normalize("NFC", char)) != char:
            yield char, composed
        elif len(parts) > 1:
            pairs.append((unicodedata.normalize("NFC", parts[:-1]) + parts[-1], char))
    # What a pair begins with may be the character of another: the shorter come first.
    yield from sorted(pairs, key=lambda pair: len(unicodedata.normalize("NFD", pair[1])))


def _pre_tokenizer_step(part: Mapping[str, Any]) -> bytes:
    match part:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": use_regex}:
            return mtok.byte_level(use_regex)
        case {"type": "Digits", "individual_digits": alone}:  # MNN's own knows only 0 .. 9
            return mtok.split(r"\p{N}" if alone else r"\p{N}+", False, mtok.ISOLATED)
        case {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert}:
            if behavior in _BEHAVIORS:
                return mtok.split(_pattern(pattern), invert, _BEHAVIORS[behavior])
    raise _unsupported("pre-tokenizer", part)


def _pattern(found: Mapping[str, str]) -> str:
    """{"Regex": pattern} or {"String": text} as a pattern that MNN matches alike."""
    if "String" in found:
        pattern = re.sub(r"[!-/:-@\[-^`{-~]", r"\\\g<0>", found["String"])
    else:
        pattern = _DOLLAR.sub(lambda match: match[1] or "(?!.)", found["Regex"])
    if pattern.isascii() and _FOLDED.fullmatch(pattern):
        return pattern
    wide = _WIDE.fullmatch(pattern)
    if wide and not pattern.isascii():
        return (f"[{_SPACES}]?" if wide[1] else "") + wide[2]
    if "String" in found and not pattern.isascii():
        return pattern
    raise TokenizerError(
        f"the pre-tokenizer's pattern is {pattern!r:.200}", "one that MNN matches alike", HINT
    )


def _unsupported(what: str, part: Mapping[str, Any]) -> TokenizerError:
    return TokenizerError(f"the tokenizer's {what} is {dict(part)!r:.200}", "", HINT)
