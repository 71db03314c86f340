"""What can be switched off, one by one, to find what makes a model's answers wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from deepmnn.inspect.bisect.schedule import SPAN, WHOLE, Schedule
from deepmnn.inspect.sides.options import SideOptions

Place = tuple[int, str]
"""A layer (-1: before the first; the number of layers: after the last) and a role of weights."""


BACKEND = "backend"

_WIDER = (
    "Give these weights a wider format, or round them by a calibration if they were rounded to "
    "nearest. Where comparing says that their formats do not explain the error, the stored numbers "
    "are damaged: convert the model again."
)


@dataclass(frozen=True)
class Setting:
    """How a variant of a model runs.

    Attributes:
        without: passes that are left out. Weights that they would have fused run in float32.
        exact: places whose weights are the reference's numbers, in float32.
        floats: weights of codes run as float32 numbers, so that activations are not rounded.
        by_numpy: layers that the reference backend runs.
        kv_dtype, isa, threads, mla_form, backend: as of `SideOptions`.
        schedule: how samples become steps, where the whole engine runs them.
    """

    without: frozenset[str] = frozenset()
    exact: frozenset[Place] = frozenset()
    floats: bool = False
    by_numpy: frozenset[int] = frozenset()
    kv_dtype: str = "f32"
    isa: str | None = None
    threads: int | None = None
    mla_form: str = "auto"
    backend: str | None = None
    schedule: Schedule = WHOLE


@dataclass(frozen=True)
class Switch:
    """Something to switch off.

    Attributes:
        axis: what kind of thing it is.
        name: for people.
        off: the setting with it switched off.
        advice: what to do when it is to blame.
        group: what switches of an axis have in common that may be to blame together.
    """

    axis: str
    name: str
    off: Callable[[Setting], Setting]
    advice: str
    group: str = ""


def switched_off(setting: Setting, switches: Iterable[Switch]) -> Setting:
    """The setting with all of them off."""
    for switch in switches:
        setting = switch.off(setting)
    return setting


def run_switches(
    options: SideOptions, isas: Sequence[str], has_latents: bool
) -> list[list[Switch]]:
    """How a model runs: an axis for each choice that is not the safest one already.

    isas: of this machine, the best one first.
    """
    safest: dict[str, tuple[object, object, str]] = {
        "kv_dtype": (options.kv_dtype, "f32", "Keep keys and values in float32, and report it."),
        "threads": (options.threads or 0, 1, "Run with one thread, and report it."),
    }
    if options.backend == "cpu":
        isa = options.isa or isas[0]
        safest["isa"] = (isa, isas[-1], f"Run with another instruction set than {isa}; report it.")
    if has_latents and options.backend == "cpu":
        other = "expanded" if options.mla_form != "expanded" else "absorbed"
        safest["mla_form"] = (options.mla_form, other, f"Run with the {other} form, and report it.")
    found = []
    for field, (now, safe, advice) in safest.items():
        if now != safe:
            name = f"{field} {now or 'of all cores'}"
            found.append([Switch(field, name, partial(_with, field, safe), advice)])
    if options.backend == "mnn":
        advice = "MNN rounds weights anew, and has kernels of its own: export with more bits."
        found.append([Switch(BACKEND, "MNN", partial(_with, BACKEND, "cpu"), advice)])
    return found


def step_switches() -> list[Switch]:
    """How samples become steps of the engine."""
    advice = "The KV cache or the scheduler is wrong for such steps. Report it."
    names = {
        "spans": f"prompts in spans of {SPAN} tokens",
        "decode": "decoding one token at a time",
        "together": "several sequences in a step",
    }

    def off(field: str, setting: Setting) -> Setting:
        return replace(setting, schedule=replace(setting.schedule, **{field: False}))

    return [Switch("steps", name, partial(off, field), advice) for field, name in names.items()]


def pass_switches(names: Iterable[str]) -> list[Switch]:
    """Of optimisation passes."""
    advice = (
        "The pass, or the kernel of the op that it writes, is wrong. Convert the model at a lower "
        "optimisation level until that is mended, and report it."
    )

    def off(name: str, setting: Setting) -> Setting:
        return replace(setting, without=setting.without | {name})

    return [Switch("passes", name, partial(off, name), advice) for name in names]


def kernel_switches(layers: int) -> list[Switch]:
    """The engine's kernels, layer by layer, and those after the last."""
    advice = "A kernel gives something else than its op's definition. Report it."

    def off(layer: int, setting: Setting) -> Setting:
        return replace(setting, by_numpy=setting.by_numpy | {layer})

    found = []
    for layer in range(layers + 1):
        name = f"the engine's kernels {_where(layer, layers)}"
        found.append(Switch("kernels", name, partial(off, layer), advice))
    return found


def activation_switch() -> Switch:
    """That weights of codes are multiplied with activations of codes."""
    return Switch(
        "activations",
        "activations as int8, and products of integers",
        lambda setting: replace(setting, floats=True),
        "Rounded activations do it, or a kernel of integers: give bf16 weights to the layers whose "
        "own error is the largest.",
    )


def place_switches(places: Mapping[Place, str], layers: int) -> list[Switch]:
    """How the weights of each layer and role are stored."""

    def off(place: Place, setting: Setting) -> Setting:
        return replace(setting, exact=setting.exact | {place})

    found = []
    for place, format in places.items():
        layer, role = place
        name = f"{role} weights in {format} {_where(layer, layers)}"
        found.append(Switch("weights", name, partial(off, place), _WIDER, f"{role} weights"))
    return found


def _with(field: str, value: object, setting: Setting) -> Setting:
    changed: Setting = replace(setting, **{field: value})  # type: ignore[arg-type]
    return changed


def _where(layer: int, layers: int) -> str:
    if layer < 0:
        return "before the layers"
    return "after the layers" if layer == layers else f"in layer {layer}"
