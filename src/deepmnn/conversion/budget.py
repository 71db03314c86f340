"""Formats for every part of a model under a budget: of bytes, or of divergence.

What a part adds to the divergence is known from noise (sensitivity.py); what it adds in a format
follows from the square of that format's rounding error. Calibrated rounding does better than that,
by a factor that is measured: the model is rounded, its divergence on held-out text is compared with
what was predicted, and the formats are chosen anew until the budget holds.

Codes that the checkpoint has of no more bits than a format stay in its place (plan.py): the choice
takes their bytes and adds nothing.
"""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from hashlib import blake2b
from pathlib import Path

import numpy as np

from deepmnn.artifact.directory import storage_errors
from deepmnn.backends.base import I32
from deepmnn.conversion.calibrate import calibrate
from deepmnn.conversion.forward import Progress
from deepmnn.conversion.held_out import HeldOut
from deepmnn.conversion.plan import Plan, choose_formats, plan
from deepmnn.conversion.report.facts import Point, Search
from deepmnn.conversion.rounded import Rounded, rounded
from deepmnn.conversion.sensitivity import SAMPLE_TOKENS, SAMPLES, Part, parts, sensitivities
from deepmnn.errors import RequestError, Words, argument
from deepmnn.formats import FORMATS, PANEL_COLS, named
from deepmnn.graph.levels import optimize
from deepmnn.graph.tensors import tensors
from deepmnn.quant.divergence import Divergence
from deepmnn.quant.recipe import DEFAULT, RECIPES, Recipe, Rule
from deepmnn.quant.rotation import rotate
from deepmnn.quant.rounder import Nearest
from deepmnn.quant.rounding import round_to_nearest
from deepmnn.quant.search import Assignment, Choice, assignments, within_bytes, within_cost

CANDIDATES = tuple(made.name for made in FORMATS.values() if made.is_quantized)
"""The formats that a part may get."""

ATTEMPTS = 4
"""So often a model is rounded to meet a divergence, before the widest formats are taken."""

_GOOD_ENOUGH = 0.75
"""Formats that add at least this share of the divergence that they may add waste few bytes."""

_COSTS = "costs.json"
_OTHERS = next(name for name in CANDIDATES if named(name).bits == 4)
"""The recipe for what no part holds: a draft part, whose formats change no prediction."""

_SURVEY_SAMPLES = 24
"""So many tell how much calibrated rounding gains where."""

_LEAST = 0.01
_TINY = 1e-30
_MOST_BYTES = 1 << 62

_ARGUMENTS = {"kl": "target_kl", "bits_per_weight": "target_bpw", "max_bytes": "max_bytes"}
"""What fields of a budget are called by who asks for one."""

_ERRORS = 2.0
"""Standard errors of a measured divergence that must lie within the one asked for, too."""


@dataclass(frozen=True)
class Budget:
    """What a converted model may cost. Exactly one is given.

    Attributes:
        kl: mean divergence of the next token from the checkpoint's on held-out text, in nats.
        bits_per_weight: bytes of the artifact's weights, times 8, for each number of the model.
        max_bytes: bytes of the artifact's weights.

    Raises RequestError for none, several, or what is no positive number.
    """

    kl: float | None = None
    bits_per_weight: float | None = None
    max_bytes: int | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in vars(self).items() if value is not None}
        if len(given) != 1:
            raise RequestError(
                f"a budget with {' and '.join(given) or 'nothing'}",
                "one of target_kl, target_bpw and max_bytes",
            )
        for name, value in given.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not 0 < value < math.inf:
                raise RequestError(
                    argument(_ARGUMENTS[name], f" is {value!r:.40}"), "a positive number"
                )

    @property
    def name(self) -> str:
        """For the recipe that meets it."""
        if self.kl is not None:
            return f"target-kl {self.kl:g}"
        if self.bits_per_weight is not None:
            return f"target-bpw {self.bits_per_weight:g}"
        return f"max-bytes {self.max_bytes}"

    def most_bytes(self, plan: Plan) -> int:
        """What bytes, or bits, come to for a plan's model."""
        if self.max_bytes is not None:
            return self.max_bytes
        bits = self.bits_per_weight or 0.0
        return int(min(bits * plan.parameters / 8, _MOST_BYTES))


def check_bytes(base: Plan, budget: Budget) -> None:
    """Refuses what no formats can meet, before anything is read: all matrices in the narrowest one
    are planned for that. Raises RequestError.

    base: of the conversion; its formats do not matter.
    """
    if budget.kl is not None:
        return
    narrowest = CANDIDATES[-1]
    formats = {pattern: narrowest for part in parts(base.naive) for pattern in part.patterns}
    recipe = _recipe_of(budget, formats)
    least, most = plan(base.source, recipe, base.optimize_level).nbytes, budget.most_bytes(base)
    if least <= most:
        return
    bits = math.ceil(800 * least / base.parameters) / 100
    field, value = "bits_per_weight", f"{bits:.2f}"
    if budget.max_bytes is not None:
        field, value = "max_bytes", f"{least}"
    name = _ARGUMENTS[field]
    raise RequestError(
        f"a budget of {budget.name}, {most:,} bytes",
        f"at least {least:,} for this model ({bits:.2f} bits a weight), all matrices in "
        f"{narrowest}",
        Words(
            f"Give {name}={value} or more, or convert a smaller model.",
            f"Give {argument(name).shell} {value} or more, or convert a smaller model.",
        ),
    )


def _recipe_of(budget: Budget, formats: Mapping[str, str]) -> Recipe:
    """Pattern → format of the parts, and the formats of what no part holds."""
    rules = (Rule(pattern, format) for pattern, format in formats.items())
    return Recipe(budget.name, (*rules, *RECIPES[_OTHERS].rules))


def fit(
    plan: Plan,
    budget: Budget,
    samples: Sequence[I32],
    held_out: Sequence[I32],
    directory: Path,
    progress: Progress | None = None,
    observe: bool = False,
) -> Rounded:
    """Chooses formats and rounds the weights.

    Args:
        plan: of the conversion; its formats do not matter.
        budget: to meet.
        samples: token ids to round by.
        held_out: token ids to judge by.
        directory: for the state; it exists. A search that was stopped and is called again with the
            same arguments goes on where it was.
        progress: called after every step.
        observe: looks at activations, for a report.

    Raises RequestError when no formats meet the budget, with what the best ones cost, and as
    `calibrate`.
    """
    return _Fit(plan, budget, samples, held_out, directory, progress, observe).run()


class _Fit:
    """`fit`, at work."""

    def __init__(
        self,
        base: Plan,
        budget: Budget,
        samples: Sequence[I32],
        held_out: Sequence[I32],
        directory: Path,
        progress: Progress | None,
        observe: bool,
    ) -> None:
        self._observe = observe
        self._base, self._budget, self._samples = base, budget, samples
        self._directory, self._progress = directory, progress
        self._parts = parts(base.naive)
        self._sizes, self._share = _sizes(base, self._parts)
        others = plan(base.source, RECIPES[_OTHERS], base.optimize_level)
        self._draft = _draft_nbytes(others)
        self._judge = HeldOut(base, held_out, self._made("held-out"), progress)
        self._widest = self._judge.divergence(base)
        self._costs = self._measured()

    def run(self) -> Rounded:
        """What `fit` returns."""
        if self._budget.kl is not None:
            return self._within_kl(self._budget.kl)
        return self._within_bytes(self._budget.most_bytes(self._base))

    def _within_bytes(self, most: int) -> Rounded:
        """The least divergence in so many bytes."""
        choices = self._choices()
        narrowest, *_ = assignments(choices)
        limit = max(most - self._fixed(), narrowest.nbytes)
        while True:
            found = within_bytes(choices, limit)
            made = self._planned(found)
            if made.nbytes <= most:
                done = self._rounded(made, found, self._widest.mean, 1.0)
                divergence = self._judge.divergence(done.plan)
                return replace(done, divergence=divergence)
            # A fused matrix can take more bytes than its parts.
            limit = max(limit - (made.nbytes - most), narrowest.nbytes)

    def _within_kl(self, most: float) -> Rounded:
        """The fewest bytes with so much divergence, at most: where the line through what was
        measured says, between costs that were seen to be enough and too much; in the end the
        widest formats.
        """
        exact = self._widest
        tried = [(self._base, exact)]
        base, factor, best = exact.mean, 1.0, None
        spread, enough, too_much = _spread(exact), 0.0, math.inf
        for attempt in range(ATTEMPTS + 1):
            aim = most / (1 + _ERRORS * spread)
            between = math.sqrt(too_much * (enough or too_much / 4))
            found = self._least_bytes(min((aim - base) / factor, between))
            if best is None and (attempt == ATTEMPTS or self._was_tried(found, tried)):
                found = self._least_bytes(0.0)
            if (attempt == ATTEMPTS and best is not None) or self._was_tried(found, tried):
                break
            fitted = self._rounded(self._planned(found), found, base, factor)
            got = self._judge.divergence(fitted.plan)
            tried.append((fitted.plan, got))
            if got.mean + _ERRORS * got.mean_error <= most:
                if best is None or fitted.plan.nbytes < best.plan.nbytes:
                    best = replace(fitted, divergence=got)
                if got.mean - base >= _GOOD_ENOUGH * (aim - base):
                    break
                enough = max(enough, found.cost)
            else:
                too_much = min(too_much, found.cost)
            spread, base = _spread(got), min(base, got.mean)
            factor = max(got.mean - base, _LEAST * base, _TINY) / max(found.cost, _TINY)
        if best is None:
            raise _unmet(most, tried)
        return best

    def _was_tried(self, found: Assignment, tried: Sequence[tuple[Plan, Divergence]]) -> bool:
        recipe = self._recipe(found)
        return any(recipe == plan.recipe for plan, _ in tried)

    def _least_bytes(self, cost: float) -> Assignment:
        """Of so much cost at most, or the best there is."""
        choices = self._choices()
        *_, widest = assignments(choices)
        return within_cost(choices, max(cost, widest.cost))

    def _rounded(self, made: Plan, found: Assignment, base: float, factor: float) -> Rounded:
        """A plan's weights, rounded; base + factor · cost is the divergence that is expected."""
        digest = blake2b(json.dumps(made.recipe.to_json()).encode(), digest_size=8).hexdigest()
        directory = self._made(f"rounded-{digest}")
        done = rounded(made, self._samples, directory, self._progress, observe=self._observe)
        points = [
            Point(point.nbytes + self._fixed(), base + factor * point.cost)
            for point in assignments(self._choices())
        ]
        added = {
            part.patterns[0]: factor * self._cost(part, found.formats[part.patterns[0]])
            for part in self._costs
        }
        search = Search(tuple(points), Point(made.nbytes, base + factor * found.cost), added)
        return replace(done, search=search)

    def _planned(self, found: Assignment) -> Plan:
        """A conversion with these formats."""
        return plan(self._base.source, self._recipe(found), self._base.optimize_level)

    def _recipe(self, found: Assignment) -> Recipe:
        """These formats, and those of what no part holds."""
        formats = {
            pattern: found.formats[part.patterns[0]]
            for part in self._costs
            for pattern in part.patterns
        }
        return _recipe_of(self._budget, formats)

    def _choices(self) -> dict[str, list[Choice]]:
        return {
            part.patterns[0]: [
                Choice(format, self._sizes[part, format], self._cost(part, format))
                for format in CANDIDATES
            ]
            for part in self._costs
        }

    def _cost(self, part: Part, format: str) -> float:
        return self._costs[part] * squared_error(format) * self._share[part, format]

    def _fixed(self) -> int:
        """Bytes of what is no part's: vectors, routers, a draft part."""
        parts = sum(self._sizes[part, DEFAULT] for part in self._parts)
        return self._base.nbytes - parts - _draft_nbytes(self._base) + self._draft

    def _measured(self) -> dict[Part, float]:
        """What each part adds to the divergence, for a rounding error that is as large as its
        numbers: measured, or, after an interruption, read again.
        """
        path = self._directory / _COSTS
        found = self._parts
        with storage_errors(path):
            if path.is_file():
                return dict(zip(found, json.loads(path.read_text()), strict=True))
        pieces = [sample[:SAMPLE_TOKENS] for sample in self._samples[:SAMPLES]]
        with self._fresh("copies") as directory:
            made = sensitivities(self._base, pieces, directory, self._progress)
        few, base = self._samples[:_SURVEY_SAMPLES], self._base
        rounding = plan(base.source, base.recipe, base.optimize_level, keep=False)
        with self._fresh("survey") as directory:
            _, survey = calibrate(rounding, few, directory, self._progress, Nearest())
        costs = {part: made[part] * _gain(part, survey.gains) for part in found}
        written = path.with_suffix(".part")
        with storage_errors(path):
            written.write_text(json.dumps(list(costs.values())))
            written.replace(path)
        return costs

    @contextmanager
    def _fresh(self, name: str) -> Iterator[Path]:
        """An empty directory, for as long as it is needed."""
        shutil.rmtree(self._directory / name, ignore_errors=True)
        yield self._made(name)
        shutil.rmtree(self._directory / name, ignore_errors=True)

    def _made(self, name: str) -> Path:
        directory = self._directory / name
        with storage_errors(directory):
            directory.mkdir(exist_ok=True)
        return directory


def _draft_nbytes(plan: Plan) -> int:
    """Bytes of the draft part's own weights."""
    return sum(weight.nbytes for weight in plan.draft_weights)


def _spread(found: Divergence) -> float:
    """The standard error of a mean, relative to it."""
    return found.mean_error / found.mean if found.mean > 0 else 0.0


def _gain(part: Part, gains: Mapping[str, float]) -> float:
    """Of a part's matrices that a survey reached: the mean; without any, 1."""
    found = [gains[name] for name in sorted(part.tensors) if name in gains]
    return float(np.mean(found)) if found else 1.0


def _sizes(
    base: Plan, found: Iterable[Part]
) -> tuple[dict[tuple[Part, str], int], dict[tuple[Part, str], float]]:
    """Of each part in each format, as the plan's graph has it (MLA's up-projection three times,
    say): its bytes, and which share of its numbers is rounded; the rest keep their codes.
    """
    owners = {name: part for part in found for name in part.tensors}
    nbytes, rounded, numbers = (Counter[tuple[Part, str]]() for _ in range(3))
    for format in CANDIDATES:
        uniform = Recipe(format, (Rule("*", format),))
        graph, _ = optimize(
            base.naive,
            base.optimize_level,
            disabled=frozenset({"fuse_linears"}),
            choose_formats=partial(choose_formats, recipe=uniform, source=base.source),
        )
        for weight in graph.weights.values():
            names = [tensor.name for tensor in tensors(weight.expr)]
            if names and names[0] in owners:
                place = owners[names[0]], format
                nbytes[place] += weight.nbytes
                numbers[place] += math.prod(weight.shape)
                rounded[place] += math.prod(weight.shape) * (not named(weight.format).is_kept)
    return nbytes, {place: rounded[place] / numbers[place] for place in numbers}


@cache
def squared_error(format: str) -> float:
    """Of rounding numbers of a normal distribution, relative to their square."""
    w = np.random.default_rng(0).standard_normal((64, 4 * PANEL_COLS), np.float32)
    error = rotate(w) - round_to_nearest(w, format).values()
    return float(np.mean(error * error))


def _unmet(most: float, tried: Sequence[tuple[Plan, Divergence]]) -> RequestError:
    """With what was reached, as a table."""
    rows = [
        f"    {found.mean:.4f} ± {found.mean_error:.4f} with {made.nbytes:,} bytes"
        for made, found in tried
    ]
    return RequestError(
        argument("target_kl", f" {most:g} is not met on held-out text"),
        "what was reached:\n" + "\n".join(rows),
        "Ask for a larger divergence, or store the weights as bf16.",
    )
