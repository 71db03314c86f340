"""The flags that load a model and sample from it: made from dataclasses, the same for all verbs."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

import deepmnn
from deepmnn import LoadOptions, MnnOptions, SamplingParams
from deepmnn.cli import app, options
from tiny_artifact import tiny_artifact

VERBS = ("generate", "chat", "bench", "eval", "demo")
LOADING = {
    "--backend": None,
    "--threads": None,
    "--kv-dtype": None,
    "--cache-tokens": None,
    "--kv-disk": None,
    "--kv-directory": None,
    "--max-batch-tokens": None,
    "--max-sequences": 64,
    "--memory": None,
    "--mnn-memory": None,
    "--precision": None,
    "--numa": "off",
    "--isa": None,
    "--mla-form": "auto",
    "--speculate": None,
    "--speculate-tokens": None,
}
SAMPLING = ["--temperature", "--top-k", "--top-p", "--min-p", "--seed", "--max-tokens", "--stop"]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_artifact(tmp_path_factory.mktemp("options"), quant="w8")


def flags_of(verb: str) -> dict[str, Any]:
    """Flag → (default, help)."""
    command = typer.main.get_command(app).commands[verb]
    return {
        parameter.opts[0]: (parameter.default, parameter.help)
        for parameter in command.params
        if parameter.param_type_name == "option"
    }


def run_verb(verb: Any, *arguments: str) -> None:
    """Runs one function as the command line would; its errors are raised."""
    made = typer.Typer()
    made.command()(options.with_flags(verb))
    CliRunner().invoke(made, arguments, catch_exceptions=False)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_the_loading_flags(verb: str) -> None:
    found = flags_of(verb)
    wanted = dict(LOADING)
    if verb == "bench":
        del wanted["--max-sequences"]
    assert {flag: found[flag][0] for flag in wanted} == wanted
    assert ("--max-sequences" in found) == (verb != "bench")
    helps = {f.name: f.metadata["help"] for f in fields(LoadOptions) if f.name != "mnn"}
    own = {f.name: f.metadata["help"] for f in fields(MnnOptions) if f.name != "mmap"}
    helps |= {"mnn_memory": own.pop("memory"), **own}
    if verb == "bench":
        helps["cache_tokens"] = "KV cache rows; default: what the runs need."
    for flag in wanted:
        assert found[flag][1] == helps[flag[2:].replace("-", "_")]


@pytest.mark.parametrize("verb", ["generate", "chat"])
def test_the_sampling_flags_have_no_defaults(verb: str) -> None:
    found = flags_of(verb)
    for flag in SAMPLING:
        assert not found[flag][0], "the model recommends what is not given"
        field = SamplingParams.__dataclass_fields__[flag[2:].replace("-", "_")]
        assert found[flag][1] == field.metadata["help"]


def test_the_flags_of_every_other_verb_are_its_own() -> None:
    for verb in ("convert", "export", "info", "pull"):
        assert not set(flags_of(verb)) & (set(LOADING) | {"--temperature"})


def test_a_verb_gets_what_was_given() -> None:
    got: list[Any] = []

    def verb(*, sampling: options.Sampling, load: LoadOptions) -> None:
        got.extend((load, sampling.given))

    run_verb(verb)
    assert got == [LoadOptions(), {}]
    got.clear()
    loading = ["--backend", "mnn", "--threads", "3", "--kv-dtype", "bf16", "--cache-tokens", "7"]
    loading += ["--max-batch-tokens", "5", "--max-sequences", "6", "--memory", "3.5 GiB"]
    loading += [
        "--mnn-memory",
        "high",
        "--precision",
        "low",
        "--numa",
        "isolate",
        "--isa",
        "avx2",
        "--mla-form",
    ]
    sampling = ["--temperature", "0.5", "--top-k", "0", "--seed", "4", "--stop", "a", "--stop", "b"]
    run_verb(verb, *loading, "absorbed", *sampling)
    assert got == [
        LoadOptions(
            backend="mnn",
            threads=3,
            kv_dtype="bf16",
            cache_tokens=7,
            max_batch_tokens=5,
            max_sequences=6,
            mnn=MnnOptions(memory="high", precision="low"),
            numa="isolate",
            isa="avx2",
            mla_form="absorbed",
            memory="3.5 GiB",
        ),
        {"temperature": 0.5, "top_k": 0, "seed": 4, "stop": ["a", "b"]},
    ]


def test_a_verb_may_reword_a_flag_or_leave_it_out() -> None:
    def verb(
        *, load: Annotated[LoadOptions, {"threads": "Mine.", "isa": None, "mnn_memory": None}]
    ) -> None:
        assert load == LoadOptions(threads=2)

    made = typer.Typer()
    made.command()(options.with_flags(verb))
    shown = {p.name: p.help for p in typer.main.get_command(made).params if p.name != "help"}
    assert shown["threads"] == "Mine."
    assert not {"isa", "mnn_memory"} & set(shown)
    assert {"memory", "precision"} <= set(shown)
    run_verb(verb, "--threads", "2")


def test_what_is_given_goes_on_top_of_what_the_model_recommends(artifact: Path) -> None:
    model = deepmnn.load(artifact)
    assert options.Sampling({}).params(model) == model.generation_config.params
    params = options.Sampling({"top_k": 3, "stop": ["x"]}).params(model)
    assert params == SamplingParams(top_k=3, stop=("x",))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--backend gpu", "--backend is 'gpu'; expected 'cpu' or 'mnn' or 'reference'"),
        (
            "--threads 9999999999",
            "--threads is 9999999999; expected an integer from 1",
        ),
        ("--kv-dtype int3", "--kv-dtype is 'int3'; expected 'f32' or 'bf16' or 'int8'"),
        ("--cache-tokens 9999999999", "--cache-tokens is 9999999999; expected an integer from 1"),
        ("--max-batch-tokens 9999999999", "--max-batch-tokens is 9999999999; expected an integer"),
        ("--max-sequences 9999999999", "--max-sequences is 9999999999; expected an integer from 1"),
        ("--memory tiny", "--memory is 'tiny'; expected a size such as '4GiB', '800MB' or a"),
        ("--memory 0", "--memory is '0'; expected a size"),
        (
            "--kv-directory here",
            "--kv-directory is given, and nothing is written there; expected --kv-disk",
        ),
        (
            "--kv-disk 10 --kv-directory /dev/null",
            "/dev/null: File exists; expected a directory to keep KV blocks in. --kv-directory",
        ),
        ("--mnn-memory tiny", "--mnn-memory is 'tiny'; expected 'low' or 'normal' or 'high'"),
        ("--precision tiny", "--precision is 'tiny'; expected 'low' or 'normal' or 'high'"),
        (
            "--mnn-memory low",
            "--mnn-memory or --precision are given with the backend 'cpu'; expected",
        ),
        ("--numa near", "--numa is 'near'; expected 'off' or 'distribute' or 'isolate'"),
        ("--isa mmx", "instruction set 'mmx'; expected one this machine runs: "),
        (
            "--mla-form folded",
            "--mla-form is 'folded'; expected 'auto' or",
        ),
        (
            "--backend reference --numa isolate",
            "--numa is 'isolate' with the backend 'reference'; expected --backend cpu",
        ),
        (
            "--backend reference --isa avx2",
            "--isa is 'avx2' with the backend 'reference'; expected --backend cpu",
        ),
        ("--temperature -1", "--temperature is -1.0; expected a finite number in [0, 1e+06]"),
        ("--temperature nan", "--temperature is nan; expected a finite number in [0, 1e+06]"),
        ("--top-k -1", "--top-k is -1; expected an integer of at least 0"),
        ("--top-p 0", "--top-p is 0.0; expected a finite number in (0, 1]"),
        ("--min-p 2", "--min-p is 2.0; expected a finite number in [0, 1]"),
        ("--seed -1", "--seed is -1; expected an integer of at least 0"),
        ("--max-tokens 0", "--max-tokens is 0; expected an integer of at least 1"),
        ("--stop=", "--stop is ['']; expected one or several non-empty strings"),
    ],
)
def test_impossible_values(artifact: Path, flags: str, message: str) -> None:
    result = CliRunner().invoke(app, ["generate", str(artifact), "x", *flags.split()])
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith(f"error: {message}")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "flag",
    ["--threads", "--cache-tokens", "--max-batch-tokens", "--max-sequences"],
)
@pytest.mark.parametrize("value", ["0", "-3", "two", "1.5"])
def test_no_size_is_a_usage_error(flag: str, value: str) -> None:
    result = CliRunner().invoke(app, ["generate", "nowhere", "x", flag, value])
    assert result.exit_code == 2
    assert f"Invalid value for '{flag}'" in result.stderr


def test_bench_takes_the_cache_it_needs_or_is_given(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    plain = options.open_model
    monkeypatch.setattr(
        options,
        "open_model",
        lambda path, load: seen.append(load.cache_tokens) or plain(path, load),
    )
    flags = ["--prompt-tokens", "5", "--new-tokens", "2", "--batch", "2", "--repeat", "1"]
    for more in ([], ["--cache-tokens", "128"]):
        result = CliRunner().invoke(app, ["bench", str(artifact), *flags, *more])
        assert result.exit_code == 0, result.output
    assert seen == [2 * (5 + 2 + 32), 128]
