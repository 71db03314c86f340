"""How many tokens an answer took, as each API counts them."""

from __future__ import annotations

from typing import Any

from deepmnn.engine.completion import Chunk


class Usage:
    """Counts the tokens of the answers to one request.

    A prompt counts once, however many answers it has.
    """

    def __init__(self) -> None:
        self._last: dict[tuple[int, int], Chunk] = {}

    def add(self, chunk: Chunk) -> None:
        """Takes the next chunk of an answer."""
        self._last[chunk.index, chunk.choice] = chunk

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompts."""
        return sum(chunk.prompt_tokens for chunk in self._firsts())

    @property
    def cached_tokens(self) -> int:
        """Those of them that were in the cache."""
        return sum(chunk.cached_tokens for chunk in self._firsts())

    @property
    def completion_tokens(self) -> int:
        """Tokens of all answers so far."""
        return sum(chunk.completion_tokens for chunk in self._last.values())

    @property
    def reasoning_tokens(self) -> int:
        """Those of them that are reasoning."""
        return sum(chunk.reasoning_tokens for chunk in self._last.values())

    @property
    def drafted_tokens(self) -> int:
        """Tokens that were guessed ahead."""
        return sum(chunk.drafted_tokens for chunk in self._last.values())

    @property
    def accepted_tokens(self) -> int:
        """Those of them that were right."""
        return sum(chunk.accepted_tokens for chunk in self._last.values())

    def openai(self) -> dict[str, Any]:
        """Of the Chat Completions and the Completions API, with DeepSeek's two."""
        prompt, cached, answer = self.prompt_tokens, self.cached_tokens, self.completion_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": answer,
            "total_tokens": prompt + answer,
            "prompt_tokens_details": {"cached_tokens": cached},
            "completion_tokens_details": {
                "reasoning_tokens": self.reasoning_tokens,
                "accepted_prediction_tokens": self.accepted_tokens,
                "rejected_prediction_tokens": self.drafted_tokens - self.accepted_tokens,
            },
            "prompt_cache_hit_tokens": cached,
            "prompt_cache_miss_tokens": prompt - cached,
        }

    def responses(self) -> dict[str, Any]:
        """Of the Responses API."""
        prompt, answer = self.prompt_tokens, self.completion_tokens
        cached = {"cached_tokens": self.cached_tokens, "cache_write_tokens": 0}
        return {
            "input_tokens": prompt,
            "input_tokens_details": cached,
            "output_tokens": answer,
            "output_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
            "total_tokens": prompt + answer,
        }

    def anthropic(self) -> dict[str, Any]:
        """Of the Messages API, whose input_tokens are those that were not in the cache."""
        return {
            "input_tokens": self.prompt_tokens - self.cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": self.cached_tokens,
            "output_tokens": self.completion_tokens,
            "output_tokens_details": {"thinking_tokens": self.reasoning_tokens},
        }

    def timings(self) -> dict[str, Any]:
        """llama.cpp's: how long it took. Milliseconds; of several answers, the longest."""
        chunks = [*self._last.values()]
        prefill = max((chunk.prefill_seconds for chunk in chunks), default=0.0)
        decode = max((chunk.decode_seconds for chunk in chunks), default=0.0)
        # The first token comes out of the prefill.
        steps = sum(max(0, chunk.completion_tokens - 1) for chunk in chunks)
        read = self.prompt_tokens - self.cached_tokens
        return {
            "cache_n": self.cached_tokens,
            "prompt_n": read,
            "prompt_ms": 1e3 * prefill,
            "prompt_per_second": read / prefill if prefill else 0.0,
            "predicted_n": self.completion_tokens,
            "predicted_ms": 1e3 * decode,
            "predicted_per_second": steps / decode if decode else 0.0,
            **self._drafts(),
        }

    def _drafts(self) -> dict[str, int]:
        """llama.cpp's, where any tokens were guessed ahead."""
        if not self.drafted_tokens:
            return {}
        return {"draft_n": self.drafted_tokens, "draft_n_accepted": self.accepted_tokens}

    def _firsts(self) -> list[Chunk]:
        """The first answer to each prompt."""
        return [chunk for (_, choice), chunk in self._last.items() if choice == 0]
