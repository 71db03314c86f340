"""The prompt that a model is profiled with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepmnn.errors import RequestError
from deepmnn.inspect.samples import named_file, read_ids
from deepmnn.measure.texts import read_texts

if TYPE_CHECKING:
    from deepmnn.api.llm import LLM


def prompt(model: LLM, given: str) -> list[int]:
    """The token ids of a file (.npy: whole numbers; .bin: int32), of a file of text, or of a text.

    Of JSON Lines it is the first line. Raises RequestError: a file of something else, ids outside
    the vocabulary, nothing in it, a text for a model without a tokenizer.
    """
    path = named_file(given)
    if path is not None and path.suffix in (".npy", ".bin"):
        ids = [int(id) for id in read_ids(path, model.vocab_size)]
    elif not model.has_tokenizer:
        what = f"a text, {given!r:.80}," if path is None else f"{path}, a text,"
        raise RequestError(
            f"{what} for a model without a tokenizer",
            "token ids in a .npy or .bin file that exists",
        )
    else:
        ids = model.encode(given if path is None else read_texts(path)[0])
    if not ids:
        raise RequestError(f"{given!r:.80} has no token", "at least one")
    return ids
