"""All checks of a model, one after another."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial

from deepmnn.conversion.write import Progress
from deepmnn.errors import DeepmnnError
from deepmnn.exporters.mnn.folder import MnnFolder
from deepmnn.inspect.check.attention import check_attention
from deepmnn.inspect.check.heads import check_heads, check_unread
from deepmnn.inspect.check.line import Line, judged, skipped
from deepmnn.inspect.check.mnn import check_folder
from deepmnn.inspect.check.norms import check_norms
from deepmnn.inspect.check.probe import attentions
from deepmnn.inspect.check.program import check_draft, check_program
from deepmnn.inspect.check.router import check_routers
from deepmnn.inspect.check.subject import Converted, Subject, opened
from deepmnn.inspect.check.theirs import check_rotary
from deepmnn.inspect.check.tokens import check_tokens


def check(name: str | os.PathLike[str], progress: Progress | None = None) -> Iterator[Line]:
    """The lines of every check of the model of that name, as they are known.

    Args:
        name: a checkpoint, a converted model, a folder for MNN, or OWNER/NAME on the hub.
        progress: called while a checkpoint of the hub is downloaded.

    Raises as `subject.opened`.
    """
    with opened(name, progress) as model:
        if isinstance(model, MnnFolder):
            yield from check_folder(model)
            yield from _tried("text", lambda: check_tokens(model.config, model.text_files))
        else:
            yield from _check_graph(model)
            yield from _tried("text", lambda: check_tokens(model.config, model.files))


def _check_graph(model: Subject) -> Iterator[Line]:
    """What the engine computes."""
    if isinstance(model, Converted):
        yield check_program(model.graph, model.artifact.graph())
        yield from check_draft(model.program, model.artifact.parts().draft)
    found = attentions(model.graph)
    if model.config["model_type"] == "deepseek_v4":
        yield skipped("attention", "windows and compressed entries have no definition here")
        found = []
    for attention in found:
        where = "" if len(found) == 1 else f", layers {_spans(attention.layers)}"
        yield from _tried(f"attention{where}", partial(check_attention, model, attention, where))
    yield check_rotary(model.config, found)
    yield from _tried("router", lambda: check_routers(model))
    yield from _tried("norms' eps", lambda: check_norms(model))
    yield from _tried("output head", lambda: [check_heads(model)])
    yield check_unread(model)


def _tried(name: str, make: Callable[[], list[Line]]) -> list[Line]:
    """The lines, or one that says why this model cannot be looked at so."""
    try:
        return make()
    except DeepmnnError as fault:
        advice = "It is not what this version makes of the model's files. Convert them again."
        return [judged(name, False, fault.shell, "a part that runs by itself", advice)]


def _spans(layers: tuple[int, ...]) -> str:
    """0-3, 7."""
    spans: list[list[int]] = []
    for layer in layers:
        if spans and spans[-1][1] == layer - 1:
            spans[-1][1] = layer
        else:
            spans.append([layer, layer])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in spans)
