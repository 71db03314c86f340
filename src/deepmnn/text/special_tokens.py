"""The special tokens that a tokenizer's settings name, as transformers 5 takes them.

tokenizer_config.json names tokens in two ways: `added_tokens_decoder` lists tokens with their
flags, and `eos_token`, `image_token`, ... and `extra_special_tokens` (once
`additional_special_tokens`) say what they are for. Without the list, special_tokens_map.json has
the last word on the names, and added_tokens.json adds tokens. All of them are added to what
tokenizer.json has: a token that it calls ordinary becomes special if it has a name, or if the
list says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tokenizers
from tokenizers import AddedToken

from deepmnn.errors import TokenizerError, shown
from deepmnn.text.text_files import TextFiles
from deepmnn.text.tokenizer_check import MAX_ADDED_TOKENS, check_part
from deepmnn.text.tokenizer_parts import ADDED_TOKEN, MAX_ID

CONFIG = "tokenizer_config.json"
_MAP = "special_tokens_map.json"
_ADDED = "added_tokens.json"
_FLAGS = ("add_bos_token", "add_eos_token")
_EXTRA, _ADDITIONAL = "extra_special_tokens", "additional_special_tokens"

NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
"""In the order in which they are added, and so get their ids; others that end in _token follow."""


@dataclass(frozen=True)
class SpecialTokens:
    """What the settings name.

    Attributes:
        named: bos_token, eos_token, ... -> the token.
        extra: special tokens without a name.
        listed: tokens by id, special or not.
    """

    named: dict[str, AddedToken]
    extra: list[AddedToken]
    listed: dict[int, AddedToken]

    @property
    def texts(self) -> dict[str, str]:
        """bos_token, eos_token, ... -> its text, as chat templates know them."""
        return {name: token.content for name, token in self.named.items()}

    def add_to(self, library: tokenizers.Tokenizer) -> None:
        """Adds what the tokenizer lacks, and the flags of what it has.

        Raises TokenizerError when a new token does not get the id that the list says, or one that
        another token has.
        """
        old = library.get_added_tokens_decoder()
        adding = [self.listed[index] for index in sorted(self.listed)]
        has = {token.content for token in (*old.values(), *adding)}
        unlisted = [t for t in (*self.named.values(), *self.extra) if t.content not in has]
        # Of one text with several sets of flags, the last counts.
        adding += {repr(token): token for token in unlisted}.values()
        names = set(self.texts.values())
        for token in adding:
            token.special = token.special or token.content in names
        new = [t.content for t in adding if t.content and library.token_to_id(t.content) is None]
        library.add_tokens(adding)
        asked = {token.content: index for index, token in self.listed.items()}
        for content in new:
            found = library.token_to_id(content)
            taken = found in old or library.model.id_to_token(found) is not None
            if taken or asked.get(content, found) != found:
                raise TokenizerError(
                    f"the token {shown(content)}, which tokenizer.json lacks, gets the id {found}",
                    "one that no token has" if taken else f"{asked[content]}, as {CONFIG} says",
                    "Use the tokenizer.json that the model was trained with.",
                )


def read_special_tokens(
    files: TextFiles, config: Mapping[str, Any], spec: Mapping[str, Any]
) -> SpecialTokens:
    """Those of a tokenizer's files.

    Args:
        files: of the model.
        config: the fields of tokenizer_config.json.
        spec: the fields of tokenizer.json.

    Raises TokenizerError when one has the wrong form.
    """
    fields = dict(config)
    if not fields.get(_EXTRA):
        fields[_EXTRA] = fields.get(_ADDITIONAL)
    has_list = fields.get("added_tokens_decoder") is not None
    if not has_list:
        _take_map(fields, files.fields(_MAP, TokenizerError))
    named, extra = _named(fields), _extra(fields)
    if has_list:
        listed = _listed(fields["added_tokens_decoder"])
    else:
        # As transformers has it: where tokenizer_config.json gives flags of its own, those count.
        own = {n for n, value in fields.items() if isinstance(value, dict) and "__type" in value}
        plain = [named[name] for name in NAMES if name in named and name not in own]
        special = {token.content for token in (*plain, *extra)}
        listed = _added(files.fields(_ADDED, TokenizerError), special)
        for token in spec.get("added_tokens") or ():
            listed[token["id"]] = _token(token, "added_tokens")
    by_text = {token.content: token for token in listed.values()}
    for name in NAMES:
        if name in named:
            named[name] = by_text.get(named[name].content, named[name])
    if len(listed) + len(named) + len(extra) > 2 * MAX_ADDED_TOKENS:
        raise TokenizerError(f"{CONFIG} adds too many tokens", f"at most {MAX_ADDED_TOKENS}")
    return SpecialTokens(named, extra, listed)


def _take_map(fields: dict[str, Any], mapped: Mapping[str, Any]) -> None:
    """What special_tokens_map.json names takes the place of what `fields` does.

    Not so for names that only this model has (`image_token`).
    """
    for name, value in mapped.items():
        if name.endswith("_token") and name not in NAMES and isinstance(fields.get(name), str):
            continue
        if isinstance(value, dict) and name != _EXTRA:
            value = {**value, "special": True}
        elif isinstance(value, list) and name == _EXTRA:
            before = fields.get(_EXTRA)
            before = before if isinstance(before, list) else []
            value = before + [token for token in value if token not in before]
        fields[name] = value
    if not fields.get(_EXTRA):
        fields[_EXTRA] = fields.get(_ADDITIONAL)


def _named(fields: Mapping[str, Any]) -> dict[str, AddedToken]:
    """The tokens that have a name, in the order in which transformers adds them."""
    others = [n for n in fields if n.endswith("_token") and n not in NAMES and n not in _FLAGS]
    full = [name for name in others if isinstance(fields[name], dict)]
    short = [name for name in others if isinstance(fields[name], str)]
    values = {name: fields[name] for name in (*NAMES, *full, *short) if name in fields}
    if isinstance(fields.get(_EXTRA), dict):
        values |= fields[_EXTRA]
    return {name: _token(value, name) for name, value in values.items() if value is not None}


def _extra(fields: Mapping[str, Any]) -> list[AddedToken]:
    """The special tokens without a name."""
    found = fields.get(_EXTRA)
    if found is None or isinstance(found, dict):
        return []
    if not isinstance(found, list):
        raise TokenizerError(f"{_EXTRA} in {CONFIG} is {shown(found)}", "a list of tokens")
    return [_token(value, _EXTRA) for value in found]


def _listed(found: Any) -> dict[int, AddedToken]:
    """added_tokens_decoder: {"32000": {"content": ..., "special": true, ...}, ...}."""
    if not isinstance(found, dict):
        raise TokenizerError(f"added_tokens_decoder in {CONFIG} is {shown(found)}", "an object")
    listed = {}
    for index, token in found.items():
        if not index.isdecimal() or len(index) > 9 or not isinstance(token, dict):
            raise TokenizerError(
                f"added_tokens_decoder in {CONFIG} has {shown(index, 40)}: {shown(token)}",
                "the id of a token, and the token",
            )
        listed[int(index)] = _token(token, "added_tokens_decoder")
    return listed


def _added(found: Mapping[str, Any], special: set[str]) -> dict[int, AddedToken]:
    """added_tokens.json: {"<tool>": 32000, ...}."""
    listed = {}
    for text, index in found.items():
        if type(index) is not int or not 0 <= index < MAX_ID:
            raise TokenizerError(
                f"{_ADDED} gives {shown(text)} the id {shown(index, 40)}", "a token id"
            )
        flags = {"special": text in special, "normalized": text not in special}
        listed[index] = _token({"content": text, **flags}, _ADDED)
    return listed


def _token(value: Any, name: str) -> AddedToken:
    """A token of its text, or of its text and flags. Raises TokenizerError."""
    fields = {"content": value, "special": True} if isinstance(value, str) else value
    if not isinstance(fields, dict) or "content" not in fields:
        raise TokenizerError(
            f"{name} in {CONFIG} is {shown(value)}",
            'a string, or a dict with the string under "content"',
        )
    check_part(fields, ADDED_TOKEN, f"{name} in {CONFIG}")
    flags = {flag: fields[flag] for flag in ADDED_TOKEN.fields if flag in fields}
    flags.pop("id", None)
    try:
        return AddedToken(flags.pop("content"), **flags)
    except (TypeError, UnicodeEncodeError) as error:  # half of a surrogate pair
        raise TokenizerError(f"{name} in {CONFIG} is no text: {error}", "Unicode") from None
