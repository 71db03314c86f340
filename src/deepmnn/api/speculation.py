"""Who guesses tokens ahead for a model (docs/speculation.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepmnn.engine.engine import Engine
from deepmnn.engine.speculation.drafter import Reader
from deepmnn.engine.speculation.model import ModelDrafter
from deepmnn.engine.speculation.mtp import MtpDrafter
from deepmnn.engine.speculation.ngram import NgramDrafter
from deepmnn.engine.speculation.speculation import Speculation
from deepmnn.errors import RequestError, Words, argument

if TYPE_CHECKING:
    from deepmnn.api.llm import LLM
    from deepmnn.api.options import LoadOptions

NGRAM_TOKENS = 8
"""Guessed at most where nothing else is said: looking up more costs nothing."""

MTP_TOKENS = 3
"""Each is a run of the draft part, which is trained for the first of them."""

MODEL_TOKENS = 5

_OFF = Words(
    "speculate 'auto', 'ngram', 'off' or a smaller model",
    "--speculate auto, ngram, off or a smaller model",
)


def check_speculation(model: LLM) -> None:
    """Raises RequestError where a model can not guess as its options say."""
    wanted, draft = model.options.speculate, model.draft
    if wanted == "mtp" and model.backend.draft_state is None:
        raise RequestError("this model has no draft part that is loaded", _OFF)
    if draft is not None:
        _check_vocabulary(model, draft)


def guess_ahead(engine: Engine, options: LoadOptions, draft: LLM | None) -> None:
    """Has an engine guess as the options say.

    draft: the smaller model, where they name one.
    """
    wanted = options.speculate or "auto"
    if wanted == "off" or engine.backend.max_sequences == 1:
        return
    most = options.speculate_tokens
    dear: Reader | None = None
    if draft is not None:
        dear = ModelDrafter(draft.new_engine(), engine.backend.vocab_size, most or MODEL_TOKENS)
    elif wanted == "mtp":
        dear = MtpDrafter(engine.backend, engine.cache, most or MTP_TOKENS)
    lookup = None if wanted == "mtp" else NgramDrafter(most or NGRAM_TOKENS)
    rows = min(engine.max_rows, engine.scheduler.max_batch_tokens)
    engine.speculation = Speculation(engine.manager, rows, lookup, dear)


def _check_vocabulary(model: LLM, draft: LLM) -> None:
    """Raises RequestError unless the same ids are the same tokens for both."""
    found = f"the vocabulary of {draft.path.name} is another"
    if model.has_tokenizer and draft.has_tokenizer:
        mine, its = (m.tokenizer.library.get_vocab(with_added_tokens=True) for m in (model, draft))
        different = len(mine.items() ^ its.items())
        found += f": {different:,} tokens differ"
    else:
        different = model.vocab_size - draft.vocab_size
        found += f": {draft.vocab_size:,} tokens"
    if different:
        raise RequestError(
            argument("speculate", f" names a model that can not guess for this one; {found}"),
            f"that of {model.path.name}, {model.vocab_size:,} tokens",
            "Take a smaller model of the same family.",
        )
