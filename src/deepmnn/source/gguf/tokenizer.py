"""A GGUF file's tokenizer as tokenizer.json and tokenizer_config.json.

Its tokens, their kinds, merges or scores, and the name of a pre-tokenizer are in the metadata; what
that name stands for is in pre_tokenizers.py. A SentencePiece vocabulary becomes merges as in
transformers' LlamaConverter.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from deepmnn.errors import CheckpointError, TokenizerError, shown
from deepmnn.source.gguf.names import CONTROL, SPECIAL_TOKENS, UNKNOWN, UNUSED, USER_DEFINED
from deepmnn.source.gguf.pre_tokenizers import PRE_TOKENIZERS, PreTokenizer
from deepmnn.source.side_files import TOKENIZER

TOKENIZER_CONFIG = "tokenizer_config.json"
GENERATION_CONFIG = "generation_config.json"

_MAX_PIECE = 128
"""Characters of a SentencePiece token that others are merged to. Its trainer's limit is 16."""

_SPACE = "\u2581"

NO_MERGE = "-- --"
"""Stands for no merge where there are none, for llama.cpp wants one: no piece has two characters
before there is a merge."""

_SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}
"""general.sampling.… → generation_config.json."""

_ENDS = (
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|end|>",
    "</s>",
    "<EOT>",
    "[EOT]",
    "[EOS]",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
)
"""Control tokens that end an answer wherever they are: eos_token_id of Hugging Face's
generation_config.json has several, and a file names one. llama.cpp knows them by these names, too
(src/llama-vocab.cpp)."""

Json = dict[str, Any]


@dataclass(frozen=True)
class Vocabulary:
    """What the metadata says of the tokens.

    Attributes:
        path: in messages.
        metadata: all of it.
        tokens: by id.
        kinds: of each.
    """

    path: object
    metadata: Mapping[str, Any]
    tokens: list[str]
    kinds: list[int]

    @classmethod
    def of(cls, metadata: Mapping[str, Any], path: object) -> Vocabulary:
        """The file's. Raises CheckpointError when its parts do not fit together."""
        tokens = _list(metadata, "tokens", str, path)
        types = metadata.get("tokenizer.ggml.token_type")
        kinds = types.tolist() if isinstance(types, np.ndarray) else [1] * len(tokens)
        if len(kinds) < len(tokens):
            raise CheckpointError(
                f"{path} has {len(tokens)} tokens and {len(kinds)} kinds of them", "as many"
            )
        return cls(path, metadata, tokens, kinds)

    def ids(self) -> dict[str, int]:
        """Token → id, without what fills up the vocabulary. Raises CheckpointError."""
        found: dict[str, int] = {}
        for index, token in enumerate(self.tokens):
            if not token or (self.kinds[index] == UNUSED and token == f"[PAD{index}]"):
                continue
            if token in found:
                raise CheckpointError(
                    f"{self.path}: the token {shown(token)} has the ids {found[token]} and {index}",
                    "one id",
                )
            found[token] = index
        return found

    def added(self) -> list[Json]:
        """The tokens that are found in a text before it is cut: control tokens and a user's."""
        special = {UNKNOWN: True, CONTROL: True, USER_DEFINED: False}
        return [
            {
                "id": index,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": special[kind],
            }
            for index, (token, kind) in enumerate(zip(self.tokens, self.kinds, strict=False))
            if token and kind in special
        ]

    def named(self, defaults: Mapping[str, int]) -> dict[str, str]:
        """bos_token, eos_token, ... → its text; none that is an ordinary token but for the first
        two: naming it would make it special.
        """
        found = {}
        for name, key in SPECIAL_TOKENS.items():
            index = self.metadata.get(f"tokenizer.ggml.{key}", defaults.get(name))
            if type(index) is not int or not 0 <= index < len(self.tokens):
                continue
            known = self.kinds[index] in (UNKNOWN, CONTROL, USER_DEFINED)
            if self.tokens[index] and (known or name in ("bos_token", "eos_token")):
                found[name] = self.tokens[index]
        return found

    def flag(self, name: str, default: bool) -> bool:
        """A flag of the tokenizer. Raises CheckpointError."""
        value = self.metadata.get(f"tokenizer.ggml.{name}", default)
        if not isinstance(value, bool):
            raise CheckpointError(
                f"tokenizer.ggml.{name} in {self.path} is {shown(value)}", "true or false"
            )
        return value


def tokenizer_files(metadata: Mapping[str, Any], path: object) -> dict[str, bytes]:
    """tokenizer.json, tokenizer_config.json and, where the file recommends how to sample or several
    tokens end an answer, generation_config.json; no tokenizer where the file has none.

    path: in messages.

    Raises CheckpointError for metadata that do not fit together, TokenizerError for a kind of
    tokenizer that is not read.
    """
    files = _generation(_recommended(metadata))
    model = metadata.get("tokenizer.ggml.model", "none")
    if model in ("none", "no_vocab"):
        return files
    makers = {"gpt2": _byte_level, "llama": _sentence_piece}
    if model not in makers:
        raise TokenizerError(
            f"the tokenizer of {path} is of the kind {shown(model)}",
            f"{' or '.join(makers)}",
            "Convert with the config.json of the original checkpoint, beside its tokenizer.json.",
        )
    vocabulary = Vocabulary.of(metadata, path)
    files = _generation(_recommended(metadata) | _ends(vocabulary))
    spec, config = makers[model](vocabulary)
    template = metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        config["chat_template"] = template
    spec = {"version": "1.0", "truncation": None, "padding": None, **spec}
    files[TOKENIZER] = json.dumps(spec, ensure_ascii=False).encode()
    files[TOKENIZER_CONFIG] = json.dumps(config, ensure_ascii=False, indent=2).encode()
    return files


def _byte_level(vocabulary: Vocabulary) -> tuple[Json, Json]:
    """A BPE of bytes, written as ByteLevel's letters."""
    pre = _pre_tokenizer(vocabulary)
    merges = _stored_merges(vocabulary)
    ids = vocabulary.ids()
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    split = [*pre.parts, {**level, "use_regex": pre.use_regex}]
    named = vocabulary.named({})
    spec = {
        "added_tokens": vocabulary.added(),
        "normalizer": pre.normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": split},
        "post_processor": None,
        "decoder": {**level, "use_regex": True},
        "model": _bpe(ids, merges, pre.ignore_merges),
    }
    return _finished(vocabulary, spec, named, pre.adds_bos)


def _pre_tokenizer(vocabulary: Vocabulary) -> PreTokenizer:
    """What is done to a text before BPE. A file that does not say has llama.cpp's default."""
    name = vocabulary.metadata.get("tokenizer.ggml.pre", "default")
    if name not in PRE_TOKENIZERS:
        raise TokenizerError(
            f"the pre-tokenizer of {vocabulary.path} is {shown(name)}",
            f"one of {', '.join(PRE_TOKENIZERS)}",
            "Convert with the config.json of the original checkpoint, beside its tokenizer.json.",
        )
    return PRE_TOKENIZERS[name]


def _sentence_piece(vocabulary: Vocabulary) -> tuple[Json, Json]:
    """SentencePiece's BPE: what is merged is the neighbours whose token has the best score."""
    ids = vocabulary.ids()
    named = vocabulary.named({"bos_token": 1, "eos_token": 2, "unk_token": 0})
    prefix = vocabulary.flag("add_space_prefix", True)
    prepend = [{"type": "Prepend", "prepend": _SPACE}] if prefix else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    back = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    spec = {
        "added_tokens": vocabulary.added(),
        "normalizer": {"type": "Sequence", "normalizers": [*prepend, replace]},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip],
        },
        "model": _bpe(ids, _merges(vocabulary, ids), False)
        | {"unk_token": named.get("unk_token"), "fuse_unk": True, "byte_fallback": True},
    }
    return _finished(vocabulary, spec, named, True)


def _stored_merges(vocabulary: Vocabulary) -> list[list[str]]:
    """The file's merges, in pairs."""
    merges = _list(vocabulary.metadata, "merges", str, vocabulary.path)
    merges = [] if merges == [NO_MERGE] else merges
    for merge in merges:
        if merge.count(" ") != 1:
            raise CheckpointError(
                f"{vocabulary.path}: the merge {shown(merge)} has no two parts", "LEFT RIGHT"
            )
    return [merge.split(" ") for merge in merges]


def _merges(vocabulary: Vocabulary, ids: Mapping[str, int]) -> list[list[str]]:
    """Those of the file, or every pair of tokens that is a token, the best score first."""
    if "tokenizer.ggml.merges" in vocabulary.metadata:
        return _stored_merges(vocabulary)
    scores = vocabulary.metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, np.ndarray) or len(scores) < len(vocabulary.tokens):
        raise CheckpointError(
            f"{vocabulary.path} has no score for each of its {len(vocabulary.tokens)} tokens",
            "tokenizer.ggml.scores",
        )
    ranks = scores.tolist()
    found: list[tuple[float, int, int, str, str]] = []
    for token, index in ids.items():
        if len(token) > _MAX_PIECE:
            continue
        pairs = [(token[:at], token[at:]) for at in range(1, len(token))]
        known = [pair for pair in pairs if pair[0] in ids and pair[1] in ids]
        known.sort(key=lambda pair: (ids[pair[0]], ids[pair[1]]))
        found += [(ranks[index], len(left), len(right), left, right) for left, right in known]
    found.sort(key=lambda merge: merge[:3], reverse=True)
    return [[left, right] for *_, left, right in found]


def _bpe(ids: Mapping[str, int], merges: list[list[str]], ignore_merges: bool) -> Json:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": ignore_merges,
        "vocab": ids,
        "merges": merges,
    }


def _finished(
    vocabulary: Vocabulary, spec: Json, named: dict[str, str], adds_bos: bool
) -> tuple[Json, Json]:
    """With the tokens that are put around a text."""
    flags = {
        "add_bos_token": vocabulary.flag("add_bos_token", adds_bos) and "bos_token" in named,
        "add_eos_token": vocabulary.flag("add_eos_token", False) and "eos_token" in named,
    }
    ids: dict[str, int] = spec["model"]["vocab"]
    before = [named["bos_token"]] if flags["add_bos_token"] else []
    after = [named["eos_token"]] if flags["add_eos_token"] else []
    if before or after:
        single = [*_pieces(before), {"Sequence": {"id": "A", "type_id": 0}}, *_pieces(after)]
        spec["post_processor"] = {
            "type": "TemplateProcessing",
            "single": single,
            "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {
                token: {"id": token, "ids": [ids[token]], "tokens": [token]}
                for token in (*before, *after)
            },
        }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **flags,
        **named,
    }
    return spec, config


def _pieces(tokens: list[str]) -> list[Json]:
    return [{"SpecialToken": {"id": token, "type_id": 0}} for token in tokens]


def _recommended(metadata: Mapping[str, Any]) -> Json:
    """How the file recommends to sample."""
    found = {
        ours: metadata[f"general.sampling.{theirs}"]
        for theirs, ours in _SAMPLING.items()
        if type(metadata.get(f"general.sampling.{theirs}")) in (int, float)
    }
    return {"do_sample": True, **found} if found else {}


def _ends(vocabulary: Vocabulary) -> Json:
    """The tokens that end an answer, where they are more than eos_token: those of llama.cpp."""
    keys = (f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom"))
    said = [vocabulary.metadata.get(key) for key in keys]
    found = {token for token in said if type(token) is int and 0 <= token < len(vocabulary.tokens)}
    kinds = zip(vocabulary.tokens, vocabulary.kinds, strict=False)
    found |= {i for i, (token, kind) in enumerate(kinds) if kind == CONTROL and token in _ENDS}
    return {"eos_token_id": sorted(found)} if len(found) > 1 else {}


def _generation(fields: Json) -> dict[str, bytes]:
    """generation_config.json, where it says something."""
    return {GENERATION_CONFIG: json.dumps(fields, indent=2).encode()} if fields else {}


def _list(metadata: Mapping[str, Any], name: str, kind: type, path: object) -> list[Any]:
    value = metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
        raise CheckpointError(f"{path} has no texts in tokenizer.ggml.{name}", "a list of texts")
    return value
