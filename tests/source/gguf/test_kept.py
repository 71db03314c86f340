"""A file's codes stay as they are: of every type, in every place, from the file to the logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter
from typer.testing import CliRunner

from byte_tokenizer import write_tokenizer
from deepmnn.artifact.reader import Artifact
from deepmnn.backends.base import F32
from deepmnn.backends.cpu.backend import CpuBackend
from deepmnn.backends.reference import ReferenceBackend
from deepmnn.cli import app
from deepmnn.conversion.calibration_set import CalibrationSet
from deepmnn.conversion.carry_out import choose
from deepmnn.conversion.convert import convert
from deepmnn.conversion.plan import Plan, plan
from deepmnn.conversion.write import write
from deepmnn.errors import CheckpointError
from deepmnn.formats import FORMATS, named
from deepmnn.models import build
from deepmnn.quant.recipe import RECIPES
from deepmnn.quant.store import stored_values
from deepmnn.source.gguf.file import GgufFile
from deepmnn.source.gguf.tensor import Tensor
from deepmnn.source.gguf.types import TYPES
from deepmnn.source.gguf.weights import Stored
from deepmnn.source.open import open_source
from gguf_blocks import drawn
from gguf_files import KEPT, Store, mixed_types, tokenizer_keys, write_floats, write_gguf
from parity import Runner
from source_memory import peak_of
from tiny_models import CONFIGS, MLA, TinyModel, checkpoint_of

Q = GGMLQuantizationType


def tensor_of(path: Path, data: Any, kind: GGMLQuantizationType) -> Tensor:
    """A file's only tensor."""
    writer = GGUFWriter(path, "llama")
    writer.add_tensor("t", data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return GgufFile(path).tensors["t"]


def test_these_types_are_kept_and_no_others() -> None:
    assert {kind.name for kind in TYPES.values() if kind.kept_format} == {k.name for k in KEPT}
    for kind in TYPES.values():
        if kind.kept_format:
            assert FORMATS[kind.kept_format].is_kept


@pytest.mark.parametrize("blocks", [1, 3, 9])
@pytest.mark.parametrize("rows", [1, 37])
@pytest.mark.parametrize("kind", KEPT)
def test_codes_stand_for_the_package_s_numbers(
    tmp_path: Path, kind: GGMLQuantizationType, rows: int, blocks: int
) -> None:
    shape = (rows, blocks * GGML_QUANT_SIZES[kind][0])
    data = drawn(shape, kind)
    tensor = tensor_of(tmp_path / "a.gguf", data, kind)
    want = gguf.dequantize(data, kind)
    order = np.random.default_rng(0).permutation(rows)
    for given in (None, order):
        codes = tensor.codes(given)
        assert codes is not None
        for name, field in codes.fields(*shape).items():
            array = getattr(codes, name)
            assert (array.dtype, array.shape) == (field.dtype, field.shape)
        rearranged = np.empty_like(want)
        rearranged[np.arange(rows) if given is None else given] = want
        np.testing.assert_array_equal(codes.values().view(np.uint32), rearranged.view(np.uint32))
        np.testing.assert_array_equal(tensor.read(given), codes.values(), strict=True)


def test_codes_take_less_memory_than_numbers(tmp_path: Path) -> None:
    shape = (2048, 4096)
    tensor = tensor_of(tmp_path / "a.gguf", drawn(shape, Q.Q4_K), Q.Q4_K)
    for order in (None, np.arange(shape[0])[::-1]):
        codes, peak = peak_of(lambda order=order: tensor.codes(order))
        assert codes is not None
        assert peak < 2.6 * codes.codes.nbytes + (8 << 20)


# ------------------------------------------------------------------------------------------ models

_SIZES = {"hidden_size": 256, "intermediate_size": 512, "vocab_size": 99}
MODELS: dict[str, dict[str, Any]] = {
    "llama": _SIZES | {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 32},
    "deepseek_v2": MLA
    | _SIZES
    | {"moe_intermediate_size": 256, "kv_lora_rank": 256, "q_lora_rank": 256, "n_group": 1}
    | {"num_attention_heads": 4, "num_key_value_heads": 4, "topk_group": 1}
    | {"qk_nope_head_dim": 32, "qk_rope_head_dim": 32, "v_head_dim": 64},
}


def model_of(model_type: str, path: Path) -> TinyModel:
    return checkpoint_of(model_type, CONFIGS["llama"][0] | MODELS[model_type], path)


def q4_k_m(name: str, values: F32) -> GGMLQuantizationType:
    """As llama.cpp's Q4_K_M: some tensors in more bits, keys and values of MLA in Q8_0."""
    if values.ndim == 1 or "ffn_gate_inp" in name:
        return Q.F32
    if values.shape[-1] % 256:
        return Q.F16 if values.shape[-1] % 32 else Q.Q8_0
    return Q.Q6_K if any(part in name for part in ("attn_v", "ffn_down", "output.")) else Q.Q4_K


def planned(path: Path, recipe: str = "w8", level: int = 3) -> Plan:
    return plan(open_source(path), RECIPES[recipe], level)


@pytest.mark.parametrize("level", [0, 3])
@pytest.mark.parametrize("store", [q4_k_m, mixed_types])
@pytest.mark.parametrize("model_type", MODELS)
def test_numbers_and_logits_are_the_file_s(
    tmp_path: Path, model_type: str, store: Store, level: int
) -> None:
    """The oracle is a file of floats that the package decoded; its rows' order is test_models'."""
    tiny = model_of(model_type, tmp_path / "hf")
    stored = write_gguf(tiny, tmp_path / "model.gguf", store)
    floats = open_source(write_floats(tiny, stored, tmp_path / "floats.gguf"))
    made = planned(tmp_path / "model.gguf", "w8", level)
    write(made, tmp_path / "out")
    artifact = Artifact.open(tmp_path / "out")
    for weight in made.weights:
        if named(weight.format).is_kept:
            found = stored_values(weight, artifact.tensor(weight.name))
            np.testing.assert_array_equal(found, weight.expr.read(floats))
    others = {w.role for w in made.weights if not named(w.format).is_kept} - {"vector", "router"}
    assert others == ({"latent"} if model_type == "deepseek_v2" else set())
    formats = {made.source.kept_format(name) for name in made.source.names()} - {None}
    assert len(formats) >= (2 if store is q4_k_m else 6)
    assert {w.format for w in made.weights if named(w.format).is_kept} == formats

    graph = build(floats.config)
    exact = logits(ReferenceBackend(graph, lambda name: graph.weights[name].expr.read(floats)))
    given = logits(CpuBackend(tmp_path / "out", threads=1))
    errors = np.linalg.norm(given - exact, axis=1) / np.linalg.norm(exact, axis=1)
    assert np.median(errors) < 0.03  # a token that is near a border goes to other experts


def logits(backend: Any) -> F32:
    ids = np.random.default_rng(0).integers(0, _SIZES["vocab_size"], 19).tolist()
    runner = Runner(backend)
    first = runner.step({0: ids[:16]})[0]
    return np.concatenate([first, *(runner.step({0: [one]})[0] for one in ids[16:])])


@pytest.mark.parametrize(("most", "copies", "distinct"), [(0, 0, 5), (63, 9, 7)])
def test_planning_decodes_no_tensors_to_compare_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, copies: int, distinct: int
) -> None:
    """Matrices that are all zeros are not compared, equal ones are found by their stored bytes: but
    for queries and keys, whose rows have another order than those of other matrices.
    """
    tiny = model_of("llama", tmp_path / "hf")
    path = tmp_path / "model.gguf"
    write_gguf(tiny, path, lambda name, values: Q.F32 if values.ndim == 1 else Q.Q4_0)
    raw = bytearray(path.read_bytes())
    for tensor in GgufFile(path).tensors.values():
        if tensor.type.kept_format:
            codes = np.random.default_rng(0).integers(0, most + 1, tensor.nbytes, np.uint8)
            raw[tensor.begin : tensor.end] = codes.tobytes()
    path.write_bytes(raw)
    decoded: list[str] = []
    read = Tensor.read

    def watched(self: Tensor, *given: Any) -> F32:
        decoded.extend([self.name] if len(self.shape) > 1 else [])
        return read(self, *given)

    monkeypatch.setattr(Tensor, "read", watched)
    made = planned(path, "w8", level=1)
    assert decoded == []
    matrices = [weight for weight in made.weights if named(weight.format).is_kept]
    assert len(matrices) == 2 + 7 * tiny.config["num_hidden_layers"] - copies
    numbers = {(w.shape, w.expr.read(made.source).tobytes()) for w in matrices}
    assert len(numbers) == distinct


def test_what_is_not_stored_as_codes_has_none(tmp_path: Path) -> None:
    """The two halves of kv_b_proj, vectors, types without a kept format."""
    tiny = model_of("deepseek_v2", tmp_path / "hf")

    def store(name: str, values: F32) -> GGMLQuantizationType:
        if "attn_output" in name:
            return Q.TQ2_0
        return q4_k_m(name, values) if "norm" not in name else Q.Q8_0

    write_gguf(tiny, tmp_path / "model.gguf", store)
    source = open_source(tmp_path / "model.gguf")
    layer = "model.layers.0."
    for name in ("self_attn.kv_b_proj", "self_attn.o_proj", "input_layernorm"):
        assert source.kept_format(f"{layer}{name}.weight") is None
        assert source.codes(f"{layer}{name}.weight") is None
    assert source.kept_format(f"{layer}self_attn.q_a_proj.weight") == "q4_k"


def test_scaled_codes_are_numbers(tmp_path: Path) -> None:
    data = drawn((4, 64), Q.Q4_0)
    tensor = tensor_of(tmp_path / "a.gguf", data, Q.Q4_0)
    scale = tensor_of(tmp_path / "b.gguf", np.array([0.5], np.float32), Q.F32)
    plain, scaled = Stored(tensor), Stored(tensor, 0, scale)
    assert plain.kept_format == "q4_0"
    assert plain.codes() is not None
    assert scaled.kept_format is None
    assert scaled.codes() is None
    np.testing.assert_array_equal(scaled.read(), plain.read() / 2)


def with_tokenizer(path: Path, store: Store) -> Path:
    """A file of a llama that reads bytes."""
    fields = CONFIGS["llama"][0] | MODELS["llama"] | {"vocab_size": 264}
    tiny = checkpoint_of("llama", fields, path / "hf")
    write_tokenizer(path / "tokenizer")
    spec = json.loads((path / "tokenizer" / "tokenizer.json").read_text())
    spec["model"]["vocab"]["ab"] = 263
    spec["model"]["merges"] = ["a b"]  # a list without any is not written
    write_gguf(tiny, path / "model.gguf", store, tokenizer=tokenizer_keys(spec, "default"))
    return path / "model.gguf"


@pytest.mark.parametrize(("kind", "starts"), [(Q.Q4_0, False), (Q.MXFP4, False), (Q.Q6_K, True)])
def test_a_calibration_starts_only_where_something_is_rounded(
    tmp_path: Path, kind: GGMLQuantizationType, starts: bool
) -> None:
    path = with_tokenizer(tmp_path, lambda name, values: Q.F32 if values.ndim == 1 else kind)
    assert choose(planned(path, "w8"), None, 8) is None
    assert isinstance(choose(planned(path, "w4"), None, 8), CalibrationSet) == starts


@pytest.mark.parametrize(("quant", "said"), [("w8", True), ("fp32", True), ("w4", False)])
def test_a_calibration_that_would_round_nothing_is_not_run(
    tmp_path: Path, quant: str, said: bool
) -> None:
    path = with_tokenizer(tmp_path, q4_k_m)
    (tmp_path / "texts.txt").write_text("A calibration reads this text. " * 40)
    options = ["--quant", quant, "--calibration", str(tmp_path / "texts.txt")]
    done = CliRunner().invoke(app, ["convert", str(path), str(tmp_path / "out"), *options])
    assert done.exit_code == 0, done.output
    assert ("no calibration: there is no matrix that it would round" in done.output) == said
    assert ("rounded by" in done.output) != said


def test_a_calibration_rounds_only_what_has_more_bits(tmp_path: Path) -> None:
    """Q6_K of a Q4_K_M file, converted to w4."""
    path = with_tokenizer(tmp_path, q4_k_m)
    source = open_source(path)
    formats = [source.kept_format(name) for name in source.names()]
    report = convert(path, tmp_path / "out", "w4", samples=2, report=False)
    assert report.calibration is not None
    assert report.calibration.tensors == formats.count("q6_k") > 0
    artifact = Artifact.open(tmp_path / "out")
    stored = artifact.graph().weights
    assert {weight.format for weight in stored.values()} == {"vector", "w4", "q4_k"}
    for weight in planned(path, "w4").weights:
        assert stored[weight.name].format == weight.format
        if weight.format == "q4_k":
            found = stored_values(weight, artifact.tensor(weight.name))
            np.testing.assert_array_equal(found, weight.expr.read(source))


@pytest.mark.parametrize("kind", [Q.Q4_1, Q.Q5_K, Q.MXFP4])
def test_scales_that_are_no_numbers_are_refused(tmp_path: Path, kind: GGMLQuantizationType) -> None:
    tiny = model_of("llama", tmp_path / "hf")
    path = tmp_path / "model.gguf"
    write_gguf(tiny, path, lambda name, values: Q.F32 if values.ndim == 1 else kind)
    tensor = GgufFile(path).tensors["blk.1.ffn_up.weight"]
    raw = bytearray(path.read_bytes())
    raw[tensor.begin : tensor.begin + 2] = b"\xff\x7f"  # NaN in float16; no number in E8M0
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        write(planned(path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "shape",
    [(4096, 14336), (128256, 4096), (1024, 4096), (151936, 1536), (1408, 2048), (7168, 18432)],
)
@pytest.mark.parametrize("kind", KEPT)
def test_stored_weights_are_as_small_as_the_file(
    kind: GGMLQuantizationType, shape: tuple[int, int]
) -> None:
    """Of Llama 3 8B, Qwen 2.5 1.5B, DeepSeek-V2-Lite and V3."""
    block, nbytes = GGML_QUANT_SIZES[kind]
    ours = FORMATS[kind.name.lower()].nbytes(*shape)
    assert ours <= 1.03 * shape[0] * shape[1] // block * nbytes
