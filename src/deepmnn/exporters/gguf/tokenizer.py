"""A tokenizer as GGUF's keys. Source: conversion/base.py of llama.cpp, and its src/llama-vocab.cpp.

Byte-level byte-pair encoding is "gpt2" there, with a pre-tokenizer by name (pre_tokenizer.py).
Byte-pair encoding of SentencePiece, whose unknown characters fall back to bytes, is "llama": it
joins what makes the token of the highest score, so a token's score tells when merges make it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import tokenizers

from deepmnn.errors import TokenizerError, shown
from deepmnn.exporters.gguf.pre_tokenizer import TEXTS, find_pre
from deepmnn.source.gguf.names import (
    BYTE,
    CONTROL,
    NORMAL,
    SPECIAL_TOKENS,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
)
from deepmnn.source.gguf.tokenizer import NO_MERGE
from deepmnn.text.tokenizer import Tokenizer

_LOOKS_SPECIAL = re.compile(r"<\|.*\|>|<｜.*｜>|<pad>|<mask>", re.DOTALL)
"""Added tokens that llama.cpp's converter takes for special, whatever tokenizer.json says."""

_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
_ADDED_SCORE, _UNUSED_SCORE = -1000.0, -10000.0
_HINT = "Take the tokenizer's files away and run the model by token ids, or export another form."


@dataclass
class Vocabulary:
    """Keys without "tokenizer." in front → values, and what llama.cpp does otherwise."""

    fields: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def vocabulary(
    tokenizer: Tokenizer | None, vocab_size: int, config: Mapping[str, Any], eos_ids: frozenset[int]
) -> Vocabulary:
    """The keys of a tokenizer; None: of a model without one, which runs by token ids.

    Args:
        tokenizer: the model's.
        vocab_size: the model's; tokens that the tokenizer does not know are named [PADn].
        config: config.json, whose ids count where the tokenizer names no token.
        eos_ids: what ends an answer.

    Raises TokenizerError for a tokenizer that GGUF has no form for.
    """
    made = Vocabulary()
    if tokenizer is None:
        made.fields["ggml.model"] = "none"
        made.notes.append("there is no tokenizer: llama.cpp runs it by token ids alone")
        return made
    spec = json.loads(tokenizer.library.to_str())
    _check_size(tokenizer, vocab_size)
    kind = _kind(spec)
    if kind == "gpt2":
        _byte_level(made, tokenizer, spec["model"], vocab_size)
    else:
        _sentencepiece(made, tokenizer, spec, vocab_size)
    _special(made, tokenizer, config, eos_ids)
    if tokenizer.has_chat_template:
        made.fields["chat_template"] = tokenizer.chat_template
    return made


def _check_size(tokenizer: Tokenizer, vocab_size: int) -> None:
    most = max(tokenizer.library.get_vocab().values(), default=-1)
    if most >= vocab_size:
        raise TokenizerError(
            f"the tokenizer has the token id {most}", f"ids below vocab_size, {vocab_size}", _HINT
        )


def _kind(spec: Mapping[str, Any]) -> str:
    """tokenizer.ggml.model."""
    model = spec["model"]
    affixes = model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")
    if model["type"] != "BPE" or affixes or model.get("dropout"):
        what = f"{model['type']}{' with affixes' if affixes else ''}"
        raise TokenizerError(f"the tokenizer is {what}", "byte-pair encoding", _HINT)
    if _has(spec["pre_tokenizer"], "ByteLevel"):
        return "gpt2"
    if model.get("byte_fallback"):
        return "llama"
    raise TokenizerError(
        "the tokenizer's byte-pair encoding is neither byte-level nor SentencePiece's",
        "one of them",
        _HINT,
    )


def _has(part: object, kind: str) -> bool:
    """Whether a pre-tokenizer, or what it consists of, is of a kind."""
    if isinstance(part, dict):
        return part.get("type") == kind or any(_has(inner, kind) for inner in part.values())
    return isinstance(part, list) and any(_has(inner, kind) for inner in part)


def _byte_level(
    made: Vocabulary, tokenizer: Tokenizer, model: Mapping[str, Any], vocab_size: int
) -> None:
    pre, wrong = find_pre(tokenizer.library)
    if wrong:
        made.notes.append(
            f"llama.cpp has no pre-tokenizer that cuts text as this model's does: {pre} is "
            f"nearest, and gives other token ids on {wrong} of {len(TEXTS)} texts; run the model "
            "by token ids there"
        )
    tokens, types = _tokens(tokenizer, vocab_size)
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    if not merges:
        merges = [NO_MERGE]
    made.fields |= {
        "ggml.model": "gpt2",
        "ggml.pre": pre,
        "ggml.tokens": tokens,
        "ggml.token_type": types,
        "ggml.merges": merges,
    }


def _sentencepiece(
    made: Vocabulary, tokenizer: Tokenizer, spec: Mapping[str, Any], vocab_size: int
) -> None:
    tokens, types = _tokens(tokenizer, vocab_size)
    ranks: dict[str, float] = {}
    for rank, merge in enumerate(spec["model"]["merges"]):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        ranks.setdefault(left + right, -float(rank))
    unknown = spec["model"].get("unk_token")
    scores = []
    for index, token in enumerate(tokens):
        if token == unknown and types[index] in (NORMAL, CONTROL):
            types[index] = UNKNOWN
        elif types[index] == NORMAL and _BYTE_TOKEN.fullmatch(token):
            types[index] = BYTE
        plain = types[index] in (NORMAL, BYTE, UNKNOWN)
        last = 0.0 if types[index] != NORMAL else -float(len(ranks))
        other = _UNUSED_SCORE if types[index] == UNUSED else _ADDED_SCORE
        scores.append(ranks.get(token, last) if plain else other)
    pieces = tokenizer.library.encode("a", add_special_tokens=False).tokens
    wrong = _other_ids(tokenizer, spec, dict(zip(tokens, scores, strict=True)))
    if wrong:
        made.notes.append(
            "llama.cpp joins pieces that this model's merges do not, and gives other token ids on "
            f"{wrong} of {len(TEXTS)} texts"
        )
    made.fields |= {
        "ggml.model": "llama",
        "ggml.pre": "default",
        "ggml.tokens": tokens,
        "ggml.scores": scores,
        "ggml.token_type": types,
        "ggml.add_space_prefix": pieces[0].startswith("▁") if pieces else False,
    }


def _other_ids(tokenizer: Tokenizer, spec: Mapping[str, Any], scores: Mapping[str, float]) -> int:
    """On how many texts other ids come out where, as in llama.cpp, all neighbours are joined that
    make a token, the highest score first.
    """
    pairs = [
        (scores[token], token[:cut], token[cut:])
        for token in spec["model"]["vocab"]
        for cut in range(1, len(token))
        if token[:cut] in scores and token[cut:] in scores and not _BYTE_TOKEN.fullmatch(token)
    ]
    pairs.sort(key=lambda pair: -pair[0])
    merges = [[left, right] for _, left, right in pairs]
    model = {**spec["model"], "merges": merges, "ignore_merges": False}
    joined = tokenizers.Tokenizer.from_str(json.dumps({**spec, "model": model}))

    def ids(library: tokenizers.Tokenizer, text: str) -> list[int]:
        found: list[int] = library.encode(text, add_special_tokens=False).ids
        return found

    return sum(ids(joined, text) != ids(tokenizer.library, text) for text in TEXTS)


def _tokens(tokenizer: Tokenizer, vocab_size: int) -> tuple[list[str], list[int]]:
    """Every token's text and type."""
    texts = {index: text for text, index in tokenizer.library.get_vocab().items()}
    added = tokenizer.library.get_added_tokens_decoder()
    tokens, types = [], []
    for index in range(vocab_size):
        token = added.get(index)
        if token is not None:
            special = token.special or _LOOKS_SPECIAL.fullmatch(token.content)
            tokens.append(token.content)
            types.append(CONTROL if special else USER_DEFINED)
        elif index in texts:
            tokens.append(texts[index])
            types.append(NORMAL)
        else:
            tokens.append(f"[PAD{index}]")
            types.append(UNUSED)
    for text in tokens:
        if not _is_text(text):
            raise TokenizerError(f"the tokenizer has the token {shown(text)}", "a text", _HINT)
    return tokens, types


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _special(
    made: Vocabulary, tokenizer: Tokenizer, config: Mapping[str, Any], eos_ids: frozenset[int]
) -> None:
    """What begins and ends texts."""
    ids: dict[str, int] = {}
    for name, key in SPECIAL_TOKENS.items():
        found = tokenizer.token_id(tokenizer.special_tokens.get(name, ""))
        given = config.get(f"{name}_id")
        if found is None and type(given) is int:
            found = given
        if found is not None and 0 <= found < len(made.fields["ggml.tokens"]):
            ids[key] = found
    eos = ids.get("eos_token_id")
    if eos is None and eos_ids:
        ids["eos_token_id"] = eos = min(eos_ids)
    others = sorted(eos_ids - {eos})
    if others:  # the end of a turn; llama.cpp finds more by their names
        ids["eot_token_id"] = others[0]
    encoded = tokenizer.encode("a")
    begins, ends = encoded[:1] == [ids.get("bos_token_id")], encoded[-1:] == [eos]
    made.fields |= {f"ggml.{key}": index for key, index in ids.items()}
    made.fields |= {"ggml.add_bos_token": begins, "ggml.add_eos_token": ends}
