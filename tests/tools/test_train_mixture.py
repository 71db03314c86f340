"""What the mixture's training writes is what transformers and deepmnn read, and it goes on."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("typer")
sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import deepmnn  # noqa: E402
import train_mixture as mixture  # noqa: E402
import training  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def test_export_gives_the_same_logits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = mixture.DeepSeekV3(mixture.CONFIG).requires_grad_(False)
    for weight in model.parameters():
        weight.copy_(weight.bfloat16().float())
    rng = random.Random(1)
    text = ["".join(rng.choices("abcdefghij ", k=4000)) for _ in range(50)]
    tokenizer = mixture.train_tokenizer(text, mixture.CONFIG.vocab_size, mixture.SPLITS)
    mixture.export(tmp_path, model, tokenizer)
    ids = torch.randint(3, mixture.CONFIG.vocab_size, (1, 40))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.inference_mode():
        wanted = theirs(ids).logits
        torch.testing.assert_close(model(ids), wanted, atol=1e-4, rtol=1e-4)
    found = deepmnn.load(tmp_path, quant="fp32").logits(ids[0].tolist())
    np.testing.assert_allclose(found, wanted[0].numpy(), atol=1e-4)


@pytest.mark.slow
def test_a_run_goes_on_where_it_was_saved(tmp_path: Path) -> None:
    config = mixture.Config(num_hidden_layers=2, num_nextn_predict_layers=0)
    ids = np.arange(5000, dtype=np.uint16) % 500

    def start() -> training.Run:
        torch.manual_seed(1)
        model, average = mixture.DeepSeekV3(config), mixture.DeepSeekV3(config)
        average.requires_grad_(False).load_state_dict(model.state_dict())
        opts = training.optimisers(dict(model.named_parameters()), 1.0)
        return training.Run(model, average, random.Random(1), opts)

    def train(run: training.Run, steps: int) -> list[float]:
        source = mixture.training_batches(ids, run.rng, mixture.WINDOW)
        loss = mixture.mixed_precision_loss
        return [training.step(run, loss, next(source), 0.003) for _ in range(steps)]

    whole = train(start(), 4)
    first, second = start(), start()
    begun = train(first, 2)
    first.save(tmp_path / "state.pt")
    second.load(tmp_path / "state.pt")
    assert second.step == 2
    np.testing.assert_allclose(begun + train(second, 2), whole, rtol=1e-5)
