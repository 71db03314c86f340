"""One dense model exported to MNN twice: by deepmnn, and by MNN's own exporter, at equal bits.

    python bench/mnn_exporter.py --mnn-source MNN [--checkpoint DIR] [--bits 4,8] [--json FILE]

MNN is a checkout of alibaba/MNN at the installed wheel's version. Without a checkpoint a small
dense model is trained first (bench/small_dense.py). Four things are compared:

- bytes on disk, and the weight file's bits for each weight of a matrix (the embedding lies in a
  file of its own: 8 bits in ours, bf16 in theirs, their default);
- KL divergence of the float32 model's next-token distribution from the export's, in nats, over
  held-out problems: "weights" with exact arithmetic (memory normal), where only the stored weights
  differ, and "phone" as phones run it (memory low: activations in int8);
- how often both agree on the most likely token;
- speed as phones run it: all exports are loaded and measured in turn; the median of the rounds.

MNN's exporter needs packages of its own (`pip install MNN onnx onnxscript torch transformers peft
sentencepiece yaspin`): --exporter-python names an interpreter that has them. Its converter module
would install a logging client and report usage; here the converter itself replaces it.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer

sys.path.insert(0, str(Path(__file__).parent))

from small_dense import STEPS, held_out_texts, train, write

F32 = NDArray[np.float32]
Mode = dict[str, Any]

EXPORTER = Path("transformers", "llm", "export")
HEADER = Path("include", "MNN", "MNNDefine.h")
EXACT: Mode = {"memory": "normal", "precision": "high"}
PHONE: Mode = {"memory": "low", "precision": "low"}
RANDOM_TEXTS, RANDOM_TOKENS = 8, 64

WITHOUT_LOGGING = """
import sys, types
tools, converter = types.ModuleType("MNN.tools"), types.ModuleType("MNN.tools.mnnconvert")
def main():
    import _tools
    _tools.mnnconvert(["mnnconvert", *sys.argv[1:]])
converter.main, tools.mnnconvert, tools.__path__ = main, converter, []
sys.modules |= {"MNN.tools": tools, "MNN.tools.mnnconvert": converter}
sys.path.insert(0, sys.argv.pop(1))
import llmexport
llmexport.main()
"""
"""Runs llmexport.py of the folder given first, with the arguments that follow."""

console = Console(width=160)


@dataclass
class Row:
    """One export. Sizes in bytes; divergences in nats; agreement 0 to 1; tokens per second."""

    name: str
    folder: Path
    weights: int = 0
    graph: int = 0
    embeddings: int = 0
    bits_per_weight: float = 0.0
    kl_weights: float | None = None
    kl_phone: float | None = None
    agreement: float | None = None
    prefill: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)


# ---------------------------------------------------------------- exports


def exporter_folder(mnn_source: Path) -> Path:
    """The folder of llmexport.py; exits if it is missing or not of the wheel's version."""
    folder, header = mnn_source / EXPORTER, mnn_source / HEADER
    for path in (folder / "llmexport.py", header):
        if not path.is_file():
            raise SystemExit(f"missing: {path}; --mnn-source is a checkout of MNN")
    numbers = re.findall(r"define MNN_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)", header.read_text())
    if ".".join(numbers) != (wheel := version("MNN")):
        raise SystemExit(f"{mnn_source} is MNN {'.'.join(numbers)}; expected the wheel's, {wheel}")
    return folder.resolve()


def export_theirs(
    python: str, source: Path, checkpoint: Path, out: Path, arguments: Sequence[str]
) -> None:
    """Runs MNN's exporter; exits with the end of its output if it fails.

    Its paths are relative and plain: it picks another exporter for a path that contains "bge".
    """
    out.mkdir(parents=True)
    (out / "checkpoint").symlink_to(checkpoint.resolve(), target_is_directory=True)
    command = [python, "-c", WITHOUT_LOGGING, str(source), "--path", "checkpoint", "--export"]
    command += ["mnn", "--dst_path", "model", "--mnnconvert", "", *arguments]
    offline = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, cwd=out, env=offline, capture_output=True, text=True, check=False
    )
    if not (out / "model" / "config.json").is_file():
        raise SystemExit(f"MNN's exporter failed:\n{(done.stdout + done.stderr)[-2000:]}")


def export_ours(checkpoint: Path, out: Path, bits: int) -> None:
    """Converts and exports as `deepmnn convert` and `deepmnn export` do."""
    from deepmnn.conversion.convert import convert
    from deepmnn.exporters.mnn.export import export

    convert(checkpoint, out / "artifact", quant=f"w{bits}")
    export(out / "artifact", out / "model")


def export_all(
    python: str, source: Path, checkpoint: Path, work: Path, bits: Sequence[int], extra: bool
) -> list[Row]:
    """Both exporters at each number of bits, blocks of 64 columns.

    extra: MNN's other recipes that need no calibration data too.
    """
    rows = []
    for bit in bits:
        export_ours(checkpoint, work / f"deepmnn-{bit}", bit)
        rows.append(Row(f"deepmnn w{bit}", work / f"deepmnn-{bit}" / "model"))
        for flag in ("", "--sym", "--hqq") if extra else ("",):
            out = work / f"mnn-{bit}{flag}"
            arguments = ["--quant_bit", str(bit), "--quant_block", "64", *flag.split()]
            export_theirs(python, source, checkpoint, out, arguments)
            rows.append(Row(f"MNN {bit} bits {flag}".strip(), out / "model"))
    return rows


def measure_sizes(row: Row, matrix_weights: int) -> None:
    """Fills in bytes and bits for each of the weights of the linear maps."""
    config = json.loads((row.folder / "config.json").read_text())
    row.weights = (row.folder / config["llm_weight"]).stat().st_size
    row.graph = (row.folder / config["llm_model"]).stat().st_size
    row.embeddings = sum(path.stat().st_size for path in row.folder.glob("*embeddings_*.bin"))
    row.bits_per_weight = 8 * row.weights / matrix_weights


# ---------------------------------------------------------------- the float model


def token_texts(checkpoint: Path, vocab_size: int, count: int) -> list[list[int]]:
    """Token ids of held-out problems, or random ones where the checkpoint has no tokenizer."""
    path = checkpoint / "tokenizer.json"
    if path.is_file():
        tokenizer = Tokenizer.from_file(str(path))
        return [tokenizer.encode(t, add_special_tokens=False).ids for t in held_out_texts(count)]
    rng = random.Random(0)
    return [rng.choices(range(vocab_size), k=RANDOM_TOKENS) for _ in range(RANDOM_TEXTS)]


def float_logits(checkpoint: Path, texts: Sequence[Sequence[int]]) -> list[F32]:
    """transformers' logits in float32, [tokens, vocab] for each text."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    with torch.inference_mode():
        return [model(torch.tensor([list(ids)])).logits[0].numpy() for ids in texts]


def dimensions(checkpoint: Path) -> tuple[int, int]:
    """Size of the vocabulary; weights of all linear maps, the output's too, the embedding's not."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(checkpoint)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    linears = (m for m in model.modules() if isinstance(m, torch.nn.Linear))
    return config.vocab_size, sum(linear.weight.numel() for linear in linears)


# ---------------------------------------------------------------- the exports, run


def load(folder: Path, mode: Mode, threads: int, all_logits: bool) -> Any:
    """An MNN Llm of a folder; nothing in the folder is touched."""
    from deepmnn.backends.mnn.wheel import captured, runtime

    settings = {"backend_type": "cpu", "thread_num": threads, "use_mmap": False}
    with captured():  # it prints a greeting
        llm = runtime().llm.create(str(folder / "config.json"), False)
        llm.set_config(json.dumps(settings | mode | {"all_logits": all_logits}))
        llm.load()
    return llm


def logits(llm: Any, ids: Sequence[int]) -> F32:
    """[tokens, vocab] of a text read from its start; the last row only without all_logits."""
    llm.reset()
    found = llm.forward(list(ids))
    return np.array(found.read(), np.float32).reshape(-1, found.shape[-1])


def kl_divergence(reference: F32, other: F32) -> float:
    """Mean of KL(reference || other) over rows of logits, in nats."""
    log_p, log_q = _log_softmax(reference), _log_softmax(other)
    return float((np.exp(log_p) * (log_p - log_q)).sum(-1).mean())


def _log_softmax(rows: F32) -> NDArray[np.float64]:
    shifted = rows.astype(np.float64) - rows.max(-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def measure_quality(row: Row, texts: Sequence[Sequence[int]], reference: Sequence[F32]) -> None:
    """Fills in the divergences and the agreement (of the phone's arithmetic)."""
    expected = np.concatenate(reference)
    found = _all_logits(row.folder, EXACT, texts)
    row.kl_weights = kl_divergence(expected, found)
    found = _all_logits(row.folder, PHONE, texts)
    row.kl_phone = kl_divergence(expected, found)
    row.agreement = float((found.argmax(-1) == expected.argmax(-1)).mean())


def _all_logits(folder: Path, mode: Mode, texts: Sequence[Sequence[int]]) -> F32:
    llm = load(folder, mode, threads=1, all_logits=True)
    return np.concatenate([logits(llm, ids) for ids in texts])


def measure_speed(
    rows: Sequence[Row], vocab_size: int, prompt: int, new: int, threads: int, repeat: int
) -> None:
    """Fills in tokens per second of every round; a first round warms up."""
    rng = random.Random(0)
    prompt_ids = rng.choices(range(vocab_size), k=prompt)
    new_ids = rng.choices(range(vocab_size), k=new)
    loaded = [(row, load(row.folder, PHONE, threads, all_logits=False)) for row in rows]
    for round_number in range(repeat + 1):
        for row, llm in loaded if round_number % 2 else loaded[::-1]:
            prefill, decode = _times(llm, prompt_ids, new_ids)
            if round_number:
                row.prefill.append(prompt / prefill)
                row.decode.append(new / decode)


def _times(llm: Any, prompt_ids: Sequence[int], new_ids: Sequence[int]) -> tuple[float, float]:
    """Seconds of a prefill, and of a decode after it."""
    llm.reset()
    began = perf_counter()
    llm.forward(list(prompt_ids))
    prompted = perf_counter()
    for token in new_ids:
        llm.forward([token])
    return prompted - began, perf_counter() - prompted


# ---------------------------------------------------------------- the program


def _table(rows: Sequence[Row]) -> Table:
    table = Table("", "weights MB", "graph kB", "embeddings MB", "bits/weight", "KL weights")
    for name in ("KL phone", "same top token", "prefill tok/s", "decode tok/s"):
        table.add_column(name)
    for row in rows:
        sizes = (row.weights / 1e6, row.graph / 1e3, row.embeddings / 1e6)
        cells = [row.name, *(f"{size:.2f}" for size in sizes), f"{row.bits_per_weight:.3f}"]
        cells += [_cell(row.kl_weights, ".3e"), _cell(row.kl_phone, ".3e")]
        cells += [_cell(row.agreement, ".2%"), _speed(row.prefill), _speed(row.decode)]
        table.add_row(*cells)
    return table


def _cell(value: float | None, spec: str) -> str:
    return "" if value is None else format(value, spec)


def _speed(rates: Sequence[float]) -> str:
    return f"{median(rates):.0f} ({min(rates):.0f}–{max(rates):.0f})" if rates else ""


def report(rows: Sequence[Row], settings: Mapping[str, object]) -> dict[str, object]:
    """The content of the JSON file."""
    from deepmnn import __version__

    about = {"deepmnn": __version__, "mnn": version("MNN"), **settings}
    return about | {"rows": [asdict(row) | {"folder": row.folder.parent.name} for row in rows]}


def main(
    mnn_source: Annotated[Path, typer.Option(help="A checkout of MNN.")],
    checkpoint: Annotated[Path | None, typer.Option(help="A dense checkpoint.")] = None,
    steps: Annotated[int, typer.Option(help="Training steps, without a checkpoint.")] = STEPS,
    bits: Annotated[str, typer.Option(help="Comma-separated: 4, 8.")] = "4,8",
    extra: Annotated[bool, typer.Option(help="Add MNN's --sym and --hqq.")] = False,
    exporter_python: Annotated[
        str, typer.Option(help="Interpreter of MNN's exporter.")
    ] = sys.executable,
    texts: Annotated[int, typer.Option(help="Held-out problems; 0: no divergence.")] = 48,
    repeat: Annotated[int, typer.Option(help="Timed rounds; 0: no timing.")] = 5,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Tokens to prefill.")] = 256,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to decode.")] = 64,
    threads: Annotated[int, typer.Option(min=1, help="Worker threads.")] = 2,
    work: Annotated[Path | None, typer.Option(help="Directory that keeps the exports.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the figures.")] = None,
) -> None:
    """Export a dense model twice and compare."""
    source = exporter_folder(mnn_source)
    wanted = [int(number) for number in bits.split(",")]
    with nullcontext(work) if work else tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        if checkpoint is None:
            checkpoint = place / "small-dense"
            write(train(steps), checkpoint)
        rows = export_all(exporter_python, source, checkpoint, place, wanted, extra)
        vocab_size, matrix_weights = dimensions(checkpoint)
        for row in rows:
            measure_sizes(row, matrix_weights)
        if texts:
            ids = token_texts(checkpoint, vocab_size, texts)
            reference = float_logits(checkpoint, ids)
            for row in rows:
                measure_quality(row, ids, reference)
        if repeat:
            measure_speed(rows, vocab_size, prompt_tokens, new_tokens, threads, repeat)
    console.print(_table(rows))
    if json_file is not None:
        counts = {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "threads": threads}
        json_file.write_text(json.dumps(report(rows, counts), indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
