"""The adapter inside the real harness, beside the harness's own model on transformers."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deepmnn.conversion.bundled import CHECKPOINT
from deepmnn.errors import MissingDependencyError

HERE = {name: importlib.util.find_spec(name) is not None for name in ("lm_eval", "accelerate")}
TASKS = {
    "sums": {
        "output_type": "multiple_choice",
        "doc_to_text": "What is {{a}} + 2?",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{label}}",
        "num_fewshot": 2,
        "fewshot_split": "test",
        "metric_list": [{"metric": "acc"}],
    },
    "prose": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}],
    },
    "answers": {
        "output_type": "generate_until",
        "doc_to_text": "What is {{a}} + 2?",
        "doc_to_target": "{{choices[label]}}",
        "generation_kwargs": {"until": ["Ones", "5"], "max_gen_toks": 20},
        "metric_list": [{"metric": "exact_match"}],
    },
}
DOCUMENTS = [
    {
        "a": a,
        "choices": [str(a + 1), str(a + 2), f"{a} + 2 = {a + 2}"],
        "label": 1,
        "text": "So 12. " * a,
    }
    for a in (7, 19, 30)
]


@pytest.mark.skipif(HERE["lm_eval"], reason="lm-eval is installed")
def test_without_the_harness() -> None:
    with pytest.raises(MissingDependencyError, match=r'pip install "deepmnn\[eval\]"'):
        importlib.import_module("deepmnn.measure.lm_eval")


def samples(folder: Path, module: str, *flags: str) -> dict[str, list[dict[str, Any]]]:
    """What the harness notes of each task's documents."""
    out = folder / module
    command = [sys.executable, "-m", module, *flags, "--tasks", ",".join(TASKS)]
    command += ["--include_path", str(folder), "--output_path", str(out), "--log_samples"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "data")}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = {}
    for task in TASKS:
        (path,) = out.rglob(f"samples_{task}_*.jsonl")
        lines = map(json.loads, path.read_text().splitlines())
        found[task] = sorted(lines, key=lambda sample: sample["doc_id"])
    return found


@pytest.mark.slow
@pytest.mark.skipif(not all(HERE.values()), reason="lm-eval[hf] is not installed")
def test_the_harness_sees_the_same_in_both_models(tmp_path: Path) -> None:
    (tmp_path / "documents.jsonl").write_text("\n".join(map(json.dumps, DOCUMENTS)))
    for name, task in TASKS.items():
        files = {"test": str(tmp_path / "documents.jsonl")}
        whole = {"task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": files}}
        (tmp_path / f"{name}.yaml").write_text(json.dumps({**whole, "test_split": "test", **task}))
    model = f"pretrained={CHECKPOINT},max_length=64"
    theirs = samples(
        tmp_path,
        "lm_eval",
        "--model",
        "hf",
        "--model_args",
        f"{model},dtype=float32",
        "--device",
        "cpu",
    )
    ours = samples(
        tmp_path,
        "deepmnn.measure.lm_eval",
        *("--model", "deepmnn", "--model_args", f"{model},quant=fp32,threads=1"),
    )
    for mine, other in zip(ours["sums"], theirs["sums"], strict=True):
        for (found,), (wanted,) in zip(mine["resps"], other["resps"], strict=True):
            assert float(found[0]) == pytest.approx(float(wanted[0]), abs=1e-4)
            assert found[1] == wanted[1]
    for mine, other in zip(ours["prose"], theirs["prose"], strict=True):
        found, wanted = float(mine["resps"][0][0]), float(other["resps"][0][0])
        assert found == pytest.approx(wanted, rel=1e-5, abs=1e-4)
    assert len(ours["prose"][2]["doc"]["text"]) > 3 * 64, "some texts have several windows"
    for mine, other in zip(ours["answers"], theirs["answers"], strict=True):
        assert mine["resps"] == other["resps"]
        assert "First" in mine["resps"][0][0]
