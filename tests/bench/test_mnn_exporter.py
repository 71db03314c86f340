"""The comparison with MNN's exporter: its measures, and that the exporter reports to nobody."""

from __future__ import annotations

import importlib.util
import json
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from torch.nn import functional as F  # noqa: N812
from transformers import Qwen2Config

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

import mnn_exporter as comparison
import small_dense

needs_mnn = pytest.mark.skipif(
    importlib.util.find_spec("_tools") is None, reason="the MNN wheel is not installed"
)

MODEL = {
    "sourceType": "ONNX",
    "tensorNumber": 1,
    "tensorName": ["x"],
    "outputName": ["x"],
    "oplists": [
        {
            "type": "Input",
            "name": "x",
            "outputIndexes": [0],
            "main_type": "Input",
            "main": {"dims": [1, 3], "dtype": "DT_FLOAT", "dformat": "NCHW"},
            "defaultDimentionFormat": "NCHW",
        }
    ],
}

EXPORTER = """
import json, os, sys
def main():
    arguments = sys.argv[1:]
    assert os.path.isfile("checkpoint/config.json"), os.listdir(".")
    os.mkdir("model")
    with open("model.json", "w") as file:
        json.dump({model}, file)
    from MNN.tools import mnnconvert
    sys.argv = ["", "-f", "JSON", "--modelFile", "model.json", "--MNNModel", "model/llm.mnn"]
    mnnconvert.main()
    loaded = [name for name in sys.modules if name.startswith("MNN")]
    with open("model/config.json", "w") as file:
        json.dump({{"arguments": arguments, "loaded": loaded}}, file)
"""


def mnn_source(tmp_path: Path, exporter: str, mnn_version: str = "3.6.1") -> Path:
    folder = tmp_path / "MNN" / "transformers" / "llm" / "export"
    folder.mkdir(parents=True)
    (folder / "llmexport.py").write_text(exporter)
    header = tmp_path / "MNN" / comparison.HEADER
    header.parent.mkdir(parents=True)
    numbers = zip(("MAJOR", "MINOR", "PATCH"), mnn_version.split("."), strict=True)
    header.write_text("".join(f"#define MNN_VERSION_{k} {v}\n" for k, v in numbers))
    return folder.parents[2]


def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "a-checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize("shape", [(1, 2), (3, 5), (17, 101)])
def test_kl_divergence_is_torchs(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(shape[0])
    p, q = (4 * rng.standard_normal(shape).astype(np.float32) + 90 for _ in range(2))
    wanted = F.kl_div(
        F.log_softmax(torch.tensor(q).double(), -1),
        F.log_softmax(torch.tensor(p).double(), -1),
        log_target=True,
        reduction="batchmean",
    )
    assert comparison.kl_divergence(p, q) == pytest.approx(float(wanted), rel=1e-9)
    assert comparison.kl_divergence(p, p) == 0


def test_a_missing_checkout_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"missing: .*nowhere.*llmexport\.py"):
        comparison.exporter_folder(tmp_path / "nowhere")


@needs_mnn
def test_another_version_than_the_wheels_is_refused(tmp_path: Path) -> None:
    source = mnn_source(tmp_path, "", mnn_version="3.5.0")
    with pytest.raises(SystemExit, match=r"MNN is MNN 3\.5\.0; expected the wheel's, 3\.6\.1"):
        comparison.exporter_folder(source)


@needs_mnn
def test_the_exporter_runs_with_the_bare_converter(tmp_path: Path) -> None:
    source = comparison.exporter_folder(
        mnn_source(tmp_path, EXPORTER.format(model=json.dumps(MODEL)))
    )
    out = tmp_path / "out"
    comparison.export_theirs(
        sys.executable, source, checkpoint(tmp_path), out, ["--quant_bit", "4"]
    )
    assert (out / "model" / "llm.mnn").stat().st_size > 0
    found = json.loads((out / "model" / "config.json").read_text())
    assert found["arguments"][-2:] == ["--quant_bit", "4"]
    assert found["arguments"][:2] == ["--path", "checkpoint"]
    assert sorted(found["loaded"]) == ["MNN.tools", "MNN.tools.mnnconvert"]  # our two, no more


@needs_mnn
def test_a_failing_exporter_is_quoted(tmp_path: Path) -> None:
    source = comparison.exporter_folder(
        mnn_source(tmp_path, "def main():\n    raise ValueError('no such architecture')")
    )
    with pytest.raises(SystemExit, match="ValueError: no such architecture"):
        comparison.export_theirs(sys.executable, source, checkpoint(tmp_path), tmp_path / "out", [])


def test_sizes_are_those_of_the_files(tmp_path: Path) -> None:
    config = {"llm_model": "llm.mnn", "llm_weight": "llm.mnn.weight"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for name, size in (("llm.mnn", 7), ("llm.mnn.weight", 90), ("embeddings_int8.bin", 11)):
        (tmp_path / name).write_bytes(bytes(size))
    row = comparison.Row("any", tmp_path)
    comparison.measure_sizes(row, matrix_weights=160)
    assert (row.graph, row.weights, row.embeddings) == (7, 90, 11)
    assert row.bits_per_weight == 4.5


@pytest.mark.parametrize("tied", [False, True])
def test_matrix_weights_are_those_of_the_linear_maps(tmp_path: Path, tied: bool) -> None:
    hidden, ffn, vocab, kv = 12, 20, 31, 4
    config = Qwen2Config(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_hidden_layers=3,
        num_attention_heads=3,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
    )
    layer = 2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * ffn
    config.save_pretrained(tmp_path)
    assert comparison.dimensions(tmp_path) == (vocab, 3 * layer + hidden * vocab)


def test_what_is_held_out_is_not_trained_on() -> None:
    texts = small_dense.held_out_texts(12)
    assert texts == small_dense.held_out_texts(12)
    assert len(set(texts)) == 12
    tokenizer = Tokenizer.from_file(str(small_dense.TOKENIZER / "tokenizer.json"))
    batches = list(islice(small_dense.windows(tokenizer, rows=2, length=64, seed=1), 20))
    assert all(batch.shape == (2, 64) for batch in batches)
    stream = tokenizer.decode(torch.cat(batches).flatten().tolist(), skip_special_tokens=False)
    assert stream.count("<think>") > 5
    questions = {text.split("<｜User｜>")[1].split("<｜Assistant｜>")[0] for text in texts}
    assert not any(question + "<｜Assistant｜>" in stream for question in questions)


def test_texts_are_random_without_a_tokenizer(tmp_path: Path) -> None:
    texts = comparison.token_texts(tmp_path, vocab_size=13, count=3)
    assert texts == comparison.token_texts(tmp_path, vocab_size=13, count=3)
    assert {token for ids in texts for token in ids} == set(range(13))
