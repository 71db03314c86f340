"""The article's command as it is written, its files through MNN itself, and failures that leave
nothing behind.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

import deepmnn
from deepmnn.backends.base import F32
from deepmnn.backends.mnn.wheel import convert_tool
from deepmnn.errors import DeepmnnError
from mnnconvert import command
from tiny_models import CONFIGS, TinyModel, tiny_checkpoint

ARTICLE = (
    "-f TORCH --modelFile deepseek.pt --MNNModel deepseek.mnn --bizCode DS --optimizeLevel 3 --fp16"
)
PLAIN = "-f TORCH --modelFile deepseek.pt --MNNModel deepseek.mnn"
IDS = [3, 5, 90, 17, 41, 8]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """deepseek.pt and config.json in a directory, and the model that is in them."""
    directory = tmp_path_factory.mktemp("source")
    model = tiny_checkpoint("deepseek_v2", 0, directory / "hf")
    torch.save(model.model.state_dict(), directory / "deepseek.pt")
    shutil.copy(model.path / "config.json", directory / "config.json")
    return model


@pytest.fixture
def here(tiny: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with deepseek.pt and config.json."""
    for name in ("deepseek.pt", "config.json"):
        shutil.copy(tiny.path.parent / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def mnnconvert(arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m mnnconvert`, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "mnnconvert", *arguments.split()],
        capture_output=True,
        text=True,
        check=False,
    )


def run(arguments: str) -> int:
    return command.main(arguments.split())


def mnn_logits(config: str) -> F32:
    """The last token's logits by MNN's own runtime, as a user of its wheel would ask for them."""
    code = """
import json, sys
import MNN
import numpy as np
llm = MNN.llm.create(sys.argv[1])
llm.set_config(json.dumps({"precision": "high", "memory": "normal", "thread_num": 1}))
assert llm.load()
result = llm.forward(json.loads(sys.argv[2]))
np.save("logits.npy", np.array(result.read(), np.float32).reshape(-1))
del result  # before the runtime
"""
    subprocess.run(
        [sys.executable, "-c", code, config, json.dumps(IDS)], check=True, capture_output=True
    )
    logits: F32 = np.load("logits.npy")
    Path("logits.npy").unlink()
    return logits


def error_to(tiny: TinyModel, found: F32) -> float:
    """Root mean square of the difference, over that of the right logits."""
    want = tiny.logits(IDS)[-1]
    return float(np.linalg.norm(found - want) / np.linalg.norm(want))


def network(path: str) -> dict[str, object]:
    """What MNN's converter reads in a model."""
    convert_tool(["-f", "MNN", "--modelFile", path, "--JsonFile", "dump.json"])
    dumped = json.loads(Path("dump.json").read_text())
    Path("dump.json").unlink()
    assert isinstance(dumped, dict)
    return dumped


def test_the_articles_command(tiny: TinyModel, here: Path) -> None:
    config = (here / "config.json").read_bytes()
    done = mnnconvert(ARTICLE)
    assert done.returncode == 0
    assert "note" not in done.stderr
    assert "parameters as fp16" in done.stdout
    assert "MNN.llm.create('deepseek.config.json')" in done.stdout
    assert {path.name for path in here.iterdir()} == {
        *("deepseek.pt", "config.json", "deepseek.mnn", "deepseek.mnn.weight"),
        *("deepseek.config.json", "deepseek.llm_config.json", "deepseek.tokenizer.mtok"),
        *("deepseek.embeddings_bf16.bin", "deepseek.deepmnn", "deepseek.deepmnn.json"),
    }
    assert (here / "config.json").read_bytes() == config
    assert error_to(tiny, mnn_logits("deepseek.config.json")) < 0.01
    assert network("deepseek.mnn")["bizCode"] == "DS"
    assert json.loads((here / "deepseek.deepmnn.json").read_text())["optimize_level"] == 3


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        ("", 0.01),
        ("--weightQuantBits 8 --weightQuantBlock 32", 0.05),
        ("--quantizeMode W4", 0.5),
        ("--optimizeLevel 1 --fp16", 0.01),
    ],
)
def test_flags_reach_the_model(tiny: TinyModel, here: Path, flags: str, error: float) -> None:
    assert run(f"{PLAIN} {flags}") == 0
    assert error_to(tiny, mnn_logits("deepseek.config.json")) < error


def test_fp16_halves_the_weights(here: Path) -> None:
    sizes = []
    for flags in ("", "--fp16"):
        assert run(f"{PLAIN} --overwrite {flags}") == 0
        sizes.append((here / "deepseek.mnn.weight").stat().st_size)
    assert 1.6 < sizes[0] / sizes[1] < 2.1


def test_bits_and_blocks_cost_bytes(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model whose rows are whole blocks: what has other sizes is stored as floats."""
    whole = dict.fromkeys(("hidden_size", "intermediate_size", "kv_lora_rank", "q_lora_rank"), 256)
    whole |= {"moe_intermediate_size": 256, "v_head_dim": 64, "num_attention_heads": 4}
    monkeypatch.setitem(CONFIGS, "deepseek_v2", [CONFIGS["deepseek_v2"][0] | whole])
    tiny_checkpoint("deepseek_v2", 0, here / "hf")
    sizes = []
    for flags in (
        *("0", "8 --weightQuantBlock 32", "8", "8 --weightQuantBlock 256"),
        *("4 --weightQuantBlock 32", "4", "4 --weightQuantBlock 128"),
    ):
        arguments = "-f HF --modelFile hf --MNNModel deepseek.mnn --overwrite --weightQuantBits"
        assert run(f"{arguments} {flags}") == 0
        sizes.append((here / "deepseek.mnn.weight").stat().st_size)
    assert all(a > b for a, b in pairwise(sizes)), sizes
    assert sizes[0] > 2.5 * sizes[2] > 3.5 * sizes[6]


def test_optimize_levels(here: Path) -> None:
    counts = []
    for level in range(4):
        assert run(f"{PLAIN} --overwrite --optimizeLevel {level}") == 0
        counts.append(len(network("deepseek.mnn")["oplists"]))  # type: ignore[arg-type]
    assert counts == sorted(counts, reverse=True)
    assert counts[3] < counts[0]


def test_deepmnn_loads_the_result(tiny: TinyModel, here: Path) -> None:
    assert run(f"{PLAIN} --fp16") == 0
    model = deepmnn.load("deepseek.mnn", threads=1)
    assert error_to(tiny, np.asarray(model.logits(IDS))[-1]) < 0.01


@pytest.mark.parametrize("framework", ["HF", "SAFETENSORS", "safetensors", "TORCH"])
def test_directories(tiny: TinyModel, here: Path, framework: str) -> None:
    shutil.copytree(tiny.path, here / "hf")
    (here / "hf" / "generation_config.json").write_text('{"temperature": 0.5}')
    arguments = f"-f {framework} --modelFile hf --MNNModel a.b.mnn --weightQuantBits 8"
    if framework == "TORCH":
        (here / "hf" / "model.safetensors").unlink()
        shutil.copy(here / "deepseek.pt", here / "hf" / "pytorch_model.bin")
    assert run(arguments) == 0
    assert error_to(tiny, mnn_logits("a.b.config.json")) < 0.05
    assert (here / "a.b.deepmnn" / "generation_config.json").exists()


def test_a_config_elsewhere(here: Path) -> None:
    (here / "config.json").rename(here / "hf.json")
    assert run(PLAIN) == 1
    assert run(f"{PLAIN} --config hf.json") == 0


# ------------------------------------------------------------------------------------- failures


def refused(arguments: str, capsys: pytest.CaptureFixture[str], here: Path) -> str:
    """The one line that it says; nothing was written, and nothing that was there is gone."""
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert run(arguments) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before
    return printed.err


def test_what_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "empty.pt").touch()
    (here / "text.txt").write_text("text")
    torch.save(torch.nn.Linear(2, 2), here / "module.pt")
    for arguments, message in {
        "-f TORCH --modelFile nothing.pt --MNNModel a.mnn": "nothing.pt is missing",
        "-f TORCH --modelFile text.txt --MNNModel a.mnn": "text.txt is a file",
        "-f TORCH --modelFile empty.pt --MNNModel a.mnn": "is empty",
        "-f TORCH --modelFile module.pt --MNNModel a.mnn": "whole model",
        "-f TORCH --modelFile deepseek.pt --MNNModel out/a.mnn": "no directory",
        "-f ONNX --modelFile deepseek.pt --MNNModel a.mnn": "-f ONNX",
        f"{PLAIN} --weightQuantAsymmetric": "weightQuantAsymmetric is not",
        f"{PLAIN} --quantizeMode FULL_QUANTIZE": "calibration",
        f"{PLAIN} --config nothing.json": "nothing.json is missing",
    }.items():
        assert message in refused(arguments, capsys, here), arguments


@pytest.mark.parametrize("name", ["deepseek.mnn", "deepseek.config.json"])
def test_files_of_the_user_stay(name: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / name).write_text("mine")
    assert "already exists" in refused(ARTICLE, capsys, here)


def test_an_earlier_model_is_replaced_on_demand(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(PLAIN) == 0
    assert "--overwrite" in refused(ARTICLE, capsys, here)
    assert "C64" in refused_weights(here, capsys)
    assert run(f"{ARTICLE} --overwrite") == 0
    assert network("deepseek.mnn")["bizCode"] == "DS"


def refused_weights(here: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """A conversion that fails late, over a model that works."""
    state = torch.load(here / "deepseek.pt", weights_only=True)
    state["lm_head.weight"] = torch.ones_like(state["lm_head.weight"]) * 1j
    torch.save(state, here / "bad.pt")
    arguments = "-f TORCH --modelFile bad.pt --MNNModel deepseek.mnn --overwrite"
    return refused(arguments, capsys, here)


def test_an_export_that_fails(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise DeepmnnError("the disk is full")

    monkeypatch.setattr(command, "export", fail)
    assert "disk is full" in refused(ARTICLE, capsys, here)


def test_a_killed_run_is_cleaned_up_by_the_next(here: Path) -> None:
    code = """
import sys, time
from mnnconvert import command
def wait(*_, **__):
    print("exporting", flush=True)
    time.sleep(60)
command.export = wait
command.main(sys.argv[1:])
"""
    arguments = [sys.executable, "-c", code, *PLAIN.split()]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "exporting\n"
        child.send_signal(signal.SIGKILL)
    left = [path for path in here.iterdir() if path.name.startswith(".")]
    assert len(left) == 1
    assert not (here / "deepseek.mnn").exists()
    assert run(PLAIN) == 0
    assert not [path for path in here.iterdir() if path.name.startswith(".")]


def test_ctrl_c_leaves_nothing(here: Path) -> None:
    code = """
import signal, sys
import mnnconvert.__main__ as module
from mnnconvert import command
def interrupt(*_, **__):
    signal.raise_signal(signal.SIGINT)
command.export = interrupt
module.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code, *PLAIN.split()], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (130, "")
    assert sorted(os.listdir(here)) == ["config.json", "deepseek.pt"]


def test_exit_codes_of_the_module(here: Path) -> None:
    assert mnnconvert("--version").stdout == f"mnnconvert of deepmnn {deepmnn.__version__}\n"
    wrong = mnnconvert("-f TORCH --modelFile deepseek.pt")
    assert (wrong.returncode, wrong.stdout, wrong.stderr.count("\n")) == (2, "", 1)
    missing = mnnconvert("-f TORCH --modelFile x.pt --MNNModel a.mnn")
    assert (missing.returncode, missing.stdout, missing.stderr.count("\n")) == (1, "", 1)
