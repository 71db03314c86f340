"""A Hugging Face tokenizer.json (BPE over bytes, or over characters with byte fallback) for MNN.

Of MNN's tokenizer files only the newest, `tokenizer.mtok` (since MNN 3.5), is BPE; the text files
know longest matches, and words of ASCII letters. Token ids are those of the `tokenizers` library
but for the text that `pre_tokenizer` lists, and for `ignore_merges`, which MNN lacks: a word that
is a token, but that no merges lead to, is split (588 of Llama 3's 128,000, such as " việc").
Where nothing splits a text (Llama 2), MNN's time grows with the square of its length.

MNN checks nothing of what it reads, so ids, lengths and patterns are checked here.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import tokenizers

from deepmnn.errors import TokenizerError
from deepmnn.exporters.mnn import mtok
from deepmnn.exporters.mnn.pre_tokenizer import HINT, is_byte_level, normalizer, pre_tokenizer
from deepmnn.text.tokenizer import Tokenizer


def pack_tokenizer(
    tokenizer: Tokenizer | None, *, vocab_size: int, stop_ids: Collection[int]
) -> bytes:
    """The file that MNN's runtime reads.

    Args:
        tokenizer: the model's, or None for the smallest that lets MNN load a model that is run by
            token ids: no token has a text, and every text is token 0 (MNN crashes on no tokens).
        vocab_size: rows of the model's embedding table; every id must be below.
        stop_ids: tokens that end an answer.

    A text gets the tokens in front that Hugging Face puts there (begin of sequence), unless the
    model has a chat template, for MNN's apps always render that and it writes its own.

    Raises TokenizerError for what MNN would tokenise in another way.
    """
    _check_ids(stop_ids, vocab_size, "a stop token")
    if tokenizer is None:
        model, decoder = mtok.bpe([], [], False), mtok.BYTE_LEVEL_DECODER
        parts = (mtok.NOTHING, mtok.NOTHING, model, decoder, mtok.added_tokens([]))
        return mtok.head(sorted(stop_ids), [0]) + b"".join(parts)
    library = tokenizer.library
    found = json.loads(library.to_str())
    added = [_added_token(token, library) for token in found["added_tokens"]]
    _check_model(found)
    ids = chain(found["model"]["vocab"].values(), (token.id for token in added))
    _check_ids(ids, vocab_size, "a token")
    parts = (
        normalizer(found["normalizer"]),
        pre_tokenizer(found["pre_tokenizer"]),
        _model(found, added),
        _decoder(found),
        mtok.added_tokens(added),
    )
    return mtok.head(sorted(stop_ids), _prefix(tokenizer)) + b"".join(parts)


def _check_ids(ids: Iterable[int], vocab_size: int, what: str) -> None:
    largest = max(ids, default=-1)
    if largest >= vocab_size:
        raise TokenizerError(
            f"{what} has the id {largest}",
            f"an id below the model's vocab_size, {vocab_size}",
            "Use the tokenizer that the model was trained with.",
        )


def _added_token(found: Mapping[str, Any], library: tokenizers.Tokenizer) -> mtok.AddedToken:
    content, normalizer = found["content"], library.normalizer
    if found["single_word"]:
        raise TokenizerError(f"the added token {content!r} is single_word", "", HINT)
    # MNN cuts the added tokens out of the text before it normalises the rest.
    if found["normalized"] and normalizer and normalizer.normalize_str(content) != content:
        raise TokenizerError(f"the normalizer changes the added token {content!r}", "", HINT)
    return mtok.AddedToken(found["id"], content, found["special"], found["lstrip"], found["rstrip"])


def _check_model(found: Mapping[str, Any]) -> None:
    """Raises TokenizerError unless it is BPE over bytes, or over characters with all bytes."""
    model = found["model"]
    if model["type"] != "BPE":
        raise TokenizerError(f"the tokenizer's model is {model['type']}", "BPE", HINT)
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model[name]:
            raise TokenizerError(f"the tokenizer's {name} is {model[name]!r}", "none", HINT)
    if is_byte_level(found["pre_tokenizer"]):
        return
    if not model["byte_fallback"] or any(f"<0x{b:02X}>" not in model["vocab"] for b in range(256)):
        raise TokenizerError(
            "the tokenizer has no ByteLevel pre-tokenizer and no byte_fallback to 256 tokens",
            "one of them",
            HINT,
        )


def _model(found: Mapping[str, Any], added: Sequence[mtok.AddedToken]) -> bytes:
    """Every id up to the last has a text, one that is not in use an empty one."""
    vocab, merges = found["model"]["vocab"], found["model"]["merges"]
    shown = {token.id: token.content for token in added}
    if is_byte_level(found["pre_tokenizer"]):  # MNN shows a token by the bytes of its letters
        letters = mtok.byte_letters()
        shown = {i: "".join(letters[b] for b in text.encode()) for i, text in shown.items()}
    own = [(token, index) for token, index in vocab.items() if index not in shown]
    used = set(vocab.values())
    others = [
        (shown.get(i, ""), i)
        for i in range(max(used | shown.keys(), default=-1) + 1)
        if i in shown or i not in used
    ]
    ranked = ((vocab[left], vocab[right]) for left, right in merges)
    entries = ((token.encode(), index) for token, index in chain(own, others))
    return mtok.bpe(entries, ranked, found["model"]["byte_fallback"])


def _decoder(found: Mapping[str, Any]) -> bytes:
    """How tokens become text, for MNN's apps."""
    decoder = found["decoder"]
    if is_byte_level(found["pre_tokenizer"]) and decoder and decoder["type"] == "ByteLevel":
        return mtok.BYTE_LEVEL_DECODER
    steps = []
    for part in (decoder or {}).get("decoders", [decoder]):
        match part:
            case {"type": "Replace", "pattern": {"String": pattern}, "content": content}:
                steps.append(mtok.replace_decoder(pattern, content))
            case {"type": "ByteFallback"}:
                steps.append(mtok.BYTE_FALLBACK_DECODER)
            case {"type": "Fuse"}:
                steps.append(mtok.FUSE_DECODER)
            case {"type": "Strip", "content": content, "start": start, "stop": stop}:
                steps.append(mtok.strip_decoder(content, start, stop))
            case _:
                raise TokenizerError(f"the tokenizer's decoder is {part!r:.200}", "", HINT)
    return mtok.decoders(steps)


def _prefix(tokenizer: Tokenizer) -> list[int]:
    if tokenizer.has_chat_template:
        return []
    prefix, text = tokenizer.encode(""), tokenizer.encode("a", add_special_tokens=False)
    if tokenizer.encode("a") != prefix + text:
        raise TokenizerError(
            "the tokenizer adds special tokens after the text", "none, or some before it", HINT
        )
    return prefix
