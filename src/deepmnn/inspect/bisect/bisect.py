"""Finds the smallest set of switches that brings a model's error under a bound."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path

from deepmnn import _core
from deepmnn.backends.base import I32
from deepmnn.errors import ArtifactError, RequestError
from deepmnn.exporters.mnn.folder import is_exported
from deepmnn.inspect.bisect.runs import (
    Logits,
    Progress,
    Runs,
    Trial,
    by_layers,
    by_whole,
    side_logits,
)
from deepmnn.inspect.bisect.schedule import Schedule
from deepmnn.inspect.bisect.search import Works, smallest
from deepmnn.inspect.bisect.setting import (
    BACKEND,
    Setting,
    Switch,
    activation_switch,
    kernel_switches,
    pass_switches,
    place_switches,
    run_switches,
    step_switches,
)
from deepmnn.inspect.bisect.variant import Variants
from deepmnn.inspect.compare.comparison import check_pair
from deepmnn.inspect.sides.staged import StagedSide
from deepmnn.inspect.sides.subject import Subject

Axis = list[Switch]
"""Switches of one kind."""

HIDES = {"activations": ("kernels", "weights")}
"""Axis → the axes that, switched off, switch it off, too: numpy rounds no activations, and nobody
does beside exact weights."""

FEW = 4
"""Switches that are named one by one."""

NOTHING = "The answers are within the bound: there is nothing to switch off."
IN_THE_MODEL = (
    "No switch brings the error under the bound: what is wrong is in the model's graph or its "
    "config. Compare the two models value by value."
)
ON_MNN = (
    "A folder for MNN has nothing to switch off: its weights are rounded anew, and its kernels are "
    "its own. Compare it value by value, export it with more bits, or give the converted model "
    "with the backend mnn, which can run on our engine instead."
)
IN_THE_PROGRAM = (
    "The layers are right one at a time, the whole program is not: suspect the reuse of memory. "
    "Convert the model at optimisation level 2, and report it."
)


@dataclass(frozen=True)
class Bisection:
    """What bisecting a model gives.

    Attributes:
        model, reference: what they are, in a few words.
        bound: of the relative error of the logits.
        as_it_is: the model as it is.
        blamed: the smallest set of switches that brings the error under the bound, by name; empty
            where nothing is to blame, or nothing that has a switch.
        axes: the kinds of things that these are.
        advice: what to do.
        off: the error with these off and all else on.
        on: the error with these on and all else that has a switch off; above the bound it proves
            that they do harm by themselves.
        trials: all runs, in order.
    """

    model: str
    reference: str
    bound: float
    as_it_is: Trial
    blamed: tuple[str, ...]
    axes: tuple[str, ...]
    advice: tuple[str, ...]
    off: Trial | None = None
    on: Trial | None = None
    trials: tuple[Trial, ...] = field(default=())


def bisect(
    model: Subject,
    reference: Subject,
    samples: Sequence[I32],
    bound: float,
    progress: Progress | None = None,
) -> Bisection:
    """Switches off what can be, axis by axis and then by halving.

    First how the whole engine runs: the cache's format, the instruction set, threads, how samples
    become steps. Where that is not it, what the layers are: kernels, rounded activations, passes,
    and how weights are stored. An axis takes one run, and about log2 of its switches for each one
    that is to blame.

    Args:
        samples: token ids, each a sequence of its own.
        bound: of the relative error of the logits.
        progress: called before each run.

    Raises ArtifactError where program.bin is not the graph, RequestError as `check_pair`, for a
    bound that is not positive, and for a model whose numbers cannot be read.
    """
    if not 0 < bound < math.inf:
        raise RequestError(f"the bound is {bound}", "a positive number, such as 0.01")
    check_pair(model, reference)
    if model.program is not None and model.program.verdict == "wrong":
        raise ArtifactError(
            f"program.bin of {model.name} is not its graph: {model.program.found}",
            model.program.expected,
            model.program.advice,
        )
    runs = Runs(side_logits(reference.side, samples), bound, progress)
    return _Bisector(model, reference, samples, runs, bound).run()


class _Bisector:
    def __init__(
        self,
        model: Subject,
        reference: Subject,
        samples: Sequence[I32],
        runs: Runs,
        bound: float,
    ) -> None:
        self._model, self._reference, self._samples = model, reference, samples
        self._runs, self._bound = runs, bound
        options = model.options
        self._plain = Setting(
            kv_dtype=options.kv_dtype,
            isa=options.isa,
            threads=options.threads,
            mla_form=options.mla_form,
        )

    def run(self) -> Bisection:
        """Bisects."""
        options = self._model.options
        axes = run_switches(options, _core.isas(), self._has_latents())
        if os.path.lexists(self._model.name) and is_exported(Path(self._model.name)):
            axes = [axis for axis in axes if axis[0].axis != BACKEND]  # it has no other
        if options.as_it_is and options.backend != "reference":
            served = replace(self._plain, schedule=Schedule())
            whole = by_whole(self._model, self._samples)
            found = self._search(whole, served, [*axes, step_switches()])
            if found is not None:
                return found
            axes = []
        return self._search_layers(axes)

    def _search_layers(self, axes: list[Axis]) -> Bisection:
        """Among what the layers are."""
        if not isinstance(self._model.side, StagedSide):
            return self._result((), ON_MNN if self._model.quant is not None else IN_THE_MODEL)
        variants = Variants(self._model, self._reference)
        layers = by_layers(variants, self._samples)
        first = self._runs.trials[0] if self._runs.trials else None
        alone = self._runs.trial(layers, self._plain, [])
        if alone.error <= self._bound:
            return self._result((), IN_THE_PROGRAM if first is not None else NOTHING)
        changed = [result.name for result in variants.passes if result.rewrites]
        if self._model.options.backend == "cpu":
            axes = [*axes, [activation_switch()], kernel_switches(variants.layers)]
        axes = [
            *axes,
            pass_switches(changed),
            place_switches(variants.places(), variants.layers),
        ]
        found = self._search(layers, self._plain, axes, known=alone)
        return found or self._result((), IN_THE_MODEL)

    def _has_latents(self) -> bool:
        side = self._model.side
        return isinstance(side, StagedSide) and any("latent" in n for n in side.graph.caches)

    def _search(
        self, logits: Logits, setting: Setting, axes: list[Axis], known: Trial | None = None
    ) -> Bisection | None:
        """The smallest set of switches of some axes; None where all of them are not enough."""
        runs, every = self._runs, [switch for axis in axes for switch in axis]
        longest = max(len(axis) for axis in axes)
        runs.expect(len(axes) + math.ceil(math.log2(longest + 1)) + 4)
        now = known or runs.trial(logits, setting, [])
        if now.error <= self._bound:
            return self._result((), NOTHING)

        def works(off: list[Switch]) -> bool:
            return runs.works(logits, setting, off)

        if not works(every):
            return None
        blamed: list[Switch] = []
        for axis in axes:
            if works(axis):
                blamed = _fewest(axis, works)
                break
        else:
            needed = list(axes)
            for axis in axes:
                rest = [other for other in needed if other is not axis]
                if works([switch for each in rest for switch in each]):
                    needed = rest
            blamed = [switch for axis in needed for switch in axis]
        hidden = {axis for switch in blamed for axis in HIDES.get(switch.axis, ())}
        on = [switch for switch in every if switch not in blamed and switch.axis not in hidden]
        return self._result(
            blamed,
            "",
            runs.trial(logits, setting, blamed),
            runs.trial(logits, setting, on) if on else now,
        )

    def _result(
        self,
        blamed: Sequence[Switch],
        advice: str,
        off: Trial | None = None,
        on: Trial | None = None,
    ) -> Bisection:
        trials = tuple(self._runs.trials)
        said = dict.fromkeys(switch.advice for switch in blamed)
        return Bisection(
            model=self._model.side.label,
            reference=self._reference.side.label,
            bound=self._bound,
            as_it_is=trials[0],
            blamed=_names(blamed),
            axes=tuple(dict.fromkeys(switch.axis for switch in blamed)),
            advice=tuple(said) or (advice,),
            off=off,
            on=on,
            trials=trials,
        )


def _fewest(axis: Axis, works: Works[Switch]) -> list[Switch]:
    """Of an axis that is to blame: the few switches that do it, or the groups, or all of them."""
    if len(axis) == 1:
        return axis
    members = smallest(axis, works)
    if members is not None:
        return members
    groups = [list(group) for _, group in groupby(sorted(axis, key=_group), key=_group)]
    needed = list(groups)
    for group in groups:
        rest = [switch for other in needed if other is not group for switch in other]
        if rest and works(rest):
            needed.remove(group)
    return [switch for group in needed for switch in group]


def _names(blamed: Sequence[Switch]) -> tuple[str, ...]:
    """What is to blame, for people: many switches of a group in one."""
    found = []
    for group, each in groupby(blamed, key=_group):
        names = [switch.name for switch in each]
        found += names if len(names) <= FEW else [f"{group or names[0]} in {len(names)} places"]
    return tuple(found)


def _group(switch: Switch) -> str:
    return switch.group
