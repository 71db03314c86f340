"""deepmnn serve: a model behind HTTP."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from deepmnn.api.options import LoadOptions
from deepmnn.cli import options
from deepmnn.cli.console import file_size, out
from deepmnn.errors import MissingDependencyError
from deepmnn.serve.options import ServeOptions

if TYPE_CHECKING:
    from deepmnn.api.llm import LLM
    from deepmnn.serve.run import Server


def serve(
    path: options.OptionalModelPath = None,
    *,
    serving: ServeOptions,
    load: LoadOptions,
) -> None:
    """Serve a model to clients of OpenAI's and Anthropic's APIs.

    Ctrl-C or SIGTERM lets running requests end first; a second one does not.
    """
    with importing():
        from deepmnn.serve.run import Server

    with Server(serving, serving.model_name or model_name(path)) as server:
        model = options.open_model(path or options.bundled(), load)
        server.ready(model)
        server.handle_signals()
        _announce(server, model)
        server.join()
    if server.status:
        sys.exit(server.status)


@contextmanager
def importing() -> Iterator[None]:
    """For imports of what the extra `serve` brings. Raises MissingDependencyError without it."""
    try:
        yield
    except ImportError as error:
        raise MissingDependencyError(
            f"the server cannot be imported: {error}",
            "fastapi, uvicorn and prometheus-client",
            'Run: pip install "deepmnn[serve]"',
        ) from error


def model_name(path: str | None) -> str:
    """What clients call a model: a directory's name, or OWNER/NAME."""
    if path is None:
        return "tiny-r1"
    local = Path(path)
    return local.resolve().name if local.exists() else path


def _announce(server: Server, model: LLM) -> None:
    out.say(f"{server.name} is served at {server.url}", "bold")
    engine = model.driver.engine
    cache = engine.manager.capacity
    out.say(
        f"context {engine.context_length:,} tokens, KV cache {cache:,} tokens "
        f"({file_size(cache * model.kv_bytes_per_token)}), "
        f"{engine.scheduler.max_sequences} answers at a time",
        "dim",
    )
    if model.split is not None:
        out.say(model.split.line(), "dim")
    if engine.manager.disk is not None:
        out.say(f"{engine.manager.disk.line()}; --kv-disk 0 turns that off", "dim")
    headers = "-H 'Content-Type: application/json'"
    if server.options.api_key:
        headers += ' -H "Authorization: Bearer $DEEPMNN_API_KEY"'
    body = '{"messages": [{"role": "user", "content": "What is 2 + 2?"}]}'
    out.say("Try:")
    out.write(f"curl {server.url}/v1/chat/completions {headers} -d '{body}'\n")
