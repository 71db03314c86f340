"""deepmnn info: what is in a model, converted or not."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from deepmnn.cli import options
from deepmnn.cli.console import count, err, file_size, out, table
from deepmnn.cli.planned import print_kinds, print_plan
from deepmnn.errors import RequestError

if TYPE_CHECKING:
    from deepmnn.artifact.manifest import SharedRecord
    from deepmnn.artifact.reader import Artifact
    from deepmnn.graph.draft import Parts
    from deepmnn.graph.ir import Graph


def info(
    name: Annotated[
        str,
        Argument(
            metavar="MODEL",
            help="A converted model, a checkpoint, a config.json, or OWNER/NAME on the hub.",
        ),
    ],
    program: Annotated[bool, Option("--program", help="Print the lowered program.")] = False,
    verify: Annotated[bool, Option("--verify", help="Check every checksum.")] = False,
    quant: Annotated[
        str | None, Option(help="Of a checkpoint: how to convert it, as for convert; default: w8.")
    ] = None,
) -> None:
    """Describe a model: size, graph, memory."""
    from deepmnn.artifact.manifest import MANIFEST
    from deepmnn.artifact.reader import Artifact
    from deepmnn.conversion.kept import described
    from deepmnn.quant.recipe import DEFAULT

    with options.preparing() as progress:  # a GGUF file of the hub is downloaded
        path = described(name, progress)
    if (path / MANIFEST).is_file():
        if quant is not None:
            raise RequestError(
                f"{path} is converted already, and --quant {quant!r:.80} given", "a checkpoint"
            )
        artifact = Artifact.open(path, verify=True if verify else None)
        if program:
            _print_program(path)
            return
        _print_artifact(artifact)
        if verify:
            err.say("every checksum is right", "green")
        return
    if program or verify:
        raise RequestError(
            f"{path} is not a converted model", f"a directory with {MANIFEST}", "Convert it first."
        )
    _print_checkpoint(path, quant or DEFAULT)


def _print_program(path: Path) -> None:
    from deepmnn.artifact.manifest import PROGRAM
    from deepmnn.backends.cpu.program import format_program, read_program

    text = format_program(read_program((path / PROGRAM).read_bytes()))
    out.print(text, soft_wrap=True)


def _print_artifact(artifact: Artifact) -> None:
    from deepmnn.conversion.report.stored import as_stored, by_format, stored
    from deepmnn.graph.tensors import tensor_shapes
    from deepmnn.models import build, build_parts

    parts, manifest = artifact.parts(), artifact.manifest
    config = artifact.config
    shapes = build_parts(config).shapes if parts.draft else tensor_shapes(build(config))
    _print_head(config, parts, sum(map(math.prod, shapes.values())))
    weights = parts.weights.values()
    formats = as_stored(manifest["quant"], by_format(weights))
    out.say(
        f"  converted       {formats}, optimize level {manifest['optimize_level']}, "
        f"{manifest['nodes_level_0']} -> {manifest['nodes']} nodes, "
        f"{len(manifest['shards'])} weight files"
    )
    if "shared" in manifest:
        out.say(f"  equal blocks    stored once, {_saved(manifest['shared'])}")
    out.say(f"  {_memory(artifact)}")
    print_kinds(stored(weights))
    _print_levels(config)


def _memory(artifact: Artifact) -> str:
    """How it would run on this machine, as it is now."""
    from deepmnn.api.opened import fitted, sound_tokenizer
    from deepmnn.api.options import LoadOptions

    try:
        tokenizer = sound_tokenizer(artifact.text_files)
        return fitted(artifact, LoadOptions(), tokenizer).line()
    except RequestError as error:
        return error.shell


def _saved(shared: SharedRecord) -> str:
    """1.2 GB saved (3 experts, 64.0 MB of zeros)."""
    parts = [
        f"{number} {what if number > 1 else what.removesuffix('s')}"
        for number, what in ((shared["experts"], "experts"), (shared["weights"], "other weights"))
        if number
    ]
    if shared["zeros_nbytes"]:
        parts.append(f"{file_size(shared['zeros_nbytes'])} of zeros")
    return f"{file_size(shared['nbytes'])} saved" + (f" ({', '.join(parts)})" if parts else "")


def _print_checkpoint(path: Path, quant: str) -> None:
    """What converting it would give; config.json alone is enough."""
    from deepmnn.conversion.convert import plan_conversion
    from deepmnn.graph.draft import Parts
    from deepmnn.quant.recipe_file import read_recipe
    from deepmnn.source.open import has_weights

    plan = plan_conversion(path, read_recipe(quant), random_weights=not has_weights(path))
    config = plan.source.config
    _print_head(config, Parts(plan.graph, plan.draft), plan.parameters)
    if plan.source.nbytes():
        out.print(f"  checkpoint      {file_size(plan.source.nbytes())}")
    out.print("as deepmnn convert would write it:", style="bold")
    print_plan(plan)
    _print_levels(config)


def _print_head(config: dict[str, Any], parts: Parts, parameters: int) -> None:
    from deepmnn.graph.caches import kept_width
    from deepmnn.models import read_config

    graph = parts.main
    width = kept_width(graph.caches)
    named = config.get("architectures")
    out.say(str(named[0] if isinstance(named, list) and named else graph.name), "bold")
    out.say(f"  model type      {config['model_type']}")
    out.print(f"  parameters      {count(parameters)}")
    if parts.draft is not None:
        out.say(f"  draft part      {_drafts(parts, parts.draft)}")
    out.print(f"  context length  {read_config(config).context_length} tokens")
    out.print(f"  KV cache        {file_size(4 * width)} per token (f32), half of it in bf16")


def _drafts(parts: Parts, draft: Graph) -> str:
    """1.1M parameters of its own, 1.3 MB, 384 B of KV cache per token (f32)."""
    from deepmnn.graph.caches import kept_width

    own = [weight for name, weight in draft.weights.items() if name not in parts.main.weights]
    numbers = sum(math.prod(weight.shape) for weight in own)
    nbytes, width = sum(weight.nbytes for weight in own), kept_width(draft.caches)
    return (
        f"{count(numbers)} parameters of its own, {file_size(nbytes)}, "
        f"{file_size(4 * width)} of KV cache per token (f32)"
    )


def _print_levels(config: dict[str, Any]) -> None:
    from deepmnn.measure.nodes import REPORT_TOKENS, node_report, nodes_saved

    levels = node_report(config)
    ops = sorted({op for level in levels for op in level.by_op})
    made = table("nodes", "op", *(f"level {level.level}" for level in levels))
    for op in ops:
        made.add_row(op, *(str(level.by_op.get(op, "")) for level in levels))
    made.add_section()
    made.add_row("all", *(str(level.nodes) for level in levels))
    out.print(made)
    out.print(f"{nodes_saved(levels):.1%} fewer nodes at level {levels[-1].level}")
    title = f"peak activations, {REPORT_TOKENS} tokens"
    memory = table(title, "level", "nothing reused", "memory reused")
    for level in levels:
        sizes = (level.activation_nbytes, level.planned_nbytes)
        memory.add_row(str(level.level), *map(file_size, sizes))
    out.print(memory)
    factor = levels[0].planned_nbytes / levels[-1].planned_nbytes
    out.print(f"{factor:.1f} x less at level {levels[-1].level} than at 0, memory reused at both")
