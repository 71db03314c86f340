"""The adapter inside the real harness, beside the harness's own model on transformers."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
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
        "generation_kwargs": {"until": ["Ones", "xyz"], "max_gen_toks": 20},
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


CHILD = """
import json, sys
import lm_eval.evaluator, lm_eval.tasks
import deepmnn.measure.lm_eval

lm_eval.evaluator.add_env_info = lambda results: None  # which lists every package, slowly

folder, tasks, models = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
manager = lm_eval.tasks.TaskManager(include_path=folder)
found = {}
for model, args in models.items():
    done = lm_eval.evaluator.simple_evaluate(
        model, model_args=args, tasks=tasks, task_manager=manager, device="cpu", bootstrap_iters=0
    )
    found[model] = {
        task: [sample["resps"] for sample in sorted(samples, key=lambda s: s["doc_id"])]
        for task, samples in done["samples"].items()
    }
json.dump(found, open(f"{folder}/found.json", "w"))
"""


def responses(folder: Path, models: dict[str, str]) -> dict[str, dict[str, list[Any]]]:
    """What each model answers to each task's documents, in a process without warnings as errors."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "data")}
    command = [
        sys.executable,
        "-c",
        CHILD,
        str(folder),
        json.dumps(list(TASKS)),
        json.dumps(models),
    ]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, dict[str, list[Any]]] = json.loads((folder / "found.json").read_text())
    return found


@pytest.mark.slow
@pytest.mark.skipif(not all(HERE.values()), reason="lm-eval[hf] is not installed")
def test_the_harness_sees_the_same_in_both_models(tmp_path: Path) -> None:
    (tmp_path / "documents.jsonl").write_text("\n".join(map(json.dumps, DOCUMENTS)))
    for name, task in TASKS.items():
        files = {"test": str(tmp_path / "documents.jsonl")}
        whole = {"task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": files}}
        (tmp_path / f"{name}.yaml").write_text(json.dumps({**whole, "test_split": "test", **task}))
    checkpoint = shutil.copytree(CHECKPOINT, tmp_path / "checkpoint")
    # Its max_new_tokens would be stronger in transformers than the task's own limit.
    (checkpoint / "generation_config.json").write_text('{"bos_token_id": 0, "eos_token_id": 1}')
    model = f"pretrained={checkpoint},max_length=64"
    both = {"hf": f"{model},dtype=float32", "deepmnn": f"{model},quant=fp32,threads=1"}
    found = responses(tmp_path, both)
    ours, theirs = found["deepmnn"], found["hf"]
    for mine, other in zip(ours["sums"], theirs["sums"], strict=True):
        for ((logprob, greedy),), (wanted,) in zip(mine, other, strict=True):
            assert logprob == pytest.approx(wanted[0], abs=1e-4)
            assert greedy == wanted[1]
    for mine, other in zip(ours["prose"], theirs["prose"], strict=True):
        assert mine[0] == pytest.approx(other[0], rel=1e-5, abs=1e-4)
    assert len(DOCUMENTS[2]["text"]) > 3 * 64, "some texts have several windows"
    assert ours["answers"] == theirs["answers"]
    assert "First" in ours["answers"][0][0][0]
