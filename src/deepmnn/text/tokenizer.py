"""Text to token ids and back, with the model's own tokenizer files."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from deepmnn.errors import RequestError, TokenizerError, Words
from deepmnn.source.json_file import parse_object, read_object
from deepmnn.text.chat_template import ChatTemplate, Message
from deepmnn.text.token_bound import TokenBound

_SPECIAL = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


class Tokenizer:
    """A model directory's tokenizer.json, tokenizer_config.json and chat template.

    Raises TokenizerError when a file is missing or malformed.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        path = self.directory / "tokenizer.json"
        if not path.is_file():
            raise TokenizerError(
                f"{self.directory} has no tokenizer.json",
                "the tokenizer the model was trained with",
                "Copy it into the model directory, or work with token ids.",
            )
        text = _read(path)
        self._spec = parse_object(text.encode(), str(path), TokenizerError)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(text)
        except TokenizerError:
            raise
        except BaseException as error:  # the library raises Exception, and panics on some files
            if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
                raise
            raise TokenizerError(
                f"{path} cannot be loaded: {error}", "a tokenizers file"
            ) from error
        for name in ("vocab", "merges"):  # megabytes, which the library has
            self._spec["model"].pop(name, None)
        self.config = _read_config(self.directory / "tokenizer_config.json")
        self.special_tokens = self._read_special_tokens()
        self._texts: dict[int, str] = {}
        self._template = self._read_template()

    @property
    def vocab_size(self) -> int:
        """Tokens the tokenizer knows (the model's table may be larger)."""
        return int(self._tokenizer.get_vocab_size())

    @property
    def has_chat_template(self) -> bool:
        """Whether messages can be rendered."""
        return self._template is not None

    @property
    def chat_template(self) -> str:
        """The template's source; "" when there is none."""
        return "" if self._template is None else self._template.source

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of text; add_special_tokens puts the begin-of-sequence token in front."""
        if not isinstance(text, str):
            raise RequestError(f"the text is {text!r:.80}", "a string")
        try:
            ids = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        except Exception as error:
            raise RequestError(f"the text cannot be encoded: {error}", "valid Unicode") from error
        bos = self.token_id(self.special_tokens.get("bos_token", ""))
        if (
            add_special_tokens
            and self.config.get("add_bos_token") is True
            and bos is not None
            and ids[:1] != [bos]
        ):
            ids = [bos, *ids]
        return list(ids)

    def least_tokens(self, text: str) -> int:
        """A lower bound on the tokens of text, found without tokenising it (token_bound.py)."""
        return self._bound.least_tokens(text)

    @cached_property
    def _bound(self) -> TokenBound:
        added = {token.content for token in self._tokenizer.get_added_tokens_decoder().values()}
        normalizer = self._tokenizer.normalizer
        if normalizer is not None:
            added |= {normalizer.normalize_str(content) for content in added}
        vocab = self._tokenizer.get_vocab(with_added_tokens=False)
        return TokenBound(self._spec, vocab, added)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids; ids the tokenizer does not know have none."""
        try:
            return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))
        except (OverflowError, TypeError) as error:
            raise RequestError(f"token ids cannot be decoded: {error}", "integers >= 0") from error

    def decode_one(self, token: int) -> str:
        """The text of one token by itself, remembered: answers use the same ones over and over."""
        text = self._texts.get(token)
        if text is None:
            text = self._texts[token] = self.decode([token])
        return text

    def detokenizer(self) -> Detokenizer:
        """Decodes one answer token by token."""
        return Detokenizer(self)

    def token_id(self, token: str) -> int | None:
        """The id of a token as it is written in the vocabulary, None when there is none."""
        try:
            found: int | None = self._tokenizer.token_to_id(token)
        except UnicodeEncodeError:  # half of a surrogate pair: JSON can write it, no text holds it
            return None
        return found

    def apply_chat_template(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The conversation as prompt text. Raises TokenizerError when there is no template."""
        if self._template is None:
            raise TokenizerError(
                f"{self.directory} has no chat template",
                "chat_template.jinja, or chat_template in tokenizer_config.json",
                Words(
                    "Pass the prompt as plain text.",
                    "Continue plain text: deepmnn generate --raw.",
                ),
            )
        return self._template.render(
            messages,
            add_generation_prompt=add_generation_prompt,
            special_tokens=self.special_tokens,
            **variables,
        )

    def encode_chat(self, messages: Sequence[Message], **variables: Any) -> list[int]:
        """Token ids of a conversation, up to where the answer begins."""
        return self.encode(
            self.apply_chat_template(messages, **variables), add_special_tokens=False
        )

    def _read_special_tokens(self) -> dict[str, str]:
        """bos_token, eos_token, ...: strings, or dicts with the string under "content"."""
        found: dict[str, str] = {}
        mapped = _read_config(self.directory / "special_tokens_map.json")
        for name in _SPECIAL:
            value = self.config.get(name, mapped.get(name))
            if isinstance(value, dict):
                value = value.get("content")
            elif value is None:
                continue
            if not isinstance(value, str):
                raise TokenizerError(
                    f"{name} in tokenizer_config.json is {value!r:.80}",
                    'a string, or a dict with the string under "content"',
                )
            found[name] = value
        return found

    def _read_template(self) -> ChatTemplate | None:
        path = self.directory / "chat_template.jinja"
        source = _read(path) if path.is_file() else self.config.get("chat_template")
        if isinstance(source, list):  # several named templates
            named = {t.get("name"): t.get("template") for t in source if isinstance(t, dict)}
            source = named.get("default")
        if source is None:
            return None
        if not isinstance(source, str):
            raise TokenizerError(
                f"chat_template in tokenizer_config.json is {source!r:.80}", "a jinja2 template"
            )
        return ChatTemplate(source)


class Detokenizer:
    """Decodes a growing list of ids; what it returns adds up to the decoding of the whole list.

    A character may be spread over several tokens, and decoding may depend on the token before, so
    each step decodes a window that begins at the last border between two whole characters.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._known = 0
        self._text = ""

    def push(self, token: int) -> str:
        """The text that this token completes; "" while a character is unfinished."""
        self._window.append(token)
        text = self._tokenizer.decode(self._window)
        if text.endswith("\ufffd"):
            return ""
        return self._emit(text)

    def flush(self) -> str:
        """What is left: the replacement characters of an unfinished character."""
        return self._emit(self._tokenizer.decode(self._window))

    def _emit(self, text: str) -> str:
        """Keeps the tokens of this delta as the context of the next."""
        delta = text[len(self._text) :]
        if delta:
            self._window = self._window[self._known :]
            self._known = len(self._window)
            if self._known == 1:
                self._text = self._tokenizer.decode_one(self._window[0])
            else:
                self._text = self._tokenizer.decode(self._window)
        return delta


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"{path} cannot be read: {error}", "a UTF-8 text file") from error


def _read_config(path: Path) -> dict[str, Any]:
    """A JSON object; empty when there is no such file."""
    return read_object(path, TokenizerError) if path.is_file() else {}
