"""Where an answer ends, by all that the model's files say."""

from __future__ import annotations

from deepmnn.errors import TokenizerError
from deepmnn.text.generation_config import GenerationConfig
from deepmnn.text.tokenizer import Tokenizer

_REPLY = "A reply."


def end_ids(tokenizer: Tokenizer, generation: GenerationConfig) -> frozenset[int]:
    """The tokens that end an answer: of a chat, and of a text that goes on.

    - `eos_token_id` of generation_config.json or, when it has none, of config.json, as in
      transformers;
    - `eos_token_id` of config.json in any case where it is a special token: an ordinary one there
      is a leftover, and would cut texts;
    - `eos_token` of tokenizer_config.json, as in vLLM;
    - the special token that the chat template writes behind the assistant's words, such as
      `<|im_end|>`. llama.cpp knows these by their names. A text that is no chat does not write
      one unless it means an end, too.

    May start a process, to render the template: call it when an answer is wanted.
    """
    found = set(generation.eos_ids)
    found |= {token for token in generation.config_eos_ids if tokenizer.special_text(token)}
    eos = tokenizer.token_id(tokenizer.special_tokens.get("eos_token", ""))
    return frozenset(found | {token for token in (eos, end_marker(tokenizer)) if token is not None})


def end_marker(tokenizer: Tokenizer) -> int | None:
    """The special token that the template writes behind an assistant's message, if any."""
    if not tokenizer.has_chat_template:
        return None
    chat = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": _REPLY}]
    try:
        text = tokenizer.apply_chat_template(chat, add_generation_prompt=False)
    except TokenizerError:  # the request that uses the template says what is wrong with it
        return None
    _, reply, rest = text.rpartition(_REPLY)
    return tokenizer.leading_special(rest.lstrip()) if reply else None
