"""deepmnn's models for EleutherAI's lm-evaluation-harness 0.4, registered there as "deepmnn".

    python -m deepmnn.measure.lm_eval --model deepmnn --model_args pretrained=r1-w8 --tasks arc_easy

is the harness's own command, with this model added: it takes all of its flags. In Python, importing
this module is enough before `lm_eval.simple_evaluate(model="deepmnn", ...)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import deepmnn
from deepmnn.errors import MissingDependencyError, RequestError
from deepmnn.measure.continuations import Continuation, likelihoods
from deepmnn.text.sampling_params import SamplingParams

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
    from tqdm import tqdm
except ImportError as error:
    raise MissingDependencyError(
        f"lm-eval cannot be imported: {error}",
        "lm-evaluation-harness 0.4.13 or newer",
        'Run: pip install "deepmnn[eval]"',
    ) from error

_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "seed", "repetition_penalty")
"""What of a task's gen_kwargs is understood, beside `until` and the number of tokens."""


@register_model("deepmnn")
class DeepmnnLM(TemplateLM):  # type: ignore[misc]
    """A model by any name that `deepmnn.load` takes.

    Args:
        pretrained: the name.
        max_length: tokens of a context; by default all that the model holds.
        max_gen_toks: of an answer, where the task does not say.
        batch_size, max_batch_size, device: the harness gives them; the engine fills its own steps
            (`max_batch_tokens`), on the CPU.
        options: as of `deepmnn.load`: quant, threads, kv_dtype, backend, cache_tokens, ...
    """

    def __init__(
        self,
        pretrained: str,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.model = deepmnn.load(pretrained, **options)
        self.max_gen_toks = max_gen_toks
        context = self.model.engine.context_length
        self.max_length = min(max_length or context, context)
        self._name = str(pretrained)
        special, tokenizer = self.model.tokenizer.special_tokens, self.model.tokenizer
        end = tokenizer.token_id(special.get("eos_token", ""))
        if end is None:
            end = min(self.model.generation_config.eos_ids, default=None)
        begin = tokenizer.token_id(special.get("bos_token", ""))
        self._end, self._begin = end, end if begin is None else begin

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text. Raises RequestError when the model has none."""
        if self._end is None:
            raise RequestError(f"{self._name} has no end-of-sequence token", "eos_token")
        return int(self._end)

    @property
    def prefix_token_id(self) -> int:
        """What stands in front of a text that has no context: begin of sequence, else its end."""
        return self.eot_token_id if self._begin is None else int(self._begin)

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in the harness's cache of requests."""
        return self._name.replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Token ids. None adds the special tokens unless the text begins with one."""
        tokenizer = self.model.tokenizer
        if add_special_tokens is None:
            begin = tokenizer.special_text(self.prefix_token_id)
            add_special_tokens = not (begin and string.startswith(begin))
        return tokenizer.encode(string, add_special_tokens=add_special_tokens)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The conversation as text; one that ends with the beginning of an answer stays open."""
        if add_generation_prompt:
            return self.model.tokenizer.apply_chat_template(chat_history)
        before, begun = chat_history[:-1], chat_history[-1]["content"]
        return self.model.tokenizer.apply_chat_template(before) + begun

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template's source, by which the harness names its cache."""
        return self.model.tokenizer.chat_template if chat_template else None

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """Of whole texts, in windows of the context's length; each token is predicted once."""
        owners: list[int] = []
        windows: list[tuple[None, list[int], list[int]]] = []
        for number, request in enumerate(requests):
            ids = self.tok_encode(request.args[0])
            for window in get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, 1):
                owners.append(number)
                windows.append((None, *make_disjoint_window(window)))
        found = [0.0] * len(requests)
        scored = self._loglikelihood_tokens(windows, disable_tqdm)
        for number, (logprob, _) in zip(owners, scored, strict=True):
            found[number] += logprob
        for request, logprob in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, logprob)
        return found

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """Answers, greedy unless the task says otherwise; what stands in <think> is left out."""
        asked = [self._request(*request.args) for request in requests]
        texts = [""] * len(asked)
        prompts, params = [ids for ids, _ in asked], [wanted for _, wanted in asked]
        bar = tqdm(total=len(asked), disable=disable_tqdm, desc="Running generate_until requests")
        for chunk in self.model.stream(prompts, params, whole=True) if asked else ():
            texts[chunk.index] = chunk.text
            self.cache_hook.add_partial("generate_until", requests[chunk.index].args, chunk.text)
            bar.update(1)
        bar.close()
        return texts

    def _request(
        self, context: str, gen_kwargs: dict[str, Any]
    ) -> tuple[list[int], SamplingParams]:
        """A prompt, its beginning cut off where it leaves no room, and what is wanted of it."""
        given = normalize_gen_kwargs(gen_kwargs, self.max_gen_toks)
        most = int(given["max_gen_toks"])
        if most >= self.max_length:
            raise RequestError(
                f"the task asks for {most} tokens, a context holds {self.max_length}",
                "fewer tokens",
                "Give the harness a smaller max_gen_toks, in its gen_kwargs.",
            )
        until = given.get("until") or []
        sampled = {name: given[name] for name in _SAMPLING if given.get(name) is not None}
        params = SamplingParams(
            max_tokens=most, stop=tuple(text for text in until if text), **sampled
        )
        return self.tok_encode(context)[-(self.max_length - most) :], params

    def _loglikelihood_tokens(
        self, requests: Sequence[Any], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """The harness's requests: (its texts or None, context ids, continuation ids)."""
        asked = []
        for _, context, tokens in requests:
            kept = context[max(0, len(context) + len(tokens) - self.max_length - 1) :]
            asked.append(Continuation(tuple(kept), tuple(tokens)))
        total = len(set(asked))
        bar = tqdm(total=total, disable=disable_tqdm, desc="Running loglikelihood requests")
        found = likelihoods(self.model, asked, lambda done, _: bar.update(done - bar.n))
        bar.close()
        results = [(each.logprob, each.is_greedy) for each in found]
        for (texts, _, _), result in zip(requests, results, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, result)
        return results


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
