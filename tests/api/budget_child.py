"""Joins a control group, then loads a model in little more memory than it needs, and uses it.

Arguments: the group's file of processes, the model. Prints a JSON object.
"""

import os
import sys

with open(sys.argv[1], "w") as file:  # before anything is imported: libraries count
    file.write(str(os.getpid()))

import json

import deepmnn
from deepmnn.errors import RequestError

SPARE = 4 << 20


def main() -> None:
    """Loads twice: to be told the smallest budget, and in that."""
    try:
        deepmnn.load(sys.argv[2], memory="1MB", threads=2)
    except RequestError as error:
        least = int(str(error).split("at least ")[1].split("MB")[0]) * 1_000_000
    budget = least + SPARE
    model = deepmnn.load(sys.argv[2], memory=budget, threads=2)
    params = deepmnn.SamplingParams(max_tokens=40, ignore_eos=True)
    answers = model.generate(["one and two " * 8, "three"] * 4, params)
    told = model.generate([{"role": "user", "content": "four?"}], params)
    print(
        json.dumps(
            {
                "budget": budget,
                "streamed": model.is_streamed,
                "read": model.backend.model.streaming["read_nbytes"],
                "tokens": sum(len(each.ids) for each in [*answers, told]),
            }
        )
    )


main()
