"""Answers that follow a grammar: before each token, which of them may come next.

A constraint leaves the reasoning as it is: it begins with the answer, behind `</think>`. The
grammar is llguidance's (https://github.com/guidance-ai/llguidance), which knows for every state of
its parser the tokens that go on from there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import lru_cache
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deepmnn.backends.base import F32
from deepmnn.errors import MissingDependencyError, RequestError
from deepmnn.text.json_schema import json_answer as json_answer
from deepmnn.text.reasoning import CLOSE, OPEN
from deepmnn.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher

_START = r"""
%llguidance {"no_forcing": true}
start: SPACE? answer
SPACE: /[\x20\x0A]{1,4}/
"""
"""White space may stand before an answer: models that reason put two line breaks there.

Where only one text can follow, llguidance would allow nothing but its usual tokens; it finds wrong
ones where that text looks like a special token, and then refuses them itself.
"""

_LIMITS = {"max_lexer_states": 50_000, "max_grammar_size": 100_000, "verbose_errors": False}
"""Below llguidance's own, where a grammar's memory depends on them: a state takes 1 to 2 KB."""

_KEPT = 16
"""Compiled grammars that are kept: clients ask for the same ones again."""

_MOST = np.where(
    np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little") == 1,
    np.float32(np.inf),
    np.float32(-np.inf),
)
"""[256, 8] by a byte of a mask: what the logits of its eight tokens are at most."""


class Grammars:
    """What answers of one model may be made to follow. Any thread may ask for a constraint.

    Args:
        tokenizer: the model's.
        vocab_size: the width of its logits, which may be more than the tokenizer knows: tokens
            that it does not know are never allowed.
        end_ids: the tokens that end an answer. All of them are allowed where a grammar may end,
            and nowhere else.

    Raises MissingDependencyError without llguidance, and RequestError where that can not tell what
    bytes the tokens are.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, end_ids: Iterable[int]) -> None:
        self._library = _llguidance()
        self._known = tokenizer.library.get_vocab(with_added_tokens=True)
        size = max(self._known.values(), default=-1) + 1
        self.vocab_size = vocab_size
        self.ends = np.array(sorted(i for i in set(end_ids) if 0 <= i < vocab_size), np.intp)
        try:
            self.tokens = self._library.LLTokenizer(
                tokenizer.library.to_str(),
                n_vocab=max(size, vocab_size),
                # One at least; `Constraint.mask` treats those that the tokenizer does not know.
                eos_token=[i for i in self.ends.tolist() if i < size] or [0],
            )
        except Exception as error:
            raise RequestError(
                f"this model's tokenizer can not follow a grammar: {error!s:.200}",
                "byte-level BPE, or BPE that falls back to bytes",
            ) from error
        added = tokenizer.library.get_added_tokens_decoder()
        self._added = {token.content: index for index, token in added.items()}
        self.most = np.empty((4 * -(-self.tokens.vocab_size // 32), 8), np.float32)
        self.open_id = self._added.get(OPEN)
        tags = (self._added.get(OPEN), self._added.get(CLOSE))
        self._silent = {i for i in added if tokenizer.special_text(i) and i not in tags}
        self._barred = self._bar_tokens()
        self._compiled = lru_cache(_KEPT)(self._compile)

    def constraint(self, answer: str, inside_reasoning: bool | None) -> Constraint:
        """What holds an answer to a grammar.

        Args:
            answer: defines the rule `answer`, in llguidance's dialect of Lark.
            inside_reasoning: whether the prompt has opened the reasoning. If not, an answer may
                begin with the token `<think>`, where the tokenizer has it. None: there is no
                reasoning, as in TextStream.

        Raises RequestError when llguidance can not do the grammar, or nothing satisfies it.
        """
        return Constraint(self, self._compiled(answer).deep_copy(), inside_reasoning)

    def marker(self, text: str) -> str:
        """A marker as Lark: the added token that is written so, or else the text itself."""
        token = self._added.get(text)
        return json.dumps(text, ensure_ascii=False) if token is None else f"<[{token}]>"

    def text_of(self, token: int) -> bytes:
        """What a token adds to the text of an answer: nothing if it is special, and no tag."""
        return b"" if token in self._silent else bytes(self.tokens.decode_bytes([token]))

    def barred_from_reasoning(self, matched: int) -> NDArray[np.intp]:
        """The tokens that may not come in the reasoning.

        These are the ones that end an answer, those that the tokenizer does not know, and those
        that hold more than the rest of `</think>`, of which `matched` bytes have come: an answer
        would begin there that no grammar has seen. White space behind the tag is allowed.
        """
        return self._barred[matched]

    def _compile(self, answer: str) -> LLMatcher:
        library = self._library
        matcher: LLMatcher = library.LLMatcher(
            self.tokens,
            library.LLMatcher.grammar_from_lark(_START + answer),
            log_level=0,
            limits=library.LLParserLimits(**_LIMITS),
        )
        probe = matcher.deep_copy()
        for text in ("", " " * 4):  # the white space could lead to nothing
            probe.try_consume_tokens(self.tokens.tokenize_str(text))
            probe.compute_bitmask()
        if matcher.is_error() or probe.is_error():
            raise RequestError(
                f"no answer can be held to this grammar: {_told(matcher, probe)}",
                "one that llguidance can do",
                "Leave out of the schema what the message names.",
            )
        return matcher

    def _bar_tokens(self) -> list[NDArray[np.intp]]:
        """`barred_from_reasoning` for 0 to 7 bytes of the tag."""
        tag = CLOSE.encode()
        texts = {i: self.text_of(i) for written, i in self._known.items() if ">" in written}
        unknown = np.setdiff1d(np.arange(self.vocab_size), list(self._known.values()))
        always = [i for i, text in texts.items() if text.partition(tag)[2].strip()]
        barred = []
        for matched in range(len(tag)):
            rest = tag[matched:]
            across = [
                i
                for i, text in texts.items()
                if text.startswith(rest) and text.removeprefix(rest).strip()
            ]
            ids = np.concatenate([unknown, self.ends, always, across]).astype(np.intp)
            barred.append(np.unique(ids[ids < self.vocab_size]))
        return barred


class Constraint:
    """What may come next in one answer. Made by `Grammars.constraint`.

    Attributes:
        complete: whether the answer is whole: nothing may follow, or an end token has come.
    """

    def __init__(
        self, grammars: Grammars, matcher: LLMatcher, inside_reasoning: bool | None
    ) -> None:
        self.complete = False
        self._grammars = grammars
        self._matcher = matcher
        self._inside_reasoning = inside_reasoning
        self._reasoning = b"" if inside_reasoning else None
        """The last bytes of the reasoning, no more than `</think>` lacks; None outside of it."""
        self._may_open = inside_reasoning is False and grammars.open_id is not None
        self._words = np.zeros(-(-grammars.tokens.vocab_size // 32), np.int32)
        self._out = np.empty(grammars.vocab_size, np.float32)  # new memory would take longer

    def copy(self) -> Constraint:
        """Another one, for an answer that begins."""
        matcher = self._matcher.deep_copy()
        matcher.reset()
        return Constraint(self._grammars, matcher, self._inside_reasoning)

    def mask(self, logits: F32) -> F32:
        """The logits [vocab_size] with minus infinity where a token may not come next.

        They are this constraint's own copy, until the next call. Only the engine's thread makes
        masks: all constraints of a model use the same memory meanwhile. Raises RequestError when
        the grammar is too complex at this point, or leads to nothing.
        """
        if self._reasoning is not None:
            out = self._out
            np.copyto(out, logits)
            out[self._grammars.barred_from_reasoning(len(self._reasoning))] = -np.inf
            return out
        words = self._words
        self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        self._check()
        most = self._grammars.most
        # "clip" is never needed, and spares a copy.
        _MOST.take(words.view(np.uint8), axis=0, out=most, mode="clip")
        out = np.minimum(logits, most.reshape(-1)[: len(logits)], out=self._out)
        ends = self._grammars.ends
        out[ends] = logits[ends] if self._matcher.is_accepting() else -np.inf
        if self._may_open:
            out[self._grammars.open_id] = logits[self._grammars.open_id]
        return out

    def accept(self, token: int) -> None:
        """Takes the next token. Raises RequestError when it is none that may come."""
        may_open, self._may_open = self._may_open, False
        if self._reasoning is not None:
            self._think(self._grammars.text_of(token))
        elif may_open and token == self._grammars.open_id:
            self._reasoning = b""
        elif token in self._grammars.ends and self._matcher.is_accepting():
            self.complete = True
        else:
            self._matcher.consume_token(token)
            self._check()
            self.complete = self._matcher.is_stopped()

    def _think(self, text: bytes) -> None:
        """Goes on with the reasoning, until its tag has come."""
        assert self._reasoning is not None
        tag, said = CLOSE.encode(), self._reasoning + text
        begun = (n for n in range(len(tag) - 1, 0, -1) if said.endswith(tag[:n]))
        self._reasoning = None if tag in said else tag[: next(begun, 0)]

    def _check(self) -> None:
        if self._matcher.is_error():
            raise RequestError(
                f"the answer can not go on as its grammar wants: {_told(self._matcher)}",
                "a grammar that is less complex",
                "Simplify the schema.",
            )


def _told(*matchers: LLMatcher) -> str:
    """What is wrong, in a line: of the first that something is wrong with."""
    told = next(matcher.get_error() for matcher in matchers if matcher.is_error())
    line = told.strip().partition("\n")[0]
    return line.partition("): ")[2] or line  # without its place in the grammar


def can_hold_answers() -> bool:
    """Whether answers can be held to a grammar: llguidance is installed."""
    return find_spec("llguidance") is not None


def _llguidance() -> ModuleType:
    try:
        import llguidance
    except ImportError as error:
        raise MissingDependencyError(
            "llguidance is not installed, which holds answers to a grammar",
            hint="Install it: pip install 'deepmnn[serve]'",
        ) from error
    module: ModuleType = llguidance
    return module
