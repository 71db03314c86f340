from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.color import ColorSystem
from typer.testing import CliRunner, Result

import deepmnn
from deepmnn.cli import answer, app
from tiny_artifact import CONFIG, tiny_artifact, write_config


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_artifact(tmp_path_factory.mktemp("cli"), quant="w8")


def run(*arguments: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], input=stdin)


def good(*arguments: object, stdin: str | None = None) -> Result:
    result = run(*arguments, stdin=stdin)
    assert result.exit_code == 0, result.output
    return result


def bad(code: int, *arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    if code == 1:
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1
    return result.stderr


def test_help_of_every_verb() -> None:
    text = good("--help").output
    for verb in ("demo", "pull", "convert", "info", "generate", "chat", "bench", "eval", "report"):
        assert re.search(rf"\b{verb}\b", text)
        assert "--help" in good(verb, "--help").output
    assert good("--version").output.strip() == f"deepmnn {deepmnn.__version__}"


def test_convert_and_info(tmp_path: Path) -> None:
    write_config(tmp_path / "source")
    flags = ["--quant", "w4", "--random-weights", "--seed", 5, "--optimize-level", 2]
    text = good("convert", tmp_path / "source", tmp_path / "out", *flags).output
    manifest = json.loads((tmp_path / "out" / "deepmnn.json").read_text())
    assert (manifest["quant"], manifest["optimize_level"]) == ("w4", 2)
    assert f"{manifest['nodes_level_0']} -> {manifest['nodes']}" in text
    assert "parameters as w4" in text
    assert "exists" in bad(1, "convert", tmp_path / "source", tmp_path / "out", *flags)
    good("convert", tmp_path / "source", tmp_path / "out", *flags, "--overwrite")

    text = good("info", tmp_path / "out", "--verify").output
    parameters = sum(f.stat().st_size for f in (tmp_path / "out").glob("*.safetensors"))
    assert parameters > 0
    for wanted in ("DeepseekV3ForCausalLM", "192 tokens", "w4", "level 3", "mla_attention"):
        assert wanted in text
    assert f"{4 * 2 * (18 + 6)} B per token" in text
    program = good("info", tmp_path / "out", "--program").output
    assert f"{manifest['nodes']} instructions" in program


def test_info_counts_parameters_of_a_checkpoint(tmp_path: Path) -> None:
    import transformers

    write_config(tmp_path)
    config = transformers.AutoConfig.for_model(**CONFIG)
    torch_model = transformers.AutoModelForCausalLM.from_config(config)
    numbers = sum(p.numel() for p in torch_model.state_dict().values())
    text = good("info", tmp_path).output
    assert f"{numbers / 1000:.1f} k" in text
    assert good("info", tmp_path / "config.json").output == text


def test_info_says_the_context_that_the_scaling_makes(tmp_path: Path) -> None:
    yarn = {"type": "yarn", "factor": 4.0}
    write_config(tmp_path, tokenizer=False, rope_scaling=yarn, max_position_embeddings=1000)
    assert "4000 tokens" in good("info", tmp_path).output
    good("convert", tmp_path, tmp_path / "out", "--random-weights")
    assert "4000 tokens" in good("info", tmp_path / "out").output


def test_info_verify_finds_damage(tmp_path: Path) -> None:
    path = tiny_artifact(tmp_path)
    shard = next(path.glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-100] ^= 1
    shard.write_bytes(data)
    assert "damaged" in bad(1, "info", path, "--verify")


def test_the_cache_can_be_made_smaller_or_larger(artifact: Path, tmp_path: Path) -> None:
    long = "x" * 40
    assert "cache" in bad(1, "generate", artifact, long, "--cache-tokens", 32)
    good("generate", artifact, long, "--cache-tokens", 64)
    assert "cache" in run("chat", artifact, "--cache-tokens", 32, stdin=f"{long}\n").stderr
    data = tmp_path / "problems.jsonl"
    data.write_text(json.dumps({"question": "x" * 60, "answer": "1"}))
    bad(1, "eval", artifact, "--data", data, "--cache-tokens", 32)
    good("eval", artifact, "--data", data, "--cache-tokens", 128)


def test_an_answer_is_printed_as_it_is(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "if x:\n\t\treturn [bold]\x1b[2J :smile: \r\n"

    def stream(*_: object) -> Iterator[deepmnn.Chunk]:
        yield deepmnn.Chunk(0, said, "", [1], "stop", 1, 0, 1, 0.1, 0.1)

    monkeypatch.setattr(deepmnn.LLM, "stream", stream)
    assert said in good("generate", artifact, "x").stdout_bytes.decode()
    monkeypatch.setattr(answer.out, "_force_terminal", True)
    on_a_terminal = good("generate", artifact, "x").stdout_bytes.decode()
    assert "\x1b[2J" not in on_a_terminal, "a model does not command the terminal"
    assert "if x:\n\t\treturn [bold]␛[2J" in on_a_terminal


def test_names_are_not_markup(artifact: Path, tmp_path: Path) -> None:
    for number, named in enumerate((["[/b] LM"], "LM", 5, [], {"a": 1}, [None])):
        config = {**CONFIG, "architectures": named}
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert "model type" in good("info", tmp_path / "config.json").output, named
        assert number or "[/b] LM" in good("info", tmp_path / "config.json").output
    out = tmp_path / "a[red]" / "b[/c]"
    text = good("convert", tmp_path / "config.json", out, "--random-weights").output
    assert str(out) in text


def test_output_in_any_encoding(artifact: Path) -> None:
    command = [sys.executable, "-c", "from deepmnn.cli import main; main()"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    hot = ["--max-tokens", "40", "--temperature", "9", "--seed", "3"]
    for arguments, stdin in (
        (["generate", artifact, "x", *hot], b""),
        (["chat", artifact, "--max-tokens", "4"], b"caf\xe9\n"),
        (["info", artifact], b""),
    ):
        done = subprocess.run(
            [*command, *map(str, arguments)], input=stdin, capture_output=True, env=environment
        )
        assert done.returncode == 0, done.stderr
        assert b"Traceback" not in done.stderr
    without_stdin = ["sh", "-c", 'exec "$@" <&-', "sh", *command, "chat", str(artifact)]
    done = subprocess.run(without_stdin, capture_output=True)
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False), done.stderr


def test_eval(artifact: Path, tmp_path: Path) -> None:
    data = tmp_path / "problems.jsonl"
    lines = [
        {"question": f"{i} + 1?", "answer": str(i + 1), "kind": "odd" * (i % 2)} for i in range(6)
    ]
    data.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    text = good("eval", artifact, "--data", data, "--limit", 5, "--max-tokens", 6).output
    assert re.search(r"exact match \d+\.\d% \(\d of 5\)", text)
    assert "odd" in text
    data.write_text('{"question": "only"}\n')
    assert "line 1" in bad(1, "eval", artifact, "--data", data)
    assert "is missing" in bad(1, "eval", artifact, "--data", tmp_path / "none")


def test_bench_prints_json(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["--prompt-tokens", "5,9", "--new-tokens", 3, "--batch", "1,2", "--repeat", 2]
    report = json.loads(good("bench", artifact, *flags, "--json", "--threads", 1).stdout)
    shapes = [(row["prompt_tokens"], row["batch"]) for row in report["rows"]]
    assert shapes == [(5, 1), (5, 2), (9, 1), (9, 2)]
    for row in report["rows"]:
        assert row["prefill"]["mean"] > 0 < row["decode"]["mean"]
        assert 0 < row["decode_bandwidth_share"] < 1
        assert 0 < row["prefill_macs_share"] < 1
    assert report["machine"]["threads"] == 1
    monkeypatch.setattr(answer.out, "_force_terminal", True)  # as FORCE_COLOR does
    monkeypatch.setattr(answer.out, "_color_system", ColorSystem.TRUECOLOR)
    json.loads(good("bench", artifact, *flags, "--json", "--threads", 1).stdout)
    monkeypatch.undo()
    text = good("bench", artifact, *flags, "--threads", 1).stdout
    assert "GB/s" in text
    assert "±" in text
    assert "--batch" in bad(2, "bench", artifact, "--batch", "1,x")
    assert "192" in bad(1, "bench", artifact, "--prompt-tokens", "190", "--repeat", 1)


def test_errors_are_one_line_without_a_traceback(artifact: Path, tmp_path: Path) -> None:
    assert "is missing" in bad(1, "info", tmp_path / "missing")
    assert "expected weights" in bad(1, "generate", artifact.parent / "source", "x")
    assert "temperature" in bad(1, "generate", artifact, "x", "--temperature", -1)
    assert "w7" in bad(1, "convert", artifact.parent / "source", tmp_path / "o", "--quant", "w7")
    assert "converted" in bad(1, "info", artifact.parent / "source", "--program")
    assert "Convert a checkpoint first" in bad(1, "generate", tmp_path, "x")
    assert "pull" in bad(1, "info", tmp_path)
    assert "too long" in bad(1, "info", "a" * 5000)  # the system's own errors are one line too
    assert "OWNER/NAME" in bad(1, "chat", "a" * 5000)
    bad(2, "convert", "only-one")
    bad(2, "generate", artifact, "x", "--threads", 0)
    bad(2, "nonsense")


def test_pull_explains_what_went_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "OWNER/NAME" in bad(2, "pull", "not a repository!")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    code = "from deepmnn.cli import main; main()"
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_DOWNLOAD_TIMEOUT": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, "pull", "owner/name"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
    )
    assert done.returncode == 1
    assert "cannot be reached" in done.stderr
    assert "Traceback" not in done.stderr


def test_demo_solves_held_out_problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    text = good("demo", "--problems", 12, "--threads", 1).stdout
    right, asked = map(int, re.search(r"(\d+) of (\d+) right", text).groups())
    assert asked == 12
    assert right >= 9
    assert "So " in text, "the reasoning is shown"
    assert "deepmnn chat" in text
    again = good("demo", "--problems", 12, "--threads", 1)
    assert again.stdout.split("┏")[0] == text.split("┏")[0]
    assert again.stderr == "", "it was converted once"
    text = good("eval", "--limit", 12, "--threads", 1).output
    assert "of 12" in text
