"""A tokenizer for models of random weights: every token id is text, as in a trained model.

Byte-level byte-pair encoding of pseudo-words of one to four letters, with DeepSeek-R1's special
tokens and template. Both servers read the same one, so that they detokenise and stream the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice, product
from pathlib import Path
from string import ascii_lowercase

from bench.peers.engine import Config

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
MARKS = ("<｜User｜>", "<｜Assistant｜>", "<think>", "</think>")
SPACE = "Ġ"
"""A space, as byte-level encoding writes it."""

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '<｜User｜>' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ '<｜Assistant｜>' + message['content'].split('</think>')[-1] + eos_token }}"
    "{% else %}{{ message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}"
)


def write_tokenizer(directory: Path, config: Config) -> None:
    """tokenizer.json and tokenizer_config.json for the vocabulary of a config.json.

    The end token gets the id that the config gives it; the other special tokens follow.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    end = config["eos_token_id"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = list(islice(pairs(), end - len(alphabet)))
    vocab = {text: index for index, text in enumerate(alphabet)}
    vocab |= {left + right: len(alphabet) + rank for rank, (left, right) in enumerate(merges)}
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in (EOS, BOS)])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in MARKS])
    tokenizer.save(str(directory / "tokenizer.json"))
    fields = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "add_bos_token": True,
        "clean_up_tokenization_spaces": False,
        "chat_template": TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(fields), encoding="utf-8")


def pairs() -> Iterator[tuple[str, str]]:
    """Merges, short words first: both parts of each are tokens before it."""
    two = ["".join(letters) for letters in product(ascii_lowercase, repeat=2)]
    three = [pair + letter for pair in two for letter in ascii_lowercase]
    yield from product(ascii_lowercase, repeat=2)
    yield from ((SPACE, word) for word in (*ascii_lowercase, *two))
    yield from product(two, ascii_lowercase)
    yield from ((SPACE, word) for word in three)
    yield from product(two, two)
