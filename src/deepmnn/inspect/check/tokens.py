"""Text in and out: the tokenizer's round trip, BOS, the ids that end an answer, the chat template.

The definitions: decoding what was encoded gives the text; one BOS begins a prompt; the ids that
transformers stops at are eos_token_id of generation_config.json or of config.json, and the token
that the chat template writes behind an answer must be one of them; AutoTokenizer of transformers
for ids and prompts.
"""

from __future__ import annotations

import logging
import tempfile
import unicodedata
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from deepmnn.errors import ConfigError, DeepmnnError, TokenizerError
from deepmnn.inspect.check.line import Line, judged, skipped
from deepmnn.source.side_files import SIDE_FILES
from deepmnn.text.answer_end import end_ids, end_marker
from deepmnn.text.generation_config import FILE as GENERATION
from deepmnn.text.generation_config import GenerationConfig
from deepmnn.text.text_files import TextFiles
from deepmnn.text.tokenizer import FILE, Tokenizer

TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "深度求索的模型在手机上运行,速度很快。第二句话!",
    'def f(x: int) -> str:\n\treturn f"{x:>8}"  # two  spaces\n\n\n',
    "tabs\tand   runs of    spaces, and a line end\r\n",
    "emoji 🧑‍🚀 🇩🇪 👍🏽, accents naïve café, math ∑∫√, Greek Ωμέγα, Russian Привет, Arabic مرحبا",
    "1234567890 3.14159 -0x1F 2024-05-06",
    "<not a token> </s> [INST] {{braces}} \\n",
)

CHAT = (
    {"role": "system", "content": "You answer briefly."},
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "4."},
    {"role": "user", "content": "你好,再加三呢?"},
)

ROUND_TRIP, VOCABULARY, BOS, END = "tokenizer round trip", "vocabulary", "BOS", "end of an answer"
THEIRS = "ids and chats against transformers"
_FILES = "Use the tokenizer files that the model was trained with."


def check_tokens(config: Mapping[str, Any], files: TextFiles) -> list[Line]:
    """All lines about text; skipped ones for a model without a tokenizer."""
    names = (ROUND_TRIP, VOCABULARY, BOS, END, THEIRS)
    if FILE not in files:
        return [skipped(name, f"the model has no {FILE}") for name in names]
    try:
        tokenizer = Tokenizer(files)
    except TokenizerError as fault:
        wrong = judged(names[0], False, fault.shell, "a tokenizer that loads", _FILES)
        return [wrong, *(skipped(name, "the tokenizer does not load") for name in names[1:])]
    return [
        _round_trip(tokenizer),
        _vocabulary(tokenizer, config),
        _bos(tokenizer),
        _end(tokenizer, config, files),
        _against_transformers(tokenizer, config, files),
    ]


def _round_trip(tokenizer: Tokenizer) -> Line:
    """Texts come back; a tokenizer that normalises gives back what it made of them."""
    lost = []
    for text in TEXTS:
        back = tokenizer.decode(tokenizer.encode(text, add_special_tokens=False))
        if back != text and not _is_normal(tokenizer, text, back):
            lost.append((text, back))
    said = f"{len(TEXTS) - len(lost)} of {len(TEXTS)} texts come back"
    if lost:
        text, back = lost[0]
        said += f"; {text[:24]!r} comes back as {back[:24]!r}"
    return judged(ROUND_TRIP, not lost, said, "all of them", _FILES, len(TEXTS) - len(lost))


def _is_normal(tokenizer: Tokenizer, text: str, back: str) -> bool:
    """Whether the difference is what the tokenizer's own rules do to texts: its normalisation, a
    blank at the beginning, letters that its vocabulary has not got.
    """
    normalizer, unknown = tokenizer.library.normalizer, tokenizer.special_tokens.get("unk_token")
    changed = text if normalizer is None else str(normalizer.normalize_str(text))
    unmarked = changed.replace("▁", " ")
    if back.strip(" ") == unmarked.strip(" "):
        return True
    if unicodedata.normalize("NFKC", back) == unicodedata.normalize("NFKC", text):
        return True
    encoded = tokenizer.library.encode(text, add_special_tokens=False).tokens
    return unknown is not None and unknown in encoded


def _vocabulary(tokenizer: Tokenizer, config: Mapping[str, Any]) -> Line:
    """Every id of the tokenizer has a row of the embedding."""
    known = tokenizer.library.get_vocab(with_added_tokens=True)
    largest, rows = max(known.values(), default=-1), int(config.get("vocab_size") or 0)
    said = f"{len(known)} tokens, the last is {largest}"
    advice = "The tokenizer is another model's, or config.json is."
    return judged(VOCABULARY, largest < rows, said, f"ids below {rows}", advice, largest)


def _bos(tokenizer: Tokenizer) -> Line:
    """A prompt begins with one BOS, whoever writes it."""
    bos = tokenizer.token_id(tokenizer.special_tokens.get("bos_token", ""))
    if bos is None:
        return skipped(BOS, "the tokenizer has no bos_token")
    plain = _leading(tokenizer.encode("Hello."), bos)
    found, said = plain, f"a text begins with {plain}"
    twice = plain > 1
    if tokenizer.has_chat_template:
        try:
            prompt = tokenizer.apply_chat_template([{"role": "user", "content": "Hello."}])
        except DeepmnnError:
            return judged(BOS, not twice, said, "one at most", _FILES, plain)
        chat = _leading(tokenizer.encode(prompt, add_special_tokens=False), bos)
        again = _leading(tokenizer.encode(prompt), bos)
        said += f", a chat with {chat}"
        said += f", or {again} where its text is tokenised with BOS" if again != chat else ""
        found, twice = max(plain, chat), twice or chat > 1
    advice = (
        "The template writes BOS and the tokenizer adds it again: take it out of the template, or "
        "set add_bos_token to false in tokenizer_config.json."
    )
    return judged(BOS, not twice, said, "one at most", advice, found)


def _leading(ids: list[int], token: int) -> int:
    """How many times a token stands at the beginning."""
    count = 0
    while count < len(ids) and ids[count] == token:
        count += 1
    return count


def _end(tokenizer: Tokenizer, config: Mapping[str, Any], files: TextFiles) -> Line:
    """config.json, generation_config.json, the tokenizer and the template agree on the end."""
    name = END
    try:
        generation = GenerationConfig.read(files, dict(config))
    except ConfigError as fault:
        return judged(name, False, fault.shell, "token ids", f"Mend {GENERATION}.")
    told = {
        GENERATION: generation.eos_ids if GENERATION in files else frozenset[int](),
        "config.json": generation.config_eos_ids,
    }
    eos = tokenizer.token_id(tokenizer.special_tokens.get("eos_token", ""))
    marker = end_marker(tokenizer)
    stops = end_ids(tokenizer, generation)
    said = "; ".join(f"{where}: {_named(tokenizer, ids)}" for where, ids in told.items() if ids)
    said += f"; eos_token: {_named(tokenizer, {eos})}" if eos is not None else ""
    said += f"; the template ends with {_named(tokenizer, {marker})}" if marker is not None else ""
    wrong = _fault(tokenizer, generation.eos_ids, eos, marker)
    expected = "the files agree, and the template's end is among the ids that end an answer"
    return judged(name, not wrong and bool(stops), said.lstrip("; "), expected, wrong, len(stops))


def _fault(tokenizer: Tokenizer, told: frozenset[int], eos: int | None, marker: int | None) -> str:
    """What is wrong with the ids that end an answer; "" for nothing."""
    if not told and eos is None and marker is None:
        return "Nothing says where an answer ends: set eos_token_id in generation_config.json."
    ordinary = sorted(token for token in told if not tokenizer.special_text(token))
    if ordinary:
        return (
            f"eos_token_id {_named(tokenizer, set(ordinary))} is an ordinary token, which answers "
            "contain: set it to the id of the special token that ends them."
        )
    if told and marker is not None and marker not in told:
        return (
            f"Answers end with {_named(tokenizer, {marker})}, which eos_token_id lacks: "
            f"transformers goes on behind it. Add it to eos_token_id in {GENERATION}."
        )
    if told and marker is None and eos is not None and eos not in told:
        return f"eos_token is {_named(tokenizer, {eos})}, which eos_token_id lacks: add it."
    return ""


def _named(tokenizer: Tokenizer, ids: set[int] | frozenset[int]) -> str:
    shown = []
    for token in sorted(ids):
        text = tokenizer.special_text(token) or tokenizer.decode_one(token)
        shown.append(f"{token} {text!r:.40}")
    return ", ".join(shown)


def _against_transformers(
    tokenizer: Tokenizer, config: Mapping[str, Any], files: TextFiles
) -> Line:
    """Ids of texts and of a chat, as AutoTokenizer gives them; BOS is another check's."""
    name = THEIRS
    if find_spec("transformers") is None:
        return skipped(name, "transformers is not installed")
    try:
        theirs = _auto_tokenizer(files)
    except Exception as fault:  # whatever a library of another version says
        return skipped(name, f"transformers does not load this tokenizer: {fault!s:.120}")
    for text in TEXTS:
        ours = tokenizer.encode(text, add_special_tokens=False)
        expected = list(theirs(text, add_special_tokens=False)["input_ids"])
        if ours != expected:
            return judged(name, False, f"{text[:24]!r} is {ours[:8]}", f"{expected[:8]}", _FILES)
    if not tokenizer.has_chat_template:
        return judged(name, True, f"{len(TEXTS)} texts have the same ids", "the same", figure=0)
    return _compare_chats(name, tokenizer, theirs)


def _compare_chats(name: str, tokenizer: Tokenizer, theirs: Any) -> Line:
    """The prompt of a conversation."""
    compared = 0
    for chat in (CHAT[1:2], CHAT[1:], CHAT):
        try:
            expected = theirs.apply_chat_template(
                [dict(message) for message in chat], tokenize=False, add_generation_prompt=True
            )
            ours = tokenizer.apply_chat_template(chat)
        except Exception:  # a template that takes no system message, say
            continue
        compared += 1
        if ours != expected:
            at = next(
                (i for i, (a, b) in enumerate(zip(ours, expected, strict=False)) if a != b), 0
            )
            found, wanted = ours[at : at + 24], expected[at : at + 24]
            said = f"differs at character {at}: {found!r}"
            return judged(
                name, False, said, f"{wanted!r}", "Report the template: ours is wrong.", at
            )
    said = f"{len(TEXTS)} texts have the same ids, {compared} chats the same prompt"
    return judged(name, True, said, "the same", figure=0)


def _auto_tokenizer(files: TextFiles) -> Any:
    """transformers' own, of the same files."""
    import transformers

    names = [name for name in SIDE_FILES if name in files]
    level = logging.getLogger("transformers").level
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        with tempfile.TemporaryDirectory(prefix="deepmnn-check-") as folder:
            for name in names:
                (Path(folder) / name).write_bytes(files.read(name, TokenizerError))
            return transformers.AutoTokenizer.from_pretrained(
                folder, trust_remote_code=False, local_files_only=True
            )
    finally:
        logging.getLogger("transformers").setLevel(level)
