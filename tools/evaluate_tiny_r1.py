"""Scores a tiny-r1 directory on its held-out problems, through Hugging Face transformers.

    python tools/evaluate_tiny_r1.py src/deepmnn/tiny_r1

This is the yardstick the model card quotes: the exported weights in their own dtype, transformers'
DeepSeek-V3, the directory's own tokenizer and chat template, greedy decoding, the number in the
final answer compared.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from arithmetic import parse_answer

console = Console(width=120)


def main(
    directory: Annotated[Path, typer.Argument(help="The exported model.")],
    dtype: Annotated[str, typer.Option(help="bfloat16 or float32.")] = "bfloat16",
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    batch: Annotated[int, typer.Option(help="Problems decoded together.")] = 64,
    show: Annotated[int, typer.Option(help="Wrong answers to print.")] = 3,
) -> None:
    """Print the share of right answers, by kind of problem."""
    torch.set_num_threads(threads)
    tokenizer = AutoTokenizer.from_pretrained(directory, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype))
    model.train(False)
    lines = (directory / "held_out.jsonl").read_text(encoding="utf-8").splitlines()
    problems = sorted(map(json.loads, lines), key=lambda problem: problem["kind"])
    asked: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for start in range(0, len(problems), batch):
        part = problems[start : start + batch]
        chats = [[{"role": "user", "content": problem["question"]}] for problem in part]
        texts = tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)
        inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        inputs.pop("token_type_ids", None)
        with torch.inference_mode():
            ids = model.generate(**inputs, do_sample=False, max_new_tokens=400)
        replies = tokenizer.batch_decode(
            ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        for problem, reply in zip(part, replies, strict=True):
            asked[problem["kind"]] += 1
            right[problem["kind"]] += parse_answer(reply) == problem["answer"]
            if parse_answer(reply) != problem["answer"] and show > 0:
                show -= 1
                console.print(
                    f"wrong, {problem['answer']} expected: {problem['question']}\n{reply}\n",
                    markup=False,
                )
    table = Table("kind", "problems", "right", title=f"{directory.name}, {dtype}, greedy")
    for kind in sorted(asked):
        table.add_row(kind, str(asked[kind]), f"{right[kind] / asked[kind]:.1%}")
    table.add_row("all", str(asked.total()), f"{right.total() / asked.total():.2%}")
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
