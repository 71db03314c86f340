"""Conversion end to end: right numbers, nothing half-written, every failure typed."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from deepmnn.artifact import directory as directory_writer
from deepmnn.artifact.reader import Artifact
from deepmnn.backends.cpu.backend import CpuBackend
from deepmnn.backends.cpu.program import read_program
from deepmnn.backends.reference import ReferenceBackend
from deepmnn.conversion.convert import convert
from deepmnn.conversion.plan import weight_order
from deepmnn.errors import (
    ArtifactError,
    CheckpointError,
    DeepmnnError,
    RequestError,
    StorageError,
    TensorNotFoundError,
)
from deepmnn.graph.draft import optimize_parts
from deepmnn.graph.weights import F32
from deepmnn.models import build_draft, build_parts
from deepmnn.quant.store import stored_values
from parity import prompts_for, relative_error, run_schedule
from tiny_models import ALL, tiny_checkpoint

FP8_CONFIG = {
    "model_type": "deepseek_v3",
    "vocab_size": 150,
    "hidden_size": 200,
    "intermediate_size": 300,
    "moe_intermediate_size": 130,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "n_shared_experts": 1,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 140,
    "kv_lora_rank": 136,
    "qk_nope_head_dim": 70,
    "qk_rope_head_dim": 6,
    "v_head_dim": 66,
    "max_position_embeddings": 64,
    "num_nextn_predict_layers": 1,
    "torch_dtype": "bfloat16",
}


class Tensors:
    """A TensorSource over a dictionary."""

    def __init__(self, tensors: Mapping[str, F32]) -> None:
        self.tensors = tensors

    def read(self, name: str) -> F32:
        return self.tensors[name]


def stored(artifact: Artifact) -> dict[str, F32]:
    """Every weight of an artifact, decoded."""
    weights = artifact.parts().weights.values()
    return {w.name: stored_values(w, artifact.tensor(w.name)) for w in weights}


def bf16_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """Writes FP8_CONFIG's model in bf16; returns its tensors."""
    generator = torch.Generator().manual_seed(0)
    shapes = build_parts(FP8_CONFIG).shapes
    tensors = {n: torch.randn(s, generator=generator).bfloat16() for n, s in shapes.items()}
    path.mkdir()
    save_file(tensors, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(FP8_CONFIG))
    return tensors


def fp8_checkpoint(path: Path, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same model as DeepSeek publishes it, in two shards; returns its values done by hand."""
    values, shards = {}, ({}, {})
    for index, (name, tensor) in enumerate(tensors.items()):
        shard = shards[index % 2]
        if "_proj" not in name:
            shard[name], values[name] = tensor, tensor.float()
            continue
        padded = torch.zeros([-(-n // 128) * 128 for n in tensor.shape])
        padded[: tensor.shape[0], : tensor.shape[1]] = tensor.float()
        blocks = padded.unflatten(1, (-1, 128)).unflatten(0, (-1, 128))  # [r, 128, c, 128]
        scale = blocks.abs().amax(dim=(1, 3)) / 448
        codes = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
        rows, cols = tensor.shape
        shard[name] = codes.flatten(2, 3).flatten(0, 1)[:rows, :cols].contiguous()
        shard[f"{name}_scale_inv"] = scale
        value = codes.float() * scale[:, None, :, None]
        values[name] = value.flatten(2, 3).flatten(0, 1)[:rows, :cols].contiguous()
    path.mkdir()
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for name, shard in zip(names, shards, strict=True):
        save_file(shard, path / name)
    weight_map = {t: n for n, shard in zip(names, shards, strict=True) for t in shard}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    quantization = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
    config = FP8_CONFIG | {"quantization_config": quantization}
    (path / "config.json").write_text(json.dumps(config))
    return values


@pytest.mark.parametrize("level", [0, 3])
def test_fp8_and_bf16_checkpoints_bit_for_bit(tmp_path: Path, level: int) -> None:
    tensors = bf16_checkpoint(tmp_path / "bf16")
    fp8_values = fp8_checkpoint(tmp_path / "fp8", tensors)
    bf16_values = {name: tensor.float() for name, tensor in tensors.items()}
    for kind, values in (("bf16", bf16_values), ("fp8", fp8_values)):
        report = convert(tmp_path / kind, tmp_path / f"{kind}-out", "fp32", level)
        assert report.dropped == ()
        source = Tensors({name: value.numpy() for name, value in values.items()})
        made, _ = optimize_parts(build_parts(FP8_CONFIG), level)
        found = stored(Artifact.open(report.path))
        assert set(found) == set(made.weights)
        for name, weight in made.weights.items():
            np.testing.assert_array_equal(found[name], weight.expr.read(source), err_msg=name)


@pytest.mark.parametrize(("model_type", "index"), ALL)
def test_converted_logits(tmp_path: Path, model_type: str, index: int) -> None:
    """The artifact alone, through the reference backend, against the checkpoint's own library."""
    tiny = tiny_checkpoint(model_type, index, tmp_path / "hf")
    prompts = prompts_for([9], tiny.config["vocab_size"])
    want = tiny.logits(prompts[0])
    errors = {}
    for quant in ("fp32", "bf16", "w8", "w6", "w5", "w4", "w3"):
        artifact = Artifact.open(convert(tiny.path, tmp_path / quant, quant).path)
        weights = stored(artifact)
        backend = ReferenceBackend(artifact.graph(), weights.__getitem__)
        errors[quant] = relative_error(run_schedule(backend, prompts, [(9,)])[0], want)
    assert errors["fp32"] < 1e-4
    assert errors["bf16"] < 0.1
    assert errors["fp32"] < errors["bf16"] < errors["w4"]
    assert errors["fp32"] < errors["w8"]


def test_report_manifest_and_progress(tmp_path: Path) -> None:
    tiny = tiny_checkpoint("deepseek_v3", 0, tmp_path / "hf")
    (tiny.path / "tokenizer.json").write_text('{"any": "thing"}')
    (tiny.path / "notes.txt").write_text("not copied")
    calls: list[tuple[int, int, str]] = []
    report = convert(
        *(tiny.path, tmp_path / "out", "w4"),
        calibration=False,
        progress=lambda *call: calls.append(call),
    )
    artifact = Artifact.open(report.path)
    manifest = artifact.manifest
    order = weight_order(artifact.parts())
    assert [label for _, _, label in calls] == [weight.name for weight in order]
    assert calls[-1][:2] == (report.nbytes, report.nbytes)
    assert all(a[0] < b[0] for a, b in pairwise(calls))
    assert (manifest["quant"], manifest["optimize_level"]) == ("w4", 3)
    assert (manifest["nodes_level_0"], manifest["nodes"]) == (report.nodes_level_0, report.nodes)
    assert report.nodes == len(artifact.graph().nodes) < report.nodes_level_0
    assert [record["name"] for record in manifest["passes"]] == [p.name for p in report.passes]
    tensors = load_file(tiny.path / "model.safetensors")
    assert report.source_nbytes == sum(t.nbytes for t in tensors.values())
    assert (report.path / "tokenizer.json").read_text() == '{"any": "thing"}'
    assert not (report.path / "notes.txt").exists()
    config = (report.path / "config.json").read_bytes()
    assert config == (tiny.path / "config.json").read_bytes()


def test_an_experts_matrices_are_one_read(tmp_path: Path) -> None:
    tiny = tiny_checkpoint("deepseek_v2", 0, tmp_path / "hf")
    artifact = Artifact.open(convert(tiny.path, tmp_path / "out").path)
    nodes = [node for node in artifact.graph().nodes if node.op == "moe"]
    assert nodes
    stored = {w.name: w for w in read_program((artifact.path / "program.bin").read_bytes()).weights}
    for node in nodes:
        for gate_up, down in zip(node.weights[::2], node.weights[1::2], strict=True):
            (first,), (second,) = stored[gate_up].pieces, stored[down].pieces
            assert first.shard == second.shard
            assert 0 <= second.offset - (first.offset + first.nbytes) < 4096


def draft_weights(config: dict[str, Any]) -> tuple[str, ...]:
    draft = build_draft(config)
    assert draft is not None
    return tuple(draft.weights)


def test_missing_mtp_layers_are_dropped(tmp_path: Path) -> None:
    tiny = tiny_checkpoint("deepseek_v3", 0, tmp_path / "hf")
    file = tiny.path / "model.safetensors"
    save_file({n: t for n, t in load_file(file).items() if ".layers.2." not in n}, file)
    report = convert(tiny.path, tmp_path / "out")
    assert report.dropped == draft_weights(tiny.config)
    artifact = Artifact.open(report.path)
    assert artifact.parts().draft is None
    assert artifact.graph().outputs == ["logits"]
    assert not (report.path / "draft.json").exists()
    assert CpuBackend(report.path).draft_state is None


def test_an_incomplete_mtp_layer_is_dropped_whole(tmp_path: Path) -> None:
    tiny = tiny_checkpoint("deepseek_v3", 0, tmp_path / "hf")
    file = tiny.path / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.2.eh_proj.weight"]
    save_file(tensors, file)
    report = convert(tiny.path, tmp_path / "out")
    assert report.dropped == draft_weights(tiny.config)
    assert Artifact.open(report.path).parts().draft is None


def test_a_draft_part_without_an_embedding_and_a_head_of_its_own(tmp_path: Path) -> None:
    tiny = tiny_checkpoint("deepseek_v3", 0, tmp_path / "hf")
    file = tiny.path / "model.safetensors"
    tensors = load_file(file)
    own = {"embed_tokens": "model.embed_tokens", "shared_head.head": "lm_head"}
    for name, other in own.items():
        tensors[f"model.layers.2.{name}.weight"] = tensors[f"{other}.weight"].clone()
    save_file(tensors, file)
    copies = convert(tiny.path, tmp_path / "copies", "w4", calibration=False)
    for name in own:
        del tensors[f"model.layers.2.{name}.weight"]
    save_file(tensors, file)
    none = convert(tiny.path, tmp_path / "none", "w4", calibration=False)
    assert none.dropped == none.unused == copies.unused == ()
    first, second = (Artifact.open(each.path) for each in (copies, none))
    draft = first.parts().draft
    assert draft is not None
    assert {"embed_tokens.weight", "lm_head.weight"} <= draft.weights.keys()
    assert first.parts() == second.parts()
    for name in first.parts().weights:
        assert np.array_equal(first.tensor(name), second.tensor(name))
    assert first.weights_nbytes == second.weights_nbytes


def test_tensors_of_equal_content_are_stored_once(tmp_path: Path) -> None:
    tiny = tiny_checkpoint("llama", 0, tmp_path / "hf")
    file = tiny.path / "model.safetensors"
    plain = convert(tiny.path, tmp_path / "plain", "bf16")
    tensors = load_file(file)
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, file)
    tied = convert(tiny.path, tmp_path / "tied", "bf16")
    assert len(Artifact.open(tied.path).graph().weights) + 1 == len(
        Artifact.open(plain.path).graph().weights
    )


def test_level_3_reuses_memory(tmp_path: Path) -> None:
    tiny = tiny_checkpoint("llama", 0, tmp_path / "hf")
    arenas = []
    for level in (2, 3):
        path = convert(tiny.path, tmp_path / str(level), optimize_level=level).path
        arenas.append(read_program((path / "program.bin").read_bytes()).arenas)
    assert arenas[1][0] < arenas[0][0] / 2


def test_tensors_are_checked_before_anything_is_written(tmp_path: Path) -> None:
    tiny = tiny_checkpoint("llama", 0, tmp_path / "hf")
    file = tiny.path / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.mlp.up_proj.weight"
    save_file(tensors | {name: tensors[name].T.contiguous()}, file)
    with pytest.raises(CheckpointError, match=r"up_proj.*has shape \[36, 53\]"):
        convert(tiny.path, tmp_path / "out")
    del tensors[name]
    save_file(tensors, file)
    with pytest.raises(TensorNotFoundError, match="up_proj"):
        convert(tiny.path, tmp_path / "out")
    assert os.listdir(tmp_path) == ["hf"]


def test_nan_in_a_weight(tmp_path: Path) -> None:
    tiny = tiny_checkpoint("llama", 0, tmp_path / "hf")
    file = tiny.path / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"norm.weight.*NaN"):
        convert(tiny.path, tmp_path / "out")
    assert os.listdir(tmp_path) == ["hf"]


def test_impossible_arguments(tmp_path: Path) -> None:
    tiny = tiny_checkpoint("llama", 0, tmp_path / "hf")
    with pytest.raises(RequestError, match="w7"):
        convert(tiny.path, tmp_path / "out", "w7")
    with pytest.raises(RequestError, match="recipe"):
        convert(tiny.path, tmp_path / "out", ["w4"])  # type: ignore[arg-type]
    for seed in (-1, "x", 1.5):
        with pytest.raises(RequestError, match="seed"):
            convert(tiny.path, tmp_path / "out", random_weights=True, seed=seed)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="level"):
        convert(tiny.path, tmp_path / "out", "w4", 4)
    with pytest.raises(CheckpointError, match="missing"):
        convert(tmp_path / "nothing", tmp_path / "out")
    with pytest.raises(DeepmnnError, match=r"the source .* is "):
        convert(tiny.path, tiny.path, overwrite=True)


@pytest.mark.parametrize("quant", ["fp32", "w8", "w4"])
def test_random_weights(tmp_path: Path, quant: str) -> None:
    """From config.json alone; the same seed the same bytes, and logits that mean something."""
    (tmp_path / "config.json").write_text(json.dumps(FP8_CONFIG))
    reports = [
        convert(source, tmp_path / f"{i}", quant, random_weights=True, seed=seed)
        for i, (source, seed) in enumerate(
            [(tmp_path, 0), (tmp_path / "config.json", 0), (tmp_path, 1)]
        )
    ]
    first, same, other = (stored(Artifact.open(report.path)) for report in reports)
    for name, values in first.items():
        np.testing.assert_array_equal(values, same[name])
        assert not np.array_equal(values, other[name])
    backend = ReferenceBackend(Artifact.open(reports[0].path).graph(), first.__getitem__)
    logits = run_schedule(backend, prompts_for([9], 150), [(9,)])[0]
    assert 0.1 < logits.std() < 10
    chunked = run_schedule(backend, prompts_for([9], 150), [(1,)] * 9)[0]
    assert relative_error(chunked, logits) < 1e-4
    absorbed = ReferenceBackend(backend.graph, first.__getitem__, "absorbed")
    logits = run_schedule(absorbed, prompts_for([9], 150), [(9,)])[0]
    assert relative_error(logits, chunked) < 0.1, "the matrices of latent attention belong together"
    gate_up = first["layers.0.mlp.gate_proj+up_proj.weight"].reshape(-1, 2, 16, 200)
    assert not gate_up[-1, :, 300 % 16 :].any(), "padding is zero"


def test_random_weights_compare_across_levels_in_fp32(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(FP8_CONFIG))
    logits = []
    for level in (0, 3):
        report = convert(tmp_path, tmp_path / str(level), "fp32", level, random_weights=True)
        artifact = Artifact.open(report.path)
        backend = ReferenceBackend(artifact.graph(), stored(artifact).__getitem__)
        logits.append(run_schedule(backend, prompts_for([9], 150), [(9,)])[0])
    assert relative_error(logits[1], logits[0]) < 1e-4


# ------------------------------------------------------------------ interrupted conversions


def assert_nothing_loads(directory: Path) -> None:
    for entry in directory.iterdir():
        with pytest.raises(ArtifactError):
            Artifact.open(entry)


def in_child(body: Callable[[], int]) -> int:
    """Runs body in a forked process; its result, or minus the signal that killed it."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            code = body()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def convert_and_die(source: Path, out: Path, calls: int, overwrite: bool = False) -> int:
    """Converts and sends itself SIGKILL before the given call that changes the disk.

    Returns how many such calls were left over (at most 98).
    """
    left = calls

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return wrapper

    os.fsync, os.mkdir, os.rename = counted(os.fsync), counted(os.mkdir), counted(os.rename)
    directory_writer.Sink.write = counted(directory_writer.Sink.write)  # type: ignore[method-assign]
    convert(source, out, "w8", overwrite=overwrite)
    return min(left, 98)


@pytest.mark.slow
def test_killed_at_every_moment(tmp_path: Path) -> None:
    """Before each call that changes the disk: nothing that loads is left, unless all is there."""
    tiny = tiny_checkpoint("llama", 0, tmp_path / "hf")
    work = tmp_path / "work"
    work.mkdir()
    calls, finished = 0, False
    while not finished:
        code = in_child(lambda: convert_and_die(tiny.path, work / "out", calls))  # noqa: B023
        if (work / "out").exists():
            Artifact.open(work / "out", verify=True).graph()
            finished = code != -signal.SIGKILL
            shutil.rmtree(work / "out")
        else:
            assert code == -signal.SIGKILL
            assert_nothing_loads(work)
        calls += 1
    assert calls > 20
    convert(tiny.path, work / "out")
    assert os.listdir(work) == ["out"]  # what the killed ones left is gone


@pytest.mark.slow
def test_killed_while_overwriting(tmp_path: Path) -> None:
    """The old artifact loads until the new one does."""
    tiny = tiny_checkpoint("llama", 0, tmp_path / "hf")
    work = tmp_path / "work"
    convert(tiny.path, work / "out", "fp32")
    calls, code = 0, -signal.SIGKILL
    while code == -signal.SIGKILL:
        code = in_child(lambda: convert_and_die(tiny.path, work / "out", calls, True))  # noqa: B023
        assert Artifact.open(work / "out").manifest["quant"] in ("fp32", "w8")
        calls += 1
    assert Artifact.open(work / "out").manifest["quant"] == "w8"


def test_killed_from_outside(tmp_path: Path) -> None:
    """kill -9 at random times of a real process."""
    (tmp_path / "config.json").write_text(json.dumps(FP8_CONFIG | {"num_hidden_layers": 30}))
    script = (
        "import sys; from deepmnn.conversion.convert import convert; "
        "convert(sys.argv[1], sys.argv[2], 'fp32', random_weights=True)"
    )
    random = np.random.default_rng(0)
    for number in range(4):
        work = tmp_path / str(number)
        work.mkdir()
        arguments = [sys.executable, "-c", script, str(tmp_path), str(work / "out")]
        with subprocess.Popen(arguments) as process:
            while process.poll() is None and not os.listdir(work):
                time.sleep(0.001)
            time.sleep(random.uniform(0, 0.3))
            process.kill()
        if process.returncode == 0:
            Artifact.open(work / "out", verify=True)
        else:
            assert_nothing_loads(work)


def convert_with_little_room(source: Path, out: Path, nbytes: int) -> int:
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, nbytes))
    try:
        convert(source, out, "w8")
    except StorageError as error:
        return 7 if "cannot be written" in str(error) else 8
    return 0


def test_full_disk(tmp_path: Path) -> None:
    """Files that may not grow past a size: a StorageError, and nothing is left."""
    tiny = tiny_checkpoint("llama", 0, tmp_path / "hf")
    whole = convert(tiny.path, tmp_path / "whole", "w8")
    largest = max(file.stat().st_size for file in whole.path.iterdir())
    limits = [0, 1, 500, 5000, largest // 3, largest // 2, largest - 1]
    for nbytes in limits:
        code = in_child(lambda: convert_with_little_room(tiny.path, tmp_path / "out", nbytes))  # noqa: B023
        assert code == 7, nbytes
        assert sorted(os.listdir(tmp_path)) == ["hf", "whole"]
    assert in_child(lambda: convert_with_little_room(tiny.path, tmp_path / "out", largest)) == 0
    Artifact.open(tmp_path / "out")
