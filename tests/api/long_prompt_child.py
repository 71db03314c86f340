"""Asks a model prompts far longer than its context, with little memory to spare.

Arguments: the model. Prints a line for each: what became of it.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import Any

import deepmnn
from deepmnn import SamplingParams
from deepmnn.errors import ContextLengthError

SPARE = 256 << 20
TEXT = "1+1 " * 750_000
OLD = [{"role": "user", "content": "a"}, {"role": "assistant", "content": TEXT}]
NEW = [{"role": "user", "content": "b"}]
PROMPTS: dict[str, Any] = {
    "text": TEXT,
    "list": ["a", TEXT],
    "question": [{"role": "user", "content": TEXT}],
    "parts": [{"role": "user", "content": [{"type": "text", "text": TEXT}]}],
    "system": [{"role": "system", "content": TEXT}, *NEW],
    "answer": [*OLD, *NEW],
    "ids": [1] * 3_000_000,
    "range": range(10**15),
}

model = deepmnn.load(sys.argv[1], threads=1)
model.generate([{"role": "user", "content": "1+1"}], SamplingParams(max_tokens=1))
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + SPARE, used + SPARE))
for name, prompt in PROMPTS.items():
    try:
        model.generate(prompt)
        print(name, "answered")
    except ContextLengthError as error:
        print(name, "refused", error)
