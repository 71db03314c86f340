"""OpenVINO GenAI: continuous batching, as its own server and `LLMPipeline` use it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

from bench.peers.engine import Config

TITLE, BUILDER, NEEDS = "OpenVINO GenAI", "openvino", "checkpoint"
SETTINGS = "int4 symmetric, groups of 64, lm_head too; KV cache as the plugin chooses (u8)"

EXPORT = ("--weight-format", "int4", "--group-size", "64", "--sym", "--ratio", "1.0")

ENTRY = """
import sys
sys.modules["openvino_telemetry"] = None
from optimum.commands.optimum_cli import main
main()
"""


def version(source: Path | None) -> str | None:
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # it reports usage
    try:
        import openvino_genai  # noqa: F401

        return f"{installed('openvino-genai')}, optimum-intel {installed('optimum-intel')}"
    except (ImportError, PackageNotFoundError):
        return None


def exceeds(isa: str, source: Path | None) -> str:
    """ONEDNN_MAX_CPU_ISA limits oneDNN's kernels, not those of the plugin, and results may then be
    wrong (https://github.com/openvinotoolkit/openvino/pull/38189).
    """
    return "its releases cannot be limited to an instruction set"


def refuses(config: Config) -> str:
    if "kv_lora_rank" not in config:
        return ""
    return "optimum-intel exports it with transformers up to 4.53.3, which do not know the model"


def build(config: Path, out: Path, needed: Path | None, source: Path | None) -> str:
    command = [sys.executable, "-c", ENTRY, "export", "openvino", "--model", str(needed)]
    command += ["--task", "text-generation-with-past", *EXPORT, str(out / "model")]
    subprocess.run(command, check=True)
    return "model"


def load(model: Path, threads: int, source: Path | None) -> OpenvinoSession:
    return OpenvinoSession(model, threads)


class OpenvinoSession:
    """Requests that never end by themselves; a step takes each one's most likely token."""

    most = None

    def __init__(self, model: Path, threads: int) -> None:
        import openvino_genai as genai

        scheduler = genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False
        scheduler.max_num_batched_tokens = 2048
        properties = {"INFERENCE_NUM_THREADS": threads}
        self._pipeline: Any = genai.ContinuousBatchingPipeline(model, scheduler, "CPU", properties)
        self._config = genai.GenerationConfig(ignore_eos=True, max_new_tokens=1 << 20)
        self._requests: list[Any] = []
        self._number = 0

    def reserve(self, batch: int, tokens: int) -> None:
        """The cache grows by itself."""

    def start(self, prompts: Sequence[Sequence[int]]) -> None:
        import numpy as np
        import openvino

        for request in self._requests:
            request.cancel()  # the next step forgets it
        self._requests = []
        for ids in prompts:
            tensor = openvino.Tensor(np.array([ids], np.int64))
            self._requests.append(self._pipeline.add_request(self._number, tensor, self._config))
            self._number += 1
        waiting = list(self._requests)
        while waiting:
            self._pipeline.step()
            waiting = [request for request in waiting if not request.can_read()]

    def step(self, tokens: Sequence[int]) -> None:
        self._pipeline.step()
