"""deepmnn and its peers with less memory than the model: bench/README.md says how to run it."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from bench.memory.engines import DEFAULT, ENGINES, Engine, with_read_ahead
from bench.memory.group import GroupError
from bench.memory.prompt import read_prompt
from bench.memory.read_ahead import USUAL_KIB, read_ahead
from bench.memory.report import save
from bench.memory.rounds import Found, Plan, limit_name, run
from bench.peers.__main__ import BUSY
from bench.peers.child import ChildError, Peer
from bench.peers.host import Host
from bench.peers.limits import Costs
from bench.peers.models import Models, find_shapes

from deepmnn.cli.console import out as console
from deepmnn.errors import DeepmnnError, RequestError

BUILDERS = {"deepmnn": "bench.serve.served_model", "gguf": "bench.serve.served_gguf"}
PAGE = os.sysconf("SC_PAGE_SIZE")
SOURCES = ("llama_cpp", "ik_llama", "bigmoe")


def main(
    limits: Annotated[str, typer.Option(help="Comma-separated.")] = "2GiB,3.2GiB,4GiB,6GiB",
    engines: Annotated[str, typer.Option(help="Names, in this order.")] = DEFAULT,
    model: Annotated[
        list[str] | None,
        typer.Option(help="deepmnn=DIRECTORY or gguf=FILE; default: random ones are built."),
    ] = None,
    shape: Annotated[str, typer.Option(help="Of random models: a name or config.json.")] = (
        "deepseek-v2-lite"
    ),
    text: Annotated[
        Path | None, typer.Option(help="The prompt is its beginning; default: random words.")
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Of the prompt.")] = 512,
    steps: Annotated[int, typer.Option(min=1, help="After the prompt.")] = 256,
    greedy: Annotated[
        bool, typer.Option(help="Steps run what the engine chose, not the text's next tokens.")
    ] = False,
    repeat: Annotated[int, typer.Option(min=1, help="Rounds.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="Worker threads.")] = 2,
    seed: Annotated[int, typer.Option(help="Other random words.")] = 0,
    compare: Annotated[bool, typer.Option(help="Logits with those without a limit.")] = True,
    out: Annotated[Path, typer.Option(help="Directory of the report.")] = Path("build/memory"),
    work: Annotated[Path, typer.Option(help="Directory of models and logs.")] = Path(
        "build/memory/work"
    ),
    source: Annotated[
        list[str] | None, typer.Option(help=f"NAME=CHECKOUT, built; of {', '.join(SOURCES)}.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="ENGINE=WORDS for its command line.")
    ] = None,
    timeout: Annotated[float, typer.Option(help="Most seconds for one run.")] = 1800,
    stepping: Annotated[
        float, typer.Option(help="Seconds of steps, after which a run ends with those it came to.")
    ] = 1800,
    usual: Annotated[
        int, typer.Option("--read-ahead", help="KiB: mapped engines run with this, too; 0: not.")
    ] = USUAL_KIB,
) -> None:
    """Run every engine under every limit in turn; writes memory.md and memory.json."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the running engine, too
    try:
        chosen = _engines(engines)
        for folder in (out, work):
            folder.mkdir(parents=True, exist_ok=True)
        models = _models(_pairs(model, "model", tuple(BUILDERS)), chosen, shape, work, timeout)
        prompt = read_prompt(models["deepmnn"], text, tokens, steps, seed)
        sources = {name: Path(path) for name, path in _pairs(source, "source", SOURCES).items()}
        names = tuple(engine.name for engine in ENGINES)
        extra = {k: shlex.split(v) for k, v in _pairs(option, "option", names).items()}
        if usual and "gguf" in models:
            chosen = with_read_ahead(chosen, read_ahead(models["gguf"]), usual)
            extra |= {each.name: extra[each.base] for each in chosen if each.base in extra}
        plan = Plan(
            chosen,
            _limits(limits),
            models,
            {name: path.resolve() for name, path in sources.items()},
            extra,
            prompt,
            steps,
            greedy,
            threads,
            repeat,
            compare,
            sys.executable,
            work.resolve(),
            timeout,
            stepping,
        )
        measure(plan, out)
    except (DeepmnnError, ChildError, GroupError) as error:
        console.print(str(error), style="red", markup=False)
        raise typer.Exit(1) from None


def measure(plan: Plan, out: Path) -> None:
    """Runs the plan, and writes the report after each run. Raises GroupError."""
    host, busy = Host.now(), os.getloadavg()[0]
    if busy > BUSY:
        console.print(f"this machine is busy (load average {busy:.2f}): the figures will be low")
    facts = {
        "date": host.date,
        "processor": f"{host.processor} ({', '.join(host.features)})",
        "cores": f"{host.cores}, hardware threads: {host.hardware_threads}",
        "memory": f"{host.memory_nbytes / 1e9:.1f} GB",
        "system": host.system,
        "models": ", ".join(f"{name} {_gb(path)}" for name, path in plan.models.items()),
        "prompt": f"{len(plan.prompt.ids)} tokens, then {plan.steps} steps, {_kind(plan)}",
        "limits": ", ".join(map(limit_name, plan.limits)),
        "read-ahead of mapped files": _read_ahead(plan.models),
        "most time": f"{plan.timeout:.0f} s for a run, {plan.stepping:.0f} s for its steps",
        "threads": str(plan.threads),
        "rounds": str(plan.repeat),
        "load average before": f"{busy:.2f}",
        "made by": "`python -m bench.memory`; bench/README.md says how to run it",
    }
    versions = {e.name: e.version(plan.sources.get(e.source)) for e in plan.engines}
    run(plan, Found(versions), console.print, lambda found: save(out, plan, found, facts))
    console.print(f"{out / 'memory.md'}")


def _read_ahead(models: dict[str, Path]) -> str:
    """The kernel's setting for the models' disk."""
    kib = read_ahead(next(iter(models.values())))
    return "unknown" if kib is None else f"{kib} KiB, where an engine's title tells no other"


def _kind(plan: Plan) -> str:
    words = "random words" if plan.prompt.random else "text"
    return f"{words}; steps are greedy" if plan.greedy else f"{words}, in the steps too"


def _gb(path: Path) -> str:
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    return f"{sum(each.stat().st_size for each in files) / 1e9:.2f} GB"


def _engines(names: str) -> list[Engine]:
    known = {engine.name: engine for engine in ENGINES}
    wanted = names.split(",")
    for name in wanted:
        if name not in known:
            raise RequestError(f"the engine {name!r:.80}", f"some of {', '.join(known)}")
    return [known[name] for name in wanted]


def _limits(text: str) -> list[int]:
    try:
        wanted = [float(word.removesuffix("GiB")) * (1 << 30) for word in text.split(",")]
        found = [int(nbytes) // PAGE * PAGE for nbytes in wanted]
    except ValueError:
        found = []
    if not found or min(found) <= 0:
        raise RequestError(f"the limits {text!r:.80}", "sizes like 2GiB,3.2GiB")
    return found


def _pairs(given: Sequence[str] | None, flag: str, names: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE, by name. Raises RequestError."""
    pairs = {}
    for text in given or ():
        name, _, value = text.partition("=")
        if name not in names or not value:
            raise RequestError(f"--{flag} {text!r:.200}", f"NAME=VALUE, of {', '.join(names)}")
        pairs[name] = value
    return pairs


def _models(
    given: dict[str, str], engines: Sequence[Engine], shape: str, work: Path, timeout: float
) -> dict[str, Path]:
    """Those given; others are built with random weights. deepmnn's is needed for its tokenizer."""
    found = {name: Path(path).resolve() for name, path in given.items()}
    for name, path in found.items():
        if not path.exists():
            raise RequestError(f"--model {name}={path}", "a model")
    wanted = [n for n in ("deepmnn", *(e.model for e in engines)) if n not in found]
    if wanted:
        made, models = (
            find_shapes(shape)[0],
            Models(work.resolve(), sys.executable, timeout, console.print),
        )
        nbytes = int(Costs.of(made.config).weights_nbytes * 1.15)
        for name in dict.fromkeys(wanted):
            found[name] = models.build(Peer(BUILDERS[name], sys.executable), made, nbytes)
    return found


if __name__ == "__main__":
    typer.run(main)
