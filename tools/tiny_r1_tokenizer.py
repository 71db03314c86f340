"""tiny-r1's tokenizer: byte-level BPE with single digits, DeepSeek-R1's marks and chat template."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from arithmetic import Conversation

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
USER, ASSISTANT, THINK, END_THINK = "<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"
BOS_ID, EOS_ID, PAD_ID = 0, 1, 2

# A word or a sign takes the spaces around it along: arithmetic is one token per digit or sign.
WORDS = r" ?\p{L}+ ?| ?[^\s\p{L}\p{N}]+[ \r\n]*|\s+"

# DeepSeek-R1's template without its tool calls: reasoning is dropped from earlier turns, and a new
# answer starts inside its reasoning.
CHAT_TEMPLATE = (
    "{% if not add_generation_prompt is defined %}"
    "{% set add_generation_prompt = false %}{% endif %}"
    "{% set ns = namespace(system_prompt='') %}"
    "{%- for message in messages %}{%- if message['role'] == 'system' %}"
    "{% set ns.system_prompt = message['content'] %}{%- endif %}{%- endfor %}"
    "{{ bos_token }}{{ ns.system_prompt }}"
    "{%- for message in messages %}"
    "{%- if message['role'] == 'user' %}{{ '<｜User｜>' + message['content'] }}{%- endif %}"
    "{%- if message['role'] == 'assistant' and message['content'] is not none %}"
    "{% set content = message['content'] %}"
    "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{ '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}{%- endif %}"
    "{%- endfor -%}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}"
)


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, splits: Iterable[str] = (r"\p{N}", WORDS)
) -> Tokenizer:
    """A tokenizer of exactly `vocab_size` tokens; begin, end and padding are 0, 1 and 2.

    splits: expressions that cut the text, one after the other, before tokens are merged.
    """
    tokenizer = Tokenizer(models.BPE())
    cuts = [pre_tokenizers.Split(Regex(split), "isolated") for split in splits]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cuts, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(token, special=True, normalized=False) for token in (BOS, EOS, PAD)]
    # As in DeepSeek-R1, role and reasoning marks are not "special": decoding shows them.
    marks = [
        AddedToken(token, special=False, normalized=False)
        for token in (USER, ASSISTANT, THINK, END_THINK)
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(marks),
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens(marks)
    if tokenizer.get_vocab_size() != vocab_size:
        found = tokenizer.get_vocab_size()
        raise ValueError(f"the texts give {found} tokens, not {vocab_size}: pass more of them")
    return tokenizer


def tokenizer_config(model_max_length: int) -> dict[str, Any]:
    """The whole of `tokenizer_config.json`."""
    return {
        "add_bos_token": False,
        "add_eos_token": False,
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
        "model_max_length": model_max_length,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": CHAT_TEMPLATE,
    }


def prompt_and_response(chat: Conversation) -> tuple[str, str]:
    """The text the model sees, as the chat template renders it, and the text it is to write."""
    prompt = BOS + chat.system
    for question, answer in chat.earlier:
        prompt += f"{USER}{question}{ASSISTANT}{answer}{EOS}"
    opening = f"{THINK}\n"
    response = chat.problem.response.removeprefix(opening)
    return f"{prompt}{USER}{chat.problem.question}{ASSISTANT}{opening}", response + EOS
