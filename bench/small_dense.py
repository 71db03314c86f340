"""Trains a small dense model on arithmetic, so that quantisation errors can be measured.

    python bench/small_dense.py OUT --steps 300

Qwen2's architecture (MNN's own exporter has no MLA), tiny-r1's tokenizer and problems. Writes a
Hugging Face directory in bfloat16, as models are published. About a second a step on two cores.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
import typer
from tokenizers import Tokenizer
from transformers import Qwen2Config, Qwen2ForCausalLM

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))

from arithmetic import Conversation, held_out_set, sample_conversation  # noqa: E402
from tiny_r1_tokenizer import BOS_ID, EOS_ID, prompt_and_response  # noqa: E402

TOKENIZER = ROOT / "src" / "deepmnn" / "tiny_r1"
STEPS = 300
CONFIG = {
    "vocab_size": 512,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "bos_token_id": BOS_ID,
    "eos_token_id": EOS_ID,
}


def held_out_texts(count: int) -> list[str]:
    """Problems that training never sees, worked out: the same ones every time, of every kind."""
    problems = held_out_set(max(1, count // 6))
    chosen = random.Random(0).sample(problems, min(count, len(problems)))
    return ["".join(prompt_and_response(Conversation("", (), problem))) for problem in chosen]


def windows(tokenizer: Tokenizer, rows: int, length: int, seed: int) -> Iterator[torch.Tensor]:
    """Endless batches [rows, length] cut from one stream of training chats."""
    rng, stream = random.Random(seed), list[int]()
    while True:
        while len(stream) < rows * length:
            text = "".join(prompt_and_response(sample_conversation(rng)))
            stream += tokenizer.encode(text, add_special_tokens=False).ids
        yield torch.tensor(stream[: rows * length]).view(rows, length)
        del stream[: rows * length]


def train(steps: int, rows: int = 8, length: int = 256, rate: float = 4e-3) -> Qwen2ForCausalLM:
    """The trained model, the same for the same number of steps."""
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**CONFIG))
    optimizer = torch.optim.AdamW(model.parameters(), rate, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps + 1, pct_start=0.1)
    batches = windows(Tokenizer.from_file(str(TOKENIZER / "tokenizer.json")), rows, length, seed=1)
    for step in range(steps):
        ids = next(batches)
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 49 or step == steps - 1:
            print(f"step {step + 1}: {float(loss.detach()):.3f} nats a token", file=sys.stderr)
    return model


def write(model: Qwen2ForCausalLM, out: Path) -> None:
    """The Hugging Face directory: bfloat16 weights, config, tokenizer and chat template."""
    model.to(torch.bfloat16).save_pretrained(out)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(TOKENIZER / name, out / name)
    ends = {"bos_token_id": BOS_ID, "eos_token_id": EOS_ID}
    (out / "generation_config.json").write_text(json.dumps(ends))


def main(
    out: Annotated[Path, typer.Argument(help="The directory to write.")],
    steps: Annotated[int, typer.Option(min=1, help="Steps of 2,048 tokens.")] = STEPS,
) -> None:
    """Train the model and write it."""
    write(train(steps), out)


if __name__ == "__main__":
    typer.run(main)
