"""The rounds of measurements: each engine in turn, never two at the same time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bench.peers.child import ChildError, Peer, call
from bench.peers.engine import Case, Cold, Measured, as_fields, engine
from bench.peers.limits import Machine
from bench.peers.models import Models, Shape

MARGIN = 1.15
"""Size on disk of a 4-bit model, as a multiple of the weights that its limit counts."""


@dataclass(frozen=True)
class Plan:
    """What to measure. timeout: seconds that one engine may take for one shape.

    isa: the instruction set that all engines are limited to, "avx2"; "" for each one's best.
    """

    shapes: Sequence[Shape]
    peers: Sequence[Peer]
    cases: Sequence[Case]
    threads: int
    repeat: int
    timeout: float
    python: str
    isa: str = ""


@dataclass
class Found:
    """Everything measured so far.

    versions: of each engine; None: it is missing. rounds: shape → engine → what each round
    measured, or why it failed.
    """

    versions: dict[str, str | None] = field(default_factory=dict)
    machines: list[Machine] = field(default_factory=list)
    rounds: dict[str, dict[str, list[Measured | str]]] = field(default_factory=dict)


Say = Callable[[str], None]
Save = Callable[[Found], None]


def find_versions(peers: Sequence[Peer], say: Say) -> dict[str, str | None]:
    """The version of each engine; None where it is missing or does not start."""
    versions: dict[str, str | None] = {}
    for peer in peers:
        try:
            versions[peer.name] = call(peer, "version", {}, 300, None)
        except ChildError as error:
            say(f"{peer.name}: {error}")
            versions[peer.name] = None
        say(f"{engine(peer.name).TITLE}: {versions[peer.name] or 'missing, see bench/README.md'}")
    return versions


def run(plan: Plan, models: Models, sizes: Mapping[str, int], say: Say, save: Save) -> Found:
    """Builds the models that are missing, then measures; saves after every result.

    sizes: bytes of each shape's weights.
    """
    found = Found(find_versions(plan.peers, say))
    built = _build(plan, models, sizes, found, say)
    logs = models.work / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    for number in range(plan.repeat):
        for shape in plan.shapes:
            found.machines.append(_machine(plan))
            # odd rounds in order, even ones in reverse: a machine that slows down favours no engine
            for peer in plan.peers[:: -1 if number % 2 else 1]:
                if model := built.get((shape.name, peer.name)):
                    say(f"round {number + 1} of {plan.repeat}, {shape.name}: {peer.name}")
                    log = logs / f"{shape.name}-{peer.name}.log"
                    result = _measure(plan, shape, peer, model, number, log)
                    if isinstance(result, str):
                        say(f"  {result}")
                    found.rounds[shape.name].setdefault(peer.name, []).append(result)
                    save(found)
    return found


def _build(
    plan: Plan, models: Models, sizes: Mapping[str, int], found: Found, say: Say
) -> dict[tuple[str, str], Path]:
    """(shape, engine) → model; an engine without a model gets the reason as its result."""
    built = {}
    exceeding = _exceeding(plan, found)
    for shape in plan.shapes:
        results = found.rounds.setdefault(shape.name, {})
        for peer in plan.peers:
            if found.versions[peer.name] is None:
                continue
            reason = engine(peer.name).refuses(shape.config) or exceeding.get(peer.name, "")
            if reason:
                say(f"{shape.name}: not {peer.name}: {reason}")
                results[peer.name] = [reason]
                continue
            try:
                size = int(MARGIN * sizes[shape.name])
                built[shape.name, peer.name] = models.of(peer, shape, size)
            except ChildError as error:
                say(f"{peer.name}: {error}")
                results[peer.name] = [f"no model: {error}"]
    return built


def _exceeding(plan: Plan, found: Found) -> dict[str, str]:
    """Engine → why it cannot be limited to the plan's instruction set."""
    reasons: dict[str, str] = {}
    for peer in plan.peers if plan.isa else ():
        if found.versions[peer.name] is not None:
            try:
                reasons[peer.name] = call(peer, "exceeds", {"isa": plan.isa}, 300, None)
            except ChildError as error:
                reasons[peer.name] = str(error)
    return reasons


def _machine(plan: Plan) -> Machine:
    """This machine's limits now."""
    own = Peer("limits", plan.python)
    return Machine(**call(own, "machine", {"threads": plan.threads}, 300, None))


def _measure(
    plan: Plan, shape: Shape, peer: Peer, model: Path, number: int, log: Path
) -> Measured | str:
    request = {
        "model": str(model),
        "threads": plan.threads,
        "vocab_size": shape.config["vocab_size"],
        "seed": number,
        "cases": as_fields(plan.cases),
    }
    try:
        measured = Measured.of(call(peer, "measure", request, plan.timeout, log))
    except ChildError as error:
        return str(error)
    try:
        log = log.with_name(f"{log.stem}-cold.log")
        measured.cold = Cold(**call(peer, "cold", request, plan.timeout, log))
    except ChildError as error:
        measured.cold = Cold(missing=str(error))
    return measured


def raw(found: Found) -> dict[str, object]:
    """For JSON."""
    rounds = {
        shape: {
            name: [r if isinstance(r, str) else asdict(r) for r in results]
            for name, results in engines.items()
        }
        for shape, engines in found.rounds.items()
    }
    machines = [asdict(machine) for machine in found.machines]
    return {"versions": found.versions, "machines": machines, "rounds": rounds}
