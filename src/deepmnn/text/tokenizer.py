"""Text to token ids and back, with the model's own tokenizer files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from deepmnn.errors import DeepmnnError, RequestError, TokenizerError, Words, shown
from deepmnn.source.json_file import parse_object
from deepmnn.text.chat_template import ChatTemplate, Message
from deepmnn.text.special_tokens import CONFIG, read_special_tokens
from deepmnn.text.text_files import TextFiles
from deepmnn.text.token_bound import TokenBound
from deepmnn.text.tokenizer_check import check_tokenizer

FILE = "tokenizer.json"

_LONG = 20_000
"""Characters: a text of so many takes 10 ms."""


class Tokenizer:
    """A model's tokenizer.json, tokenizer_config.json and chat template.

    Args:
        source: the model's directory, or those of its files that belong to it.

    Attributes:
        library: of the `tokenizers` package, with all special tokens; it neither cuts nor pads.
        config: the fields of tokenizer_config.json.
        special_tokens: bos_token, eos_token, ... -> its text.

    Raises TokenizerError when a file is missing or malformed.
    """

    def __init__(self, source: str | Path | TextFiles) -> None:
        files = source if isinstance(source, TextFiles) else TextFiles(source)
        self.directory = files.directory
        text = files.text(FILE, TokenizerError)
        if text is None:
            raise TokenizerError(
                f"{self.directory} has no {FILE}",
                "the tokenizer the model was trained with",
                "Convert again from a checkpoint with that file, or work with token ids.",
            )
        path = self.directory / FILE
        self._spec = parse_object(text.encode(), str(path), TokenizerError)
        check_tokenizer(self._spec, str(path))
        if self._spec.get("truncation") is not None or self._spec.get("padding") is not None:
            # They are settings of a training run: no prompt is cut or filled up by them.
            text = json.dumps({**self._spec, "truncation": None, "padding": None})
        with _library_errors(f"{path} cannot be loaded", "a tokenizers file"):
            self.library = tokenizers.Tokenizer.from_str(text)
        for name in ("vocab", "merges"):  # megabytes, which the library has
            self._spec["model"].pop(name, None)
        self.config = files.fields(CONFIG, TokenizerError)
        special = read_special_tokens(files, self.config, self._spec)
        with _library_errors(f"the tokens of {CONFIG} cannot be added", "tokens"):
            special.add_to(self.library)
        self.special_tokens = special.texts
        self.library.encode_special_tokens = self._flag("split_special_tokens")
        self._begins = self._flag("add_bos_token")
        self._texts: dict[int, str] = {}
        self._template = self._read_template(files)

    @property
    def vocab_size(self) -> int:
        """Tokens the tokenizer knows (the model's table may be larger)."""
        return int(self.library.get_vocab_size())

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
            raise RequestError(f"the text is {shown(text)}", "a string")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RequestError(f"the text cannot be encoded: {error}", "valid Unicode") from None
        with _library_errors("the text cannot be tokenised"):
            if len(text) < _LONG:
                ids = self.library.encode(text, add_special_tokens=add_special_tokens).ids
            else:  # this one lets other threads run
                (found,) = self.library.encode_batch([text], add_special_tokens=add_special_tokens)
                ids = found.ids
        if add_special_tokens and self._begins:
            bos = self.token_id(self.special_tokens.get("bos_token", ""))
            if bos is not None and ids[:1] != [bos]:
                ids = [bos, *ids]
        return list(ids)

    def least_tokens(self, text: str) -> int:
        """A lower bound on the tokens of text, found without tokenising it (token_bound.py)."""
        return self._bound.least_tokens(text)

    @cached_property
    def _bound(self) -> TokenBound:
        with _library_errors("the vocabulary cannot be read"):
            added = {token.content for token in self._added.values()}
            normalizer = self.library.normalizer
            if normalizer is not None:
                added |= {normalizer.normalize_str(content) for content in added}
            vocab = self.library.get_vocab(with_added_tokens=False)
        strips = any(token.lstrip or token.rstrip for token in self._added.values())
        return TokenBound(self._spec, vocab, added, strips)

    @cached_property
    def _added(self) -> dict[int, tokenizers.AddedToken]:
        found: dict[int, tokenizers.AddedToken] = self.library.get_added_tokens_decoder()
        return found

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids; ids the tokenizer does not know have none."""
        with _library_errors("the tokens cannot be decoded"):
            try:
                return str(self.library.decode(list(ids), skip_special_tokens=skip_special_tokens))
            except (OverflowError, TypeError) as error:
                raise RequestError(
                    f"token ids cannot be decoded: {error}", "integers >= 0"
                ) from error

    def special_text(self, token: int) -> str:
        """How a special token is written, which `decode` leaves out; "" when it is none."""
        added = self._added.get(token)
        return added.content if added is not None and not self.decode_one(token) else ""

    def leading_special(self, text: str) -> int | None:
        """The special token that text begins with, the longest of several."""
        found = {
            token.content: index
            for index, token in self._added.items()
            if token.content and text.startswith(token.content) and self.special_text(index)
        }
        return found[max(found, key=len)] if found else None

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
        with _library_errors("the vocabulary cannot be read"):
            try:
                found: int | None = self.library.token_to_id(token)
            except UnicodeEncodeError:  # half of a surrogate pair: no text holds it
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

    def _flag(self, name: str) -> bool:
        """A field of tokenizer_config.json that is true or false; false when it is not there."""
        value = self.config.get(name)
        if value is not None and not isinstance(value, bool):
            raise TokenizerError(f"{name} in {CONFIG} is {shown(value)}", "true or false")
        return bool(value)

    def _read_template(self, files: TextFiles) -> ChatTemplate | None:
        source = files.text("chat_template.jinja", TokenizerError)
        if source is None:
            source = self.config.get("chat_template")
        if isinstance(source, list):  # several named templates
            named = {t.get("name"): t.get("template") for t in source if isinstance(t, dict)}
            source = named.get("default")
        if source is None:
            return None
        if not isinstance(source, str):
            raise TokenizerError(
                f"chat_template in {CONFIG} is {shown(source)}", "a jinja2 template"
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


@contextmanager
def _library_errors(found: str, expected: str = "") -> Iterator[None]:
    """What the library raises becomes TokenizerError, and so do its panics: no Exceptions."""
    try:
        yield
    except (DeepmnnError, KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as error:
        raise TokenizerError(f"{found}: {error!s:.200}", expected) from error
