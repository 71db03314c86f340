"""deepmnn generate: one prompt, one answer."""

from __future__ import annotations

from typing import Annotated

from typer import Argument, Option

from deepmnn.cli import options
from deepmnn.cli.answer import show, show_stats


def generate(
    path: options.ModelPath,
    prompt: Annotated[str, Argument(help="What to ask.")],
    raw: Annotated[bool, Option("--raw", help="Continue the text; no chat template.")] = False,
    system: Annotated[str | None, Option(help="A system message.")] = None,
    max_tokens: options.MaxTokens = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    seed: options.Seed = None,
    stop: Annotated[list[str] | None, Option(help="Text that ends the answer; repeatable.")] = None,
    backend: options.Backend = None,
    threads: options.Threads = None,
    numa: options.Numa = "off",
    kv_dtype: options.KvDtype = "f32",
    memory: options.Memory = None,
    precision: options.Precision = None,
    cache_tokens: options.CacheTokens = None,
) -> None:
    """Answer one prompt; the reasoning is dimmed."""
    model = options.load(path, backend, threads, kv_dtype, cache_tokens, memory, precision, numa)
    params = options.sampling(
        model,
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seed=seed,
        stop=tuple(stop) if stop else None,
    )
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": prompt})
    model.tokenizer  # noqa: B018  # printing an answer needs one: say so before any work
    show_stats(show(model.stream(prompt if raw else messages, params)))
