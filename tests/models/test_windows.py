"""Sliding windows, as transformers has them: what no layer uses loads, the rest is refused."""

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import transformers

from deepmnn.errors import ConfigError, UnsupportedModelError
from deepmnn.models import build
from parity import lowered, prompts_for, reference, relative_error, run_schedule
from tiny_models import LLAMA, checkpoint_of

FULL, SLIDING = "full_attention", "sliding_attention"
FIELDS = LLAMA | {"max_position_embeddings": 64, "head_dim": 12}
WINDOWS = [
    dict(
        zip(
            ("use_sliding_window", "sliding_window", "max_window_layers", "layer_types"),
            values,
            strict=True,
        )
    )
    for values in product(
        (False, True),
        (None, 16, 64, 4096),
        (0, 1, 2, 28),
        (None, [FULL, FULL], [FULL, SLIDING]),
    )
]


def slides(model_type: str, window: dict[str, Any]) -> bool:
    """Whether transformers hides any of a context's tokens, or cannot run the layer."""
    config = transformers.AutoConfig.for_model(model_type, **FIELDS | window)
    width = config.sliding_window
    return SLIDING in config.layer_types and (width is None or width < 64)


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3"])
def test_the_graph_is_full_attention_where_transformers_is(model_type: str) -> None:
    config = {"model_type": model_type, **FIELDS}
    full, refused = build(config), 0
    for window in WINDOWS:
        if slides(model_type, window):
            refused += 1
            with pytest.raises(UnsupportedModelError, match="sliding"):
                build(config | window)
        else:
            assert build(config | window) == full, window
    assert 0 < refused < len(WINDOWS)


@pytest.mark.parametrize(
    "window",
    [
        {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2},
        {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 0},
        {"use_sliding_window": True, "sliding_window": None, "max_window_layers": 0},
        {"use_sliding_window": True, "sliding_window": 64, "layer_types": [FULL, SLIDING]},
    ],
)
@pytest.mark.parametrize("model_type", ["qwen2", "qwen3"])
def test_unused_windows_give_transformers_logits(
    tmp_path: Path, model_type: str, window: dict[str, Any]
) -> None:
    fields = FIELDS | window
    tiny = checkpoint_of(model_type, fields, tmp_path)
    tiny = replace(tiny, config={"model_type": model_type, **fields})
    [prompt] = prompts_for([64], tiny.config["vocab_size"])
    [got] = run_schedule(reference(lowered(tiny, 0), tiny), [prompt], [(64,)])
    assert relative_error(got, tiny.logits(prompt)) < 1e-5


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize(
    ("kinds", "error"),
    [
        ([FULL], ConfigError),
        ([FULL] * 3, ConfigError),
        ([FULL, 3], ConfigError),
        ("full", ConfigError),
        ([FULL, "chunked_attention"], UnsupportedModelError),
        ([SLIDING, FULL], UnsupportedModelError),
    ],
)
def test_layer_types_that_do_not_fit(model_type: str, kinds: Any, error: type[ConfigError]) -> None:
    with pytest.raises(error, match="layer_types"):
        build({"model_type": model_type, **FIELDS, "layer_types": kinds})


def test_a_window_must_hold_the_context_that_yarn_extends() -> None:
    config = {"model_type": "qwen2", **FIELDS, "use_sliding_window": True, "sliding_window": 64}
    config |= {"max_window_layers": 0}
    build(config)
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    with pytest.raises(UnsupportedModelError, match="256 tokens"):
        build(config | {"rope_scaling": yarn})
    build(config | {"rope_scaling": yarn, "sliding_window": 256})
