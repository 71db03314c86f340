"""The flags: the article's command, MNNConvert's habits, and what is refused."""

import re
from pathlib import Path

import pytest

from deepmnn.errors import RequestError
from mnnconvert.options import REFUSED, Options, parse

NEEDED = "-f TORCH --modelFile deepseek.pt --MNNModel deepseek.mnn"
THEIRS = (
    "help version framework modelFile batch keepInputFormat optimizeLevel optimizePrefer prototxt "
    "MNNModel fp16 benchmarkModel bizCode debug forTraining weightQuantBits weightQuantAsymmetric "
    "weightQuantBlock hqq weightQuantScaleBit compressionParamsFile OP saveStaticModel "
    "targetVersion customOpLibs info authCode inputConfigFile testdir testconfig thredhold "
    "JsonFile alignDenormalizedValue detectSparseSpeedUp saveExternalData useGeluApproximation "
    "convertMatmulToConv transformerFuse transformerFuseC4 groupConvNative allowCustomOp "
    "useOriginRNNImpl splitBlockQuant dumpPass"
)
"""The flags that MNNConvert 3.6.1 declares (tools/converter/source/common/cli.cpp)."""


def parsed(text: str) -> Options:
    return parse(text.split())


def test_the_articles_command() -> None:
    assert parsed(f"{NEEDED} --bizCode DS --optimizeLevel 3 --fp16") == Options(
        model_file=Path("deepseek.pt"),
        mnn_model=Path("deepseek.mnn"),
        config=None,
        bits=0,
        block_size=None,
        calibration=None,
        samples=500,
        full=False,
        optimize_level=3,
        fp16=True,
        biz_code="DS",
        overwrite=False,
    )


def test_all_flags_in_both_spellings() -> None:
    plain = (
        "--framework hf --modelFile ds --MNNModel out/ds.v2.mnn --weightQuantBits 4 "
        "--weightQuantBlock 128 --optimizeLevel 0 --config c.json --overwrite"
    )
    wanted = Options(
        model_file=Path("ds"),
        mnn_model=Path("out/ds.v2.mnn"),
        config=Path("c.json"),
        bits=4,
        block_size=128,
        calibration=None,
        samples=500,
        full=False,
        optimize_level=0,
        fp16=False,
        biz_code="",
        overwrite=True,
    )
    assert parsed(plain) == wanted
    assert parsed(re.sub(r"(--\w+) (?=[^-])", r"\1=", plain)) == wanted


@pytest.mark.parametrize(
    ("flags", "bits"),
    [
        ("", 0),
        ("--weightQuantBits 0", 0),
        ("--weightQuantBits 8", 8),
        ("--weightQuantBits 4", 4),
        ("--quantizeMode NONE", 0),
        ("--quantizeMode WEIGHT_INT8", 8),
        ("--quantizeMode weight_int4", 4),
        ("--quantizeMode W4 --weightQuantBits 4", 4),
    ],
)
def test_quantisation(flags: str, bits: int) -> None:
    assert parsed(f"{NEEDED} {flags}").bits == bits


@pytest.mark.parametrize(
    ("flags", "bits", "calibration", "samples"),
    [
        ("--quantizeMode FULL_QUANTIZE", 8, None, 500),
        ("--quantizeMode full_quantize --weightQuantBits 4 --samples 9", 4, None, 9),
        ("--quantizeMode FULL_QUANTIZE --calibration a.jsonl", 8, Path("a.jsonl"), 500),
    ],
)
def test_full_quantisation(flags: str, bits: int, calibration: Path | None, samples: int) -> None:
    found = parsed(f"{NEEDED} {flags}")
    assert found.full
    assert (found.bits, found.calibration, found.samples) == (bits, calibration, samples)


@pytest.mark.parametrize(
    ("flags", "calibration"),
    [
        ("--bits 4 --block-size 32", None),
        ("--weightQuantBits 4 --no-calibration", False),
        ("--weightQuantBits 8 --no-calibration", False),
        ("--quantizeMode W4 --calibration a.txt", Path("a.txt")),
    ],
)
def test_calibration(flags: str, calibration: Path | bool | None) -> None:
    found = parsed(f"{NEEDED} {flags}")
    assert not found.full
    assert found.calibration == calibration


@pytest.mark.parametrize("flag", REFUSED)
@pytest.mark.parametrize("form", ["--{}", "--{} 1", "--{}=1"])
def test_other_flags_of_mnnconvert(flag: str, form: str) -> None:
    with pytest.raises(RequestError, match=rf"^--{flag} is not for these models\. \S.*\.$"):
        parsed(f"{NEEDED} {form.format(flag)}")


def test_mnnconverts_own_flags_are_all_known() -> None:
    accepted = {
        *("help", "version", "framework", "modelFile", "MNNModel", "bizCode", "optimizeLevel"),
        *("fp16", "weightQuantBits", "weightQuantBlock"),
    }
    assert accepted | set(REFUSED) == set(THEIRS.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("-f ONNX --modelFile a --MNNModel a.mnn", "MNNConvert"),
        ("-f TORCH --modelFile a.pt --MNNModel a", "ends with .mnn"),
        ("-f TORCH --modelFile a.pt --MNNModel .mnn", "ends with .mnn"),
        ("-f TORCH --modelFile a.pt --MNNModel a.mnn --quantizeMode X", "quantizeMode X; expected"),
        (
            "-f TORCH --modelFile a.pt --MNNModel a.mnn --quantizeMode W8 --weightQuantBits 4",
            "agree",
        ),
        ("-f TORCH --modelFile a.pt --MNNModel a.mnn --weightQuantBlock 64", "weightQuantBits"),
        ("-f TORCH --modelFile a.pt --MNNModel a.mnn --quantizeMode KL", "FULL_QUANTIZE"),
        (f"{NEEDED} --quantizeMode FULL_QUANTIZE --weightQuantBits 0", "8 or 4 bits"),
        (f"{NEEDED} --quantizeMode FULL_QUANTIZE --no-calibration", "one of the two"),
        (f"{NEEDED} --bits 4 --calibration a.txt --no-calibration", "one of the two"),
        (f"{NEEDED} --bits 8 --calibration a.txt", "8 bits are rounded to nearest"),
        (f"{NEEDED} --calibration a.txt", "without codes of 4 bits"),
    ],
)
def test_requests_that_make_no_sense(arguments: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        parsed(arguments)


def test_a_file_where_a_directory_belongs(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    file = str(tmp_path / "model.safetensors")
    with pytest.raises(RequestError, match="checkpoint directory"):
        parse(["-f", "SAFETENSORS", "--modelFile", file, "--MNNModel", "a.mnn"])


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "-f TORCH",
        "-f TORCH --modelFile a.pt --MNNModel a.mnn --unknown",
        "-f TORCH --modelFile a.pt --MNNModel a.mnn --optimizeLevel 4",
        "-f TORCH --modelFile a.pt --MNNModel a.mnn --optimizeLevel x",
        "-f TORCH --modelFile a.pt --MNNModel a.mnn --weightQuantBits 3",
        "-f TORCH --modelFile a.pt --MNNModel a.mnn --weightQuantBlock 48",
        "-f TORCH --modelFile a.pt --MNNModel a.mnn --samples 0",
        "-f TORCH --modelFile a.pt --MNNModel a.mnn --biz DS",
    ],
)
def test_usage_errors_are_one_line(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parsed(arguments)
    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert re.fullmatch(r"error: .+--help.+\n", printed.err)
    assert not printed.out


def test_help_says_which_flags_are_ours(capsys: pytest.CaptureFixture[str]) -> None:
    for flag in ("--help", "-h", "--version", "-v"):
        with pytest.raises(SystemExit) as caught:
            parse([flag])
        assert not caught.value.code
    text = capsys.readouterr().out
    theirs, ours = text.split("flags that MNN's own converter has not")[:2]
    for flag in ("--modelFile", "--MNNModel", "--bizCode", "--optimizeLevel", "--fp16"):
        assert f"  {flag}" in theirs
    for flag in ("--config", "--overwrite", "--quantizeMode"):
        assert f"  {flag}" in ours
    assert not any(re.search(rf"--{flag}\b", text) for flag in REFUSED)
