"""MNN's whole chat, as its apps run it: template, tokenizer, network, sampler, stop token."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deepmnn.backends.mnn.wheel import captured, runtime
from deepmnn.conversion.bundled import CHECKPOINT
from deepmnn.conversion.convert import convert
from deepmnn.exporters.mnn.export import export
from deepmnn.text.tokenizer import Tokenizer


def test_mnn_answers_on_its_own(tmp_path: Path) -> None:
    pytest.importorskip("_mnncengine")
    convert(CHECKPOINT, tmp_path / "model", quant="w8")
    export(tmp_path / "model", tmp_path / "mnn")
    tokenizer = Tokenizer(CHECKPOINT)
    config = tmp_path / "mnn" / "config.json"
    exact = {"precision": "high", "memory": "normal", "thread_num": 1}
    config.write_text(json.dumps({**json.loads(config.read_text()), **exact}))
    question = "What is 12 + 7?"
    with captured():
        llm = runtime().llm.create(str(config), False)
        assert llm.load()
        answer = llm.response(question, False, 200)
    ids = llm.get_context()["output_tokens"]
    assert ids[-1] == tokenizer.token_id("<｜end▁of▁sentence｜>")
    assert answer.rstrip("\n") == tokenizer.decode(ids).rstrip("\n")
    assert answer.rstrip().endswith("</think>\n\nThe answer is **19**.")
    prompt = llm.apply_chat_template([{"role": "user", "content": question}])
    messages = [{"role": "user", "content": question}]
    assert llm.tokenizer_encode(prompt) == tokenizer.encode_chat(messages)
