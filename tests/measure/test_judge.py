"""A model on a text, against PyTorch's figures for the same logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

import deepmnn
from deepmnn import LLM
from deepmnn.errors import ContextLengthError, RequestError, StorageError
from deepmnn.measure import kept_predictions, predictions
from deepmnn.measure.judge import judge
from deepmnn.measure.kept_predictions import KeptPredictions
from tiny_artifact import tiny_artifact

PIECES = [[5, 17, 200, 33, 9], list(range(0, 180)), [7, 8]]


@pytest.fixture(scope="module")
def rounded(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    path = tiny_artifact(tmp_path_factory.mktemp("rounded"), quant="w4")
    return deepmnn.load(path, "cpu", threads=1, mla_form="expanded")  # however long a span is


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows come 7 at a time, so that every piece but the shortest has several parts."""
    monkeypatch.setattr(predictions, "ROWS", 7)
    monkeypatch.setattr(kept_predictions, "ROWS", 7)


def losses(model: LLM) -> torch.Tensor:
    parts = [
        F.cross_entropy(
            torch.tensor(model.logits(ids)[:-1]), torch.tensor(ids[1:]), reduction="none"
        )
        for ids in PIECES
    ]
    return torch.cat(parts).double()


@pytest.mark.usefixtures("small_parts")
def test_perplexity_and_divergence(model: LLM, rounded: LLM) -> None:
    seen: list[tuple[int, int, str]] = []
    found = judge(
        predictions.predictions(rounded),
        PIECES,
        predictions.predictions(model),
        lambda *progress: seen.append(progress),
    )
    assert seen == [(5, 187, ""), (185, 187, ""), (187, 187, "")]
    assert (found.pieces, found.tokens, found.model.tokens) == (3, 187, 184)
    ours, truth = losses(rounded), losses(model)
    for name, wanted in ((found.model, ours), (found.reference, truth)):
        assert name is not None
        assert name.loss == pytest.approx(wanted.mean().item(), rel=1e-5)
        assert name.loss_error == pytest.approx(wanted.std().item() / 184**0.5, rel=1e-4)
        assert name.perplexity == pytest.approx(wanted.mean().exp().item(), rel=1e-4)
        assert name.perplexity_error == pytest.approx(name.perplexity * name.loss_error)
    change = ours - truth
    assert found.loss_change == pytest.approx(change.mean().item(), abs=1e-5)
    assert found.loss_change_error == pytest.approx(change.std().item() / 184**0.5, rel=1e-3)
    assert found.perplexity_ratio == pytest.approx(
        found.model.perplexity / found.reference.perplexity
    )
    kl, same = [], []
    for ids in PIECES:
        p, q = (torch.tensor(m.logits(ids)).double().log_softmax(-1) for m in (model, rounded))
        kl.append(F.kl_div(q, p, log_target=True, reduction="none").sum(-1))
        same.append(p.argmax(-1) == q.argmax(-1))
    every = torch.cat(kl)
    assert found.divergence is not None
    assert found.divergence.tokens == 187
    assert found.divergence.mean == pytest.approx(every.mean().item(), rel=1e-4)
    assert found.divergence.percentile_99 == pytest.approx(every.quantile(0.99).item(), rel=1e-3)
    assert found.divergence.same_first_choice == torch.cat(same).double().mean().item()


def test_a_model_is_not_apart_from_itself(model: LLM) -> None:
    own = predictions.predictions(model)
    found = judge(own, PIECES, own)
    assert found.divergence is not None
    assert (found.divergence.largest, found.loss_change) == (0.0, 0.0)
    alone = judge(own, PIECES)
    assert (alone.reference, alone.divergence, alone.perplexity_ratio) == (None, None, None)
    assert alone.model == found.model


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("compact", [False, True])
def test_a_kept_reference(tmp_path: Path, model: LLM, rounded: LLM, compact: bool) -> None:
    asked: list[int] = []

    def counted(ids: Sequence[int]) -> Iterator[np.ndarray]:
        asked.append(len(ids))
        yield from predictions.predictions(model)(ids)

    kept = KeptPredictions(tmp_path, counted, compact=compact)
    ours = predictions.predictions(rounded)
    first, again = judge(ours, PIECES, kept), judge(ours, PIECES, kept)
    assert asked == [5, 180, 2], "the second time it reads what it has kept"
    exact = judge(ours, PIECES, predictions.predictions(model))
    assert first == exact
    if not compact:
        assert again == exact
    assert again.divergence is not None
    assert exact.divergence is not None
    assert again.divergence.mean == pytest.approx(exact.divergence.mean, abs=1e-6)
    assert again.divergence.largest == pytest.approx(exact.divergence.largest, abs=1e-4)
    size = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert size == 187 * (271 * (2 if compact else 4) + 4 * compact)


def test_what_is_not_read_to_its_end_is_not_kept(tmp_path: Path, model: LLM) -> None:
    kept = KeptPredictions(tmp_path, predictions.predictions(model))
    rows = kept([1, 2, 3])
    next(rows)
    rows.close()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StorageError, match="nowhere"):
        list(KeptPredictions(tmp_path / "nowhere", predictions.predictions(model))([1, 2]))


def test_equal_rows_are_kept_compactly(tmp_path: Path) -> None:
    def flat(ids: Sequence[int]) -> Iterator[np.ndarray]:
        yield np.full((len(ids), 5), 3, np.float32)

    kept = KeptPredictions(tmp_path, flat, compact=True)
    list(kept([1, 2]))
    assert next(kept([1, 2])).tolist() == [[0] * 5] * 2


def test_what_cannot_be_judged(model: LLM) -> None:
    own = predictions.predictions(model)
    for pieces in ([], [[1]], [[1, 2], []]):
        with pytest.raises(RequestError, match="no piece of two tokens"):
            judge(own, pieces)
    with pytest.raises(ContextLengthError, match=r"piece 2: .*193 tokens"):
        judge(own, [[1, 2], [3] * 193])
    with pytest.raises(RequestError, match="outside the vocabulary"):
        judge(own, [[1, 271]])

    def broken(ids: Sequence[int]) -> Iterator[np.ndarray]:
        logits = model.logits(ids)
        logits[-1, 0] = np.nan
        yield logits

    with pytest.raises(RequestError, match="piece 2: row 2 of the logits of the model"):
        judge(lambda ids: (broken if len(ids) == 3 else own)(ids), [[1, 2], [4, 5, 6]], own)

    def narrow(ids: Sequence[int]) -> Iterator[np.ndarray]:
        yield model.logits(ids)[:, :200]

    with pytest.raises(RequestError, match="the same vocabulary"):
        judge(own, [[1, 2]], narrow)
