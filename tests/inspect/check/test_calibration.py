"""Calibration sets that cover what a model is asked, and some that do not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deepmnn.errors import RequestError, TokenizerError
from deepmnn.inspect.check.calibration import check_calibration
from deepmnn.inspect.check.coverage import EDGES, Split, TensorCoverage, distances
from deepmnn.inspect.check.covered import Coverage
from deepmnn.inspect.check.kinds import kind_of
from deepmnn.text.samples import built_in
from tiny_models import checkpoint_of, tiny_checkpoint

CHARACTERS, TEXTS = 330, 20

Texts = Callable[[str, int], Path]


@pytest.fixture
def texts(tmp_path: Path) -> Texts:
    """kind, which part → a file with beginnings of TEXTS texts of the built-in set."""

    def write(kind: str, part: int) -> Path:
        found = [s.text[:CHARACTERS] for s in built_in() if s.kind == kind and s.text]
        path = tmp_path / f"{kind}-{part}.jsonl"
        chosen = found[part * TEXTS : (part + 1) * TEXTS]
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in chosen))
        return path

    return write


def wrong(found: Coverage) -> set[str]:
    return {line.name for line in found.lines() if line.verdict == "wrong"}


def test_another_language_is_found_and_named(texts: Texts) -> None:
    found = check_calibration("tiny-r1", texts("english", 0), texts("chinese", 0), 64)
    assert wrong(found) >= {"texts", "activations"}
    (line,) = [line for line in found.lines() if line.name == "texts"]
    assert "Chinese" in line.advice
    assert found.kinds[0].name == "Chinese"
    assert found.kinds[0].calibration == 0


def test_two_halves_of_one_set_are_not_accused(texts: Texts) -> None:
    found = check_calibration("tiny-r1", texts("english", 0), texts("english", 1), 64)
    assert not wrong(found)
    assert found.ratio < 1.5
    assert found.calibration[0] == found.against[0] == TEXTS


def ids_file(path: Path, ids: object) -> Path:
    np.save(path, np.asarray(ids))
    return path


def test_experts_that_calibration_never_saw(tmp_path: Path) -> None:
    """Without a tokenizer. One token alone always goes the same way; many go everywhere."""
    model = tiny_checkpoint("deepseek_v3", 1, tmp_path / "model")
    same = ids_file(tmp_path / "same.npy", np.full((8, 2), 5))
    rng = np.random.default_rng(0)
    many = ids_file(tmp_path / "many.npy", rng.integers(0, 97, (8, 40)))
    found = check_calibration(model.path, same, many, 64)
    assert "experts that calibration never saw" in wrong(found)
    (layer,) = found.experts
    assert 0 < len(layer.unseen) < layer.experts
    assert layer.share > 0.05
    back = check_calibration(model.path, many, same, 64)
    assert not back.experts[0].unseen


def test_how_often_experts_are_chosen_is_what_the_model_does(tmp_path: Path) -> None:
    """The oracle is transformers' own router."""
    import torch

    model = checkpoint_of("deepseek_v3", _ONE_LAYER, tmp_path / "model")
    rng = np.random.default_rng(1)
    first, second = rng.integers(0, 97, (8, 4)), rng.integers(0, 97, (3, 30))
    found = check_calibration(
        model.path, ids_file(tmp_path / "a.npy", first), ids_file(tmp_path / "b.npy", second), 64
    )
    chosen: list[np.ndarray] = []
    layer = model.model.model.layers[0].mlp
    layer.experts.register_forward_pre_hook(
        lambda module, given: chosen.append(np.asarray(given[1]))
    )
    used = []
    for ids in (first, second):
        chosen.clear()
        with torch.no_grad():
            for row in ids:
                model.model(input_ids=torch.tensor(row[None]))
        used.append(np.bincount(np.concatenate(chosen).reshape(-1), minlength=9))
    (layer_found,) = found.experts
    assert layer_found.unseen == tuple(np.flatnonzero(used[0] == 0))
    share = used[1][used[0] == 0].sum() / used[1].sum()
    assert layer_found.share == pytest.approx(share, abs=0.02)  # w8 moves a close call


_ONE_LAYER = {
    **{"vocab_size": 97, "hidden_size": 36, "intermediate_size": 53, "num_hidden_layers": 1},
    **{"num_attention_heads": 3, "num_key_value_heads": 3, "max_position_embeddings": 256},
    **{"moe_intermediate_size": 19, "n_routed_experts": 9, "num_experts_per_tok": 3},
    **{"n_shared_experts": 1, "first_k_dense_replace": 0, "q_lora_rank": None, "n_group": 1},
    **{"kv_lora_rank": 18, "qk_nope_head_dim": 10, "qk_rope_head_dim": 6, "v_head_dim": 14},
    **{"topk_group": 1, "num_nextn_predict_layers": 0},
}


def test_divergence_is_that_of_histograms() -> None:
    """Against numpy's histograms of all values at once."""
    rng = np.random.default_rng(0)
    samples = [rng.standard_normal((9, 5)).astype(np.float32) for _ in range(8)]
    others = [rng.standard_normal((7, 5)).astype(np.float32) + 1 for _ in range(3)]
    first = np.concatenate(samples)
    tensor = TensorCoverage("x", first, Split.of(8, 3))
    for rows in (*samples, *others):
        tensor.add(rows)

    def share(parts: list[np.ndarray], channel: int) -> np.ndarray:
        values = np.concatenate([rows[1:, channel] for rows in parts])
        scale = first[:, channel].std() + 1e-3 * first.std()
        bins = np.concatenate([[-np.inf], EDGES, [np.inf]])
        counts, _ = np.histogram((values - first[:, channel].mean()) / scale, bins)
        return (counts + 0.5) / (counts + 0.5).sum()

    expected = 0.0
    for channel in range(5):
        p, q = share(others, channel), share(samples, channel)
        expected += float((p * np.log(p / q)).sum()) / 5
    assert tensor.divergence == pytest.approx(expected, rel=1e-4)
    assert tensor.divergence > 2 * tensor.chance
    largest = max(np.abs(rows).max() for rows in samples)
    beyond = np.mean([np.abs(rows) > largest for rows in others])
    assert tensor.outside == pytest.approx(float(beyond))


def test_distances_are_exchangeable() -> None:
    """Of texts that are alike, as many as chance says are uncovered; those of another kind all."""
    rng = np.random.default_rng(2)
    features = rng.standard_normal((140, 4, 12)).astype(np.float32)
    found = distances(features, 100)
    assert 0 <= (found.chance <= 0.05).mean() <= 0.15
    assert found.found.mean() == pytest.approx(1, abs=0.15)
    features[100:] += 6
    assert (distances(features, 100).chance <= 0.05).all()


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("今天天气很好,我们去公园散步。", "Chinese"),
        ("これは日本語の文章です。漢字もあります。", "Japanese"),
        ("Сегодня хорошая погода, и мы идём гулять.", "Cyrillic"),
        ("def f(x):\n    return x + 1\n\nfor i in range(3):\n    print(f(i))\n", "code"),
        ("The weather is fine today and we are going to the park.", "English"),
        ("Das Wetter ist heute schön und wir gehen in den Park, nicht wahr?", "German"),
        ("Le temps est beau et nous allons dans les bois pour une promenade.", "French"),
        ("123 456", "other text"),
    ],
)
def test_what_a_text_looks_like(text: str, kind: str) -> None:
    assert kind_of(text) == kind


def test_impossible_sets_are_refused(tmp_path: Path) -> None:
    model = tiny_checkpoint("llama", 0, tmp_path / "model").path
    good = ids_file(tmp_path / "good.npy", np.ones((8, 4), np.int64))
    few = ids_file(tmp_path / "few.npy", np.ones((3, 4), np.int64))
    large = ids_file(tmp_path / "large.npy", np.full((8, 4), 97))
    floats = ids_file(tmp_path / "floats.npy", np.ones((8, 4)))
    text = tmp_path / "text.txt"
    text.write_text("Some text.")
    with pytest.raises(RequestError, match="3 texts; expected at least 8"):
        check_calibration(model, few, good, 64)
    with pytest.raises(RequestError, match="token id 97; expected ids from 0 to 96"):
        check_calibration(model, good, large, 64)
    with pytest.raises(RequestError, match="float64"):
        check_calibration(model, good, floats, 64)
    with pytest.raises(RequestError, match="cannot be read"):
        check_calibration(model, good, tmp_path / "none.npy", 64)
    with pytest.raises(TokenizerError, match=r"no tokenizer.*numpy"):
        check_calibration(model, good, text, 64)
