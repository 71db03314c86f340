"""Tokenizers out of metadata: the ids of the tokenizer.json that they were written from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from deepmnn.errors import CheckpointError, TokenizerError
from deepmnn.source.gguf.file import GgufFile
from deepmnn.source.gguf.pre_tokenizers import PRE_TOKENIZERS
from deepmnn.source.gguf.tokenizer import NO_MERGE, tokenizer_files
from deepmnn.text import tokenizer as text
from deepmnn.text.answer_end import end_ids
from deepmnn.text.generation_config import GenerationConfig
from gguf_files import as_json, tokenizer_keys, write_vocabulary
from texts_of_the_world import TEXTS

BOS, EOS = "<|begin|>", "<|end|>"


def trained(pre: str) -> dict[str, Any]:
    """A tokenizer.json with this pre-tokenizer, trained on TEXTS by the library."""
    known = PRE_TOKENIZERS[pre]
    made = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=known.use_regex)
    made.pre_tokenizer = split
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(TEXTS, trainer)
    spec = as_json(made.to_str().encode())
    spec["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [*known.parts, as_json(json.dumps(spec["pre_tokenizer"]).encode())],
    }
    spec["normalizer"] = known.normalizer
    spec["model"]["ignore_merges"] = known.ignore_merges
    spec["added_tokens"].append(
        {"id": len(spec["model"]["vocab"]), "content": "<think>", "single_word": False}
        | {"lstrip": False, "rstrip": False, "normalized": False, "special": False}
    )
    return spec


def read(path: Path) -> tuple[Tokenizer, dict[str, Any]]:
    """The tokenizer of a file, and tokenizer_config.json."""
    files = tokenizer_files(GgufFile(path).metadata, path)
    made = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())
    return made, as_json(files["tokenizer_config.json"])


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_ids_are_those_of_the_original(tmp_path: Path, pre: str) -> None:
    spec = trained(pre)
    write_vocabulary(tmp_path / "a.gguf", tokenizer_keys(spec, pre, 2100), add_bos_token=False)
    got, config = read(tmp_path / "a.gguf")
    want = Tokenizer.from_str(json.dumps(spec))
    for sample in [*TEXTS, f"{BOS}a<think>b{EOS}"]:
        assert got.encode(sample).ids == want.encode(sample).ids
        assert got.decode(got.encode(sample).ids) == want.decode(want.encode(sample).ids)
    assert not config["add_bos_token"]
    assert got.get_vocab() == want.get_vocab(), "what fills up the vocabulary is no token"


def test_what_is_around_a_text(tmp_path: Path) -> None:
    keys = tokenizer_keys(trained("deepseek-v3"), "deepseek-v3")
    named = {"bos_token_id": 0, "eos_token_id": 1, "padding_token_id": 40}
    template = {"tokenizer.chat_template": "{{ bos_token }}{{ messages[0].content }}"}
    write_vocabulary(tmp_path / "a.gguf", keys, **named, **template, add_bos_token=True)
    got, config = read(tmp_path / "a.gguf")
    assert got.encode("a").ids[0] == 0
    assert got.encode("a", add_special_tokens=False).ids == got.encode("a").ids[1:]
    assert config["bos_token"] == BOS
    assert config["eos_token"] == EOS
    assert "pad_token" not in config, "an ordinary token: naming it would make it special"
    for name, data in tokenizer_files(GgufFile(tmp_path / "a.gguf").metadata, "it").items():
        (tmp_path / name).write_bytes(data)
    made = text.Tokenizer(tmp_path)
    assert made.encode("a") == got.encode("a").ids
    assert made.apply_chat_template([{"role": "user", "content": "hi"}]) == BOS + "hi"
    write_vocabulary(tmp_path / "b.gguf", keys, **named, add_bos_token=True, add_eos_token=True)
    both, _ = read(tmp_path / "b.gguf")
    assert both.encode("a").ids == [*got.encode("a").ids, 1]


def test_llama_3_begins_a_text_where_the_file_does_not_say(tmp_path: Path) -> None:
    for pre, begins in (("llama-bpe", True), ("qwen2", False)):
        keys = tokenizer_keys(trained(pre), pre)
        write_vocabulary(tmp_path / "a.gguf", keys, bos_token_id=0)
        assert read(tmp_path / "a.gguf")[1]["add_bos_token"] is begins


def test_what_the_makers_recommend(tmp_path: Path) -> None:
    metadata = {"general.sampling.temp": 0.6, "general.sampling.top_p": 0.95}
    files = tokenizer_files(metadata, "it")
    assert as_json(files["generation_config.json"]) == {
        "do_sample": True,
        "temperature": 0.6,
        "top_p": 0.95,
    }
    assert tokenizer_files({"tokenizer.ggml.model": "no_vocab"}, "it") == {}


def test_all_tokens_that_end_an_answer(tmp_path: Path) -> None:
    """Qwen 2.5's generation_config.json has two: a file has one as eos, the other by its name."""
    tokens = ["<|im_end|>", "a", "<|endoftext|>", "</s>", "<eom>"]
    keys = {"model": "gpt2", "pre": "qwen2", "merges": [], "tokens": tokens}
    keys = {f"tokenizer.ggml.{name}": value for name, value in keys.items()}
    types = {"tokenizer.ggml.token_type": np.array([3, 1, 3, 1, 3])}
    eos: dict[str, Any] = {"tokenizer.ggml.eos_token_id": 0}
    for more, want in (({}, [0, 2]), ({"tokenizer.ggml.eom_token_id": 4}, [0, 2, 4])):
        files = tokenizer_files(keys | types | eos | more, "it")
        assert as_json(files["generation_config.json"]) == {"eos_token_id": want}
        for name, data in files.items():
            (tmp_path / name).write_bytes(data)
        generation = GenerationConfig.read(tmp_path, {})
        assert end_ids(text.Tokenizer(tmp_path), generation) == set(want)


def test_no_merges_where_one_stands_for_none(tmp_path: Path) -> None:
    """llama.cpp wants one, and our exporter writes it."""
    keys = {"model": "gpt2", "pre": "gpt-2", "tokens": ["a", "b"], "merges": [NO_MERGE]}
    write_vocabulary(tmp_path / "a.gguf", keys)
    files = tokenizer_files(GgufFile(tmp_path / "a.gguf").metadata, "it")
    assert as_json(files["tokenizer.json"])["model"]["merges"] == []


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"model": "t5"}, TokenizerError, "of the kind 't5'; expected gpt2 or llama"),
        ({"pre": "kimi-k2"}, TokenizerError, "is 'kimi-k2'; expected one of default"),
        ({"tokens": [1, 2]}, CheckpointError, "no texts in tokenizer.ggml.tokens"),
        ({"token_type": [1]}, CheckpointError, "1 kinds of them"),
        ({"merges": ["a"]}, CheckpointError, "the merge 'a' has no two parts"),
        ({"merges": ["a b c"]}, CheckpointError, "has no two parts"),
        ({"tokens": ["a", "b", "a"]}, CheckpointError, "has the ids 0 and 2"),
        ({"add_bos_token": 7}, CheckpointError, "add_bos_token in it is 7"),
    ],
)
def test_what_does_not_fit(
    tmp_path: Path, change: dict[str, Any], error: type[Exception], match: str
) -> None:
    keys = {"model": "gpt2", "pre": "gpt-2", "tokens": ["a", "b", "c"], "merges": ["a b"]}
    write_vocabulary(tmp_path / "a.gguf", keys | change)
    with pytest.raises(error, match=match):
        tokenizer_files(GgufFile(tmp_path / "a.gguf").metadata, "it")


# -------------------------------------------------------------------------- SentencePiece


def sentence_pieces() -> tuple[list[str], list[float], list[int]]:
    """A vocabulary with scores, as Llama 2's: three special ones, bytes, and pieces by rank."""
    words = ["▁", "e", "t", "a", "o", "h", "n", "▁t", "he", "▁the", "an", "▁a", "▁an", "on", "▁on"]
    words += ["то", "т", "о", "世", "界", "世界"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    scores = [0.0] * 259 + [float(-rank) for rank in range(len(words))]
    return tokens, scores, [2, 3, 3] + [6] * 256 + [1] * len(words)


def sentence_piece_keys() -> dict[str, Any]:
    tokens, scores, kinds = sentence_pieces()
    tokens.append("<user>")
    keys = {"model": "llama", "pre": "default", "tokens": tokens, "scores": [*scores, -1000.0]}
    return keys | {"token_type": [*kinds, 4]}


def test_sentence_pieces_are_transformers_s(tmp_path: Path) -> None:
    """transformers makes its merges of the scores, too."""
    from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer

    write_vocabulary(tmp_path / "a.gguf", sentence_piece_keys(), bos_token_id=1, eos_token_id=2)
    got, config = read(tmp_path / "a.gguf")
    _, fields, _ = get_gguf_tokenizer(str(tmp_path / "a.gguf"))
    # Its llama drops a leading space, as Llama 2's tokenizer.json and llama.cpp do not.
    want, _ = convert_gguf_tokenizer("phi3", fields)
    samples = ["the an on", "then a", "世界то", "", " ", "x<user>y", "on\nthe", *TEXTS]
    for sample in samples:
        assert (
            got.encode(sample, add_special_tokens=False).ids
            == want.encode(sample, add_special_tokens=False).ids
        )
        assert got.decode(got.encode(sample).ids) == want.decode(got.encode(sample).ids)
    assert got.encode("a").ids[0] == 1, "a text begins unless the file says otherwise"
    assert config["unk_token"] == "<unk>"


def test_no_space_is_put_before_a_text_that_wants_none(tmp_path: Path) -> None:
    write_vocabulary(tmp_path / "a.gguf", sentence_piece_keys(), add_space_prefix=False)
    got, _ = read(tmp_path / "a.gguf")
    assert got.encode("the").tokens[1:] == ["t", "he"]
    write_vocabulary(tmp_path / "b.gguf", sentence_piece_keys())
    got, _ = read(tmp_path / "b.gguf")
    assert got.encode("the").tokens[1:] == ["▁the"]
