"""The flags: those of MNNConvert that make sense here, with its spelling, and ours."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from deepmnn import __version__
from deepmnn.errors import RequestError
from deepmnn.exporters.mnn.weights import BLOCK_SIZES
from deepmnn.text.samples import COUNT

FRAMEWORKS = ("TORCH", "SAFETENSORS", "HF")
BITS = (0, 8, 4)
"""Of --weightQuantBits; 0: floats."""

QUANTIZE_MODES = {"NONE": 0, "WEIGHT_INT8": 8, "W8": 8, "WEIGHT_INT4": 4, "W4": 4}
"""--quantizeMode → --weightQuantBits."""

FULL = "FULL_QUANTIZE"
"""The mode that runs samples whatever the bits, and checks the result."""

REFUSED = {
    "weightQuantAsymmetric": "weights are quantised symmetrically: leave it out",
    "hqq": "weights are quantised symmetrically with the least squared error: leave it out",
    "weightQuantScaleBit": "leave it out",
    "splitBlockQuant": "leave it out: --weightQuantBlock works on every matrix",
    "compressionParamsFile": "use --weightQuantBits and --weightQuantBlock",
    "optimizePrefer": "use --optimizeLevel 0 to 3",
    "transformerFuse": "leave it out: attention and experts are always one op each",
    "transformerFuseC4": "leave it out",
    "saveExternalData": "leave it out: the weights always lie in a file of their own",
    "allowCustomOp": "leave it out: the model is made of MNN's own ops",
    "customOpLibs": "leave it out: the model is made of MNN's own ops",
    "batch": "leave it out: MNN's LLM runtime runs one sequence",
    "saveStaticModel": "leave it out: the model takes prompts of any length",
    "inputConfigFile": "leave it out: the model takes prompts of any length",
    "keepInputFormat": "leave it out: tokens have no image format",
    "convertMatmulToConv": "leave it out: it is always done",
    "prototxt": "Caffe models are for MNN's own MNNConvert",
    "OP": "ops of other frameworks are for MNN's own MNNConvert",
    "info": "use MNN's own MNNConvert, or: deepmnn info",
    "JsonFile": "dumps are for MNN's own MNNConvert",
    "testdir": "use: deepmnn eval",
    "testconfig": "use: deepmnn eval",
    "thredhold": "use: deepmnn eval",
    "benchmarkModel": "use: deepmnn convert --random-weights",
    "forTraining": "the model is for inference",
    "authCode": "leave it out",
    "targetVersion": "leave it out: the model is for the installed MNN",
    "alignDenormalizedValue": "leave it out",
    "detectSparseSpeedUp": "leave it out: weights are dense",
    "useGeluApproximation": "leave it out: these models have no GELU",
    "groupConvNative": "leave it out: these models have no grouped convolution",
    "useOriginRNNImpl": "leave it out: these models have no LSTM or GRU",
    "debug": "leave it out",
    "dumpPass": "use: deepmnn info MODEL",
}
"""MNNConvert's other flags, and what to do instead."""


@dataclass(frozen=True)
class Options:
    """What is asked for.

    Attributes:
        model_file: weights, or a checkpoint directory.
        mnn_model: the .mnn file to write.
        config: a config.json other than the one beside model_file.
        bits: of the large matrices, one of BITS.
        block_size: columns per scale, as given; None leaves it to the export.
        calibration: a file of texts; True: the set that comes with deepmnn; False: none; None: that
            set where it helps.
        samples: of the calibration, at most.
        full: whether ranges of activations are taken from the samples, and the loss is measured.
        fp16: whether float weights are stored in half precision.
    """

    model_file: Path
    mnn_model: Path
    config: Path | None
    bits: int
    block_size: int | None
    calibration: Path | bool | None
    samples: int
    full: bool
    optimize_level: int
    fp16: bool
    biz_code: str
    overwrite: bool


def parse(arguments: Sequence[str], prog: str = "mnnconvert") -> Options:
    """Reads the command line.

    Raises RequestError for what MNNConvert has and we refuse, SystemExit (2) for what nobody knows.
    """
    given = _parser(prog).parse_args(arguments)
    model_file, mnn_model = Path(given.modelFile), Path(given.MNNModel)
    if given.framework.upper() not in FRAMEWORKS:
        raise RequestError(
            f"-f {given.framework}",
            f"one of {', '.join(FRAMEWORKS)}",
            "Models of other frameworks are for MNN's own MNNConvert.",
        )
    if given.framework.upper() != "TORCH" and model_file.is_file():
        raise RequestError(
            f"--modelFile {model_file} is a file",
            f"a checkpoint directory for -f {given.framework}",
        )
    if mnn_model.suffix != ".mnn":
        raise RequestError(f"--MNNModel {mnn_model}", "a name that ends with .mnn")
    bits, full = _bits(given.weightQuantBits, given.quantizeMode)
    if given.weightQuantBlock is not None and not bits:
        raise RequestError("--weightQuantBlock alone", "--weightQuantBits with it")
    return Options(
        model_file=model_file,
        mnn_model=mnn_model,
        config=given.config and Path(given.config),
        bits=bits,
        block_size=given.weightQuantBlock,
        calibration=_calibration(given.calibration, given.no_calibration, bits, full),
        samples=given.samples,
        full=full,
        optimize_level=given.optimizeLevel,
        fp16=given.fp16,
        biz_code=given.bizCode,
        overwrite=given.overwrite,
    )


def _bits(bits: int | None, mode: str | None) -> tuple[int, bool]:
    """Bits of the weights, 0 for floats, from the two flags that say so; whether mode is FULL."""
    if mode is None:
        return bits or 0, False
    if mode.upper() == FULL:
        if bits == 0:
            raise RequestError(f"--quantizeMode {mode} and --weightQuantBits 0", "8 or 4 bits")
        return bits or 8, True
    if mode.upper() not in QUANTIZE_MODES:
        known = ", ".join((*QUANTIZE_MODES, FULL))
        raise RequestError(f"--quantizeMode {mode}", f"one of {known}")
    wanted = QUANTIZE_MODES[mode.upper()]
    if bits is not None and bits != wanted:
        raise RequestError(
            f"--quantizeMode {mode} and --weightQuantBits {bits}", "two flags that agree"
        )
    return wanted, False


def _calibration(path: str | None, none: bool, bits: int, full: bool) -> Path | bool | None:
    """Raises RequestError for samples that nothing would read."""
    if path is not None and none:
        raise RequestError("--calibration and --no-calibration", "one of the two")
    if full and none:
        raise RequestError(f"--quantizeMode {FULL} and --no-calibration", "one of the two")
    if path is not None and bits != 4 and not full:
        raise RequestError(
            "--calibration without codes of 4 bits",
            f"--weightQuantBits 4, or --quantizeMode {FULL}",
            "Codes of 8 bits are rounded to nearest.",
        )
    if none:
        return False
    return None if path is None else Path(path)


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r:.40} is no positive integer")
    return int(text)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, as every error."""
        self.exit(2, f"error: {message} (--help lists the flags)\n")


class _Refuse(argparse.Action):
    def __call__(self, parser: object, namespace: object, values: object, option: Any = "") -> None:
        name = str(option).lstrip("-")
        raise RequestError(f"--{name} is not for these models", "", f"{_sentence(REFUSED[name])}")


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=prog,
        description="DeepSeek-family checkpoints to MNN, with the flags of MNN's MNNConvert.",
        epilog="Beside NAME.mnn lie NAME.mnn.weight and what MNN's LLM runtime needs; "
        "MNN.llm.create takes NAME.config.json.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    version = f"mnnconvert of deepmnn {__version__}"
    add("-v", "--version", action="version", version=version, help="print the version")
    add(
        *("-f", "--framework"),
        required=True,
        help="TORCH (a .pt, .pth or .bin state dict, or a directory), SAFETENSORS or HF (one)",
    )
    add("--modelFile", required=True, help="the weights, or a Hugging Face directory")
    add("--MNNModel", required=True, help="the file to write, NAME.mnn")
    add("--bizCode", default="", help="a label that is stored in the model")
    add(
        "--optimizeLevel",
        type=int,
        choices=range(4),
        default=3,
        help="graph optimisation: 0 none, 3 (default) all; MNN's own converter has 0 to 2",
    )
    add("--fp16", action="store_true", help="store float weights in half precision")
    add(
        *("--weightQuantBits", "--bits"),
        type=int,
        choices=sorted(BITS),
        help="bits of the large matrices; 0 (default) leaves them float",
    )
    add(
        *("--weightQuantBlock", "--block-size"),
        type=int,
        choices=BLOCK_SIZES,
        help="columns that share a scale; default 64 with 4 bits, 128 with 8",
    )
    ours = parser.add_argument_group("flags that MNN's own converter has not")
    ours.add_argument(
        "--config", metavar="PATH", help="config.json; default: the one beside the weights"
    )
    ours.add_argument("--overwrite", action="store_true", help="replace files that are there")
    ours.add_argument(
        "--quantizeMode",
        metavar="MODE",
        help=f"{', '.join(QUANTIZE_MODES)}: bits of the weights; {FULL}: 8 bits (or those of "
        "--weightQuantBits), ranges of activations from samples, and a check of the loss",
    )
    ours.add_argument(
        "--calibration",
        metavar="PATH",
        help="texts to choose codes of 4 bits by, and for FULL_QUANTIZE; default: deepmnn's",
    )
    ours.add_argument(
        "--samples", type=_count, default=COUNT, metavar="N", help="of these, at most; default 500"
    )
    ours.add_argument(
        "--no-calibration", action="store_true", help="round every weight to the nearest number"
    )
    for name in REFUSED:
        add(f"--{name}", nargs="?", action=_Refuse, help=argparse.SUPPRESS)
    return parser
