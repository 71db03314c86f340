"""What a budget of memory cannot be kept for, said before anything is done."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepmnn.api.memory import megabytes
from deepmnn.api.options import LoadOptions
from deepmnn.api.process_memory import held_nbytes
from deepmnn.conversion.need import file_nbytes, working_nbytes
from deepmnn.errors import RequestError, Words, argument
from deepmnn.source.sizes import file_size

if TYPE_CHECKING:
    from deepmnn.conversion.plan import Plan
    from deepmnn.exporters.mnn.folder import MnnFolder

MNN_COPIES = 2
"""MNN reads its weights and keeps them in a layout of its own: for a moment both are there."""

MNN_NBYTES = 160 << 20
"""Of its library and of activations, for steps of 512 tokens."""


def check_conversion(plan: Plan, memory: int) -> None:
    """Raises RequestError when a checkpoint cannot be converted within so many bytes, the files
    that it reads and writes counted: the system keeps them in memory as long as it can.
    """
    needed = held_nbytes() + working_nbytes(plan) + file_nbytes(plan)
    if needed <= memory:
        return
    alone = megabytes(held_nbytes() + working_nbytes(plan))
    raise RequestError(
        argument(
            "memory",
            f" is {file_size(memory)}, and this checkpoint has to be converted first, to "
            f"{file_size(plan.nbytes)}",
        ),
        f"{megabytes(needed)} for that, with the files that it reads and writes",
        Words(
            f"Convert it once without a budget: deepmnn.convert(CHECKPOINT, OUT), which takes "
            f"{alone} and files; then load OUT.",
            f"Convert it once without a budget: deepmnn convert CHECKPOINT OUT, which takes "
            f"{alone} and files; then name OUT.",
        ),
    )


def check_mnn(folder: MnnFolder, options: LoadOptions) -> None:
    """Raises RequestError unless MNN surely keeps within the budget: it holds all weights, and
    those it maps (`MnnOptions.mmap`) come back into memory with every step.
    """
    memory = options.memory_nbytes or 0
    needed = held_nbytes() + MNN_NBYTES + MNN_COPIES * folder.weights_nbytes
    if needed > memory:
        raise RequestError(
            argument(
                "memory",
                f" is {file_size(memory)}, and MNN has no way to keep to it: it holds its "
                f"{file_size(folder.weights_nbytes)} of weights whole, mapped or not",
            ),
            f"at least {megabytes(needed)}",
            Words(
                "Load the converted model that the folder was exported from, with backend 'cpu'.",
                "Name the converted model that the folder was exported from, with --backend cpu.",
            ),
        )
