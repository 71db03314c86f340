"""What verbs share: the path of a model, the flags that load it and those that sample from it.

A verb asks for flags by its parameters: one of type `LoadOptions` or `ServeOptions` stands for a
flag for each field of that class, one of type `Sampling` for those of `SamplingParams`.
`with_flags` makes them from the fields' names, types, defaults and metadata.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import wraps
from inspect import Parameter, signature
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints

from typer import Argument, Option

from deepmnn.api.options import LoadOptions
from deepmnn.backends.mnn.options import MnnOptions
from deepmnn.cli.console import err
from deepmnn.cli.progress import byte_progress
from deepmnn.serve.options import ServeOptions
from deepmnn.text.sampling_params import SamplingParams

if TYPE_CHECKING:
    from deepmnn.api.llm import LLM
    from deepmnn.conversion.write import Progress
    from deepmnn.text.needs import Needs

_NAMES = (
    "A converted model, a checkpoint, a GGUF file, a folder exported for MNN, or OWNER/NAME on the "
    "hub"
)
ModelPath = Annotated[str, Argument(metavar="MODEL", help=f"{_NAMES}.")]
OptionalModelPath = Annotated[
    str | None, Argument(metavar="[MODEL]", help=f"{_NAMES}; default: the bundled tiny-r1.")
]


@dataclass(frozen=True)
class Sampling:
    """The sampling flags that were given."""

    given: Mapping[str, Any]

    def params(self, model: LLM) -> SamplingParams:
        """What the model recommends, with the given flags on top. Raises RequestError."""
        return replace(model.generation_config.params, **self.given)


def with_flags(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb as typer takes it: with flags in place of `LoadOptions`, `ServeOptions`, `Sampling`.

    A verb's annotation may replace the help text of a field, or leave its flag out, as in
    `load: Annotated[LoadOptions, {"cache_tokens": "KV cache rows.", "max_sequences": None}]`.
    """
    parameters: list[Parameter] = []
    values: dict[str, Callable[[dict[str, Any]], Any]] = {}
    plain = signature(verb, eval_str=True)
    for parameter in plain.parameters.values():
        kind, *texts = get_args(parameter.annotation) or (parameter.annotation,)
        if kind is LoadOptions:
            parameters += _flags(LoadOptions, "Loading", *texts)
            values[parameter.name] = _load_options
        elif kind is ServeOptions:
            parameters += _flags(ServeOptions, "Serving", *texts)
            values[parameter.name] = _serve_options
        elif kind is Sampling:
            parameters += _flags(SamplingParams, "Sampling", *texts, optional=True)
            values[parameter.name] = _sampling
        else:
            parameters.append(parameter)

    @wraps(verb)
    def flagged(**flags: Any) -> None:
        taken = {name: take(flags) for name, take in values.items()}
        verb(**flags, **taken)

    flagged.__signature__ = plain.replace(parameters=parameters)  # type: ignore[attr-defined]
    flagged.__annotations__ = {p.name: p.annotation for p in parameters}
    return flagged


def open_model(name: str, options: LoadOptions, needs: Needs | None = None) -> LLM:
    """The model of that name; what must be prepared first is said, and how far it is.

    needs: what `deepmnn.load` refuses a model without.
    """
    import deepmnn

    with preparing() as progress:
        model = deepmnn.load(name, options=options, needs=needs, progress=progress)
    if options.numa != "off" and getattr(model.backend, "numa", "off") == "off":
        err.say(f"numa {options.numa} changes nothing: there is one memory node", "dim")
    return model


def bundled() -> str:
    """The model of the package, whatever lies in the working directory."""
    from deepmnn.conversion.bundled import bundled_checkpoint

    return str(bundled_checkpoint())


@contextmanager
def preparing() -> Iterator[Progress]:
    """Tells what deepmnn downloads, converts and waits for, and how far it is.

    The progress bar appears with the first report, for most models need nothing.
    """
    log, told = logging.getLogger("deepmnn"), _Told()
    level = log.level
    log.addHandler(told)
    log.setLevel(logging.INFO)
    try:
        with ExitStack() as stack:
            shown: list[Progress] = []

            def report(done: int, total: int, label: str) -> None:
                if not shown:
                    shown.append(stack.enter_context(byte_progress("preparing")))
                shown[0](done, total, label)

            yield report
    finally:
        log.removeHandler(told)
        log.setLevel(level)


class _Told(logging.Handler):
    """Prints what deepmnn logs on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        err.say(record.getMessage(), "dim")


def _flags(
    kind: type[Any],
    panel: str,
    texts: Mapping[str, str | None] | None = None,
    *,
    optional: bool = False,
) -> list[Parameter]:
    """A flag for each field with a help text, and for those of a field that is a dataclass.

    optional: the flags have no defaults of their own.
    """
    hints = get_type_hints(kind, localns={"Recipe": object})  # its module takes time to import
    made = []
    for field in fields(kind):
        value = _value_type(hints[field.name])
        text = (texts or {}).get(field.name, field.metadata.get("help"))
        if is_dataclass(value):
            made += _flags(value, panel, texts, optional=True)
        elif text:
            low, _ = field.metadata.get("range", (None, None))  # the class checks the upper end
            option = Option(
                None if optional else field.default,
                help=text,
                min=low,
                rich_help_panel=panel,
            )
            made.append(
                Parameter(
                    field.name, Parameter.KEYWORD_ONLY, default=option, annotation=value | None
                )
            )
    return made


def _value_type(hint: Any) -> type[Any]:
    """What a flag's text is parsed to: the first kind a field may hold, or a list of texts."""
    kinds = [kind for kind in get_args(hint) or (hint,) if kind is not NoneType]
    return list[str] if any(get_origin(kind) is tuple for kind in kinds) else kinds[0]


def _load_options(flags: dict[str, Any]) -> LoadOptions:
    """Takes its fields out of flags. Raises RequestError."""
    mnn = _take(MnnOptions, flags)
    given = _take(LoadOptions, flags)
    if "quant" in given:
        from deepmnn.quant.recipe_file import read_recipe

        given["quant"] = read_recipe(given["quant"])
    return LoadOptions(**given, mnn=MnnOptions(**mnn) if mnn else None)


def _serve_options(flags: dict[str, Any]) -> ServeOptions:
    """Takes its fields out of flags. Raises RequestError."""
    return ServeOptions(**_take(ServeOptions, flags))


def _sampling(flags: dict[str, Any]) -> Sampling:
    """Takes its fields out of flags, those that have one."""
    shown = [field.name for field in fields(SamplingParams) if "help" in field.metadata]
    found = {name: flags.pop(name, None) for name in shown}
    return Sampling({name: value for name, value in found.items() if value not in (None, [])})


def _take(kind: type[Any], flags: dict[str, Any]) -> dict[str, Any]:
    """Takes the fields of a dataclass out of flags; those that were given."""
    found = {field.name: flags.pop(field.name, None) for field in fields(kind)}
    return {name: value for name, value in found.items() if value not in (None, [])}
