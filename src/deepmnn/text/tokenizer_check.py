"""Checks tokenizer.json before the `tokenizers` library sees it.

The library trusts its files: some abort the process, some take all of the memory, or for ever.
`tokenizer_parts` names what published tokenizers consist of; anything else is refused, and so are
files whose parts together would make a text far longer. What the library checks itself (a field
that is missing, an unknown version) is left to it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from deepmnn.errors import TokenizerError, shown
from deepmnn.text.tokenizer_parts import (
    ADDED_TOKEN,
    DECODERS,
    MODELS,
    NORMALIZERS,
    POST_PROCESSORS,
    PRE_TOKENIZERS,
    FieldError,
    Part,
)

MAX_ADDED_TOKENS = 1 << 18
"""Gemma 3 has 6,000, speech models ten times as many."""

_MAX_GROWTH = 256.0
"""How many times longer a text may become: Llama 2's 12 times, T5's 200. The library takes some 30
bytes of memory for each byte of what comes of it."""

_MAX_PARTS = 64
_MAX_DEPTH = 8


_SECTIONS = (
    ("normalizer", NORMALIZERS, "normalizers"),
    ("pre_tokenizer", PRE_TOKENIZERS, "pretokenizers"),
    ("post_processor", POST_PROCESSORS, "processors"),
    ("decoder", DECODERS, "decoders"),
)
"""Fields of the file, with their types, and the field of a Sequence that lists its parts."""


def check_tokenizer(spec: Mapping[str, Any], name: str) -> None:
    """Raises TokenizerError unless the fields of a tokenizer.json, `name`, are safe to load."""
    growth = {
        field: _Walk(f"{name}: {field}", kinds, inner).growth(spec.get(field))
        for field, kinds, inner in _SECTIONS
    }
    encoding, decoding = growth["normalizer"] * growth["pre_tokenizer"], growth["decoder"]
    if max(encoding, decoding) > _MAX_GROWTH:
        raise TokenizerError(
            f"{name} makes a text {max(encoding, decoding):.3g} times longer",
            f"at most {_MAX_GROWTH:.0f} times",
        )
    _check_model(spec, f"{name}: model")
    added = spec.get("added_tokens")
    if added is None:
        return
    if not isinstance(added, list) or len(added) > MAX_ADDED_TOKENS:
        raise TokenizerError(
            f"{name}: added_tokens is {shown(added)}", f"a list of at most {MAX_ADDED_TOKENS}"
        )
    for token in added:
        check_part(token, ADDED_TOKEN, f"{name}: added_tokens")


def check_part(part: Any, kind: Part, where: str) -> None:
    """Raises TokenizerError unless part's fields are what its kind may have."""
    if not isinstance(part, dict):
        raise TokenizerError(f"{where} is {shown(part)}", "an object")
    for field, check in kind.fields.items():
        if field in part:
            try:
                check(part[field])
            except FieldError as fault:
                raise TokenizerError(
                    f"{where}: {field} is {shown(part[field])}", fault.expected
                ) from None
    try:
        kind.together(part)
    except FieldError as fault:
        raise TokenizerError(f"{where} is {shown(part, 200)}", fault.expected) from None


class _Walk:
    """Through a normalizer, pre-tokenizer, ..., and all that it consists of."""

    def __init__(self, where: str, kinds: Mapping[str, Part], inner: str) -> None:
        self._where, self._kinds, self._inner = where, kinds, inner
        self._parts = 0

    def growth(self, part: Any, depth: int = 0) -> float:
        """How many times longer it may make a text. Raises TokenizerError."""
        if part is None and depth == 0:
            return 1.0
        self._parts += 1
        if self._parts > _MAX_PARTS or depth > _MAX_DEPTH:
            raise TokenizerError(
                f"{self._where} has more parts, or deeper ones",
                f"at most {_MAX_PARTS}, {_MAX_DEPTH} deep",
            )
        name = part.get("type") if isinstance(part, dict) else None
        if name == "Sequence":
            inner = part.get(self._inner)
            if not isinstance(inner, list):
                raise TokenizerError(f"{self._where}: {self._inner} is {shown(inner)}", "a list")
            return math.prod(self.growth(each, depth + 1) for each in inner)
        if not isinstance(name, str) or name not in self._kinds:
            names = ", ".join([*self._kinds, "Sequence"])
            raise TokenizerError(f"{self._where} is {shown(part)}", f"a type of {names}")
        kind = self._kinds[name]
        check_part(part, kind, self._where)
        try:
            return kind.growth(part)
        except KeyError as missing:
            raise TokenizerError(f"{self._where}: {name} has no {missing}") from None


def _check_model(spec: Mapping[str, Any], where: str) -> None:
    model = spec.get("model")
    if not isinstance(model, dict):
        raise TokenizerError(f"{where} is {shown(model)}", "an object")
    untyped = "BPE" if "merges" in model else "WordPiece"  # the files of GPT-2 and BERT
    name = model.get("type", untyped)
    if not isinstance(name, str) or name not in MODELS:
        raise TokenizerError(f"{where} has the type {shown(name)}", " or ".join(MODELS))
    check_part(model, MODELS[name], where)
    vocab = model.get("vocab", {})
    if name == "BPE":
        _check_merges(model.get("merges", []), vocab, where)
    if name == "Unigram" and (model.get("unk_id") or 0) >= max(1, len(vocab)):
        raise TokenizerError(f"{where}: unk_id is {model['unk_id']}", f"below {len(vocab)}")


def _check_merges(merges: list[Any], vocab: Mapping[str, int], where: str) -> None:
    """The library writes what a merge makes into a buffer as long as the longest token."""
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if isinstance(merge, str) and merge.startswith("#version"):
            continue
        if (
            len(pair) != 2
            or not all(isinstance(token, str) and token in vocab for token in pair)
            or "".join(pair) not in vocab
        ):
            raise TokenizerError(
                f"{where}: the merge {shown(merge)} makes no token", "tokens of the vocabulary"
            )
