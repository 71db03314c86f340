"""The training model is DeepSeek-V3: transformers gives an export of it the same logits."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("typer")
sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import arithmetic as ar  # noqa: E402
import deepseek_v3 as tiny  # noqa: E402
import tiny_r1_tokenizer as tok  # noqa: E402
import train_tiny_r1 as train  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
BUNDLED = Path(__file__).parents[2] / "src" / "deepmnn" / "tiny_r1"


@pytest.fixture
def model() -> tiny.DeepSeekV3:
    torch.manual_seed(0)
    model = tiny.DeepSeekV3(tiny.Config()).requires_grad_(False)
    for moe in model.moes():
        moe.gate.e_score_correction_bias.normal_(std=0.1)
    for weight in model.parameters():
        weight.copy_(weight.bfloat16().float())
    return model


def test_transformers_agrees(model: tiny.DeepSeekV3, tmp_path: Path) -> None:
    tokenizer = tok.Tokenizer.from_file(str(BUNDLED / "tokenizer.json"))
    train.export(tmp_path, model, tokenizer, [])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = torch.randint(3, 512, (2, 40))
    with torch.inference_mode():
        torch.testing.assert_close(theirs(ids).logits, model(ids), atol=1e-4, rtol=1e-4)


def test_published_names_and_dtypes(model: tiny.DeepSeekV3) -> None:
    weights = model.checkpoint()
    assert weights["model.layers.1.mlp.experts.7.gate_proj.weight"].shape == (128, 192)
    assert weights["model.layers.4.eh_proj.weight"].shape == (192, 384)
    assert weights["model.layers.4.shared_head.head.weight"].equal(weights["lm_head.weight"])
    for name, weight in weights.items():
        in_float32 = name.endswith("e_score_correction_bias")
        assert weight.dtype == (torch.float32 if in_float32 else torch.bfloat16), name


def test_only_chosen_experts_work(model: tiny.DeepSeekV3) -> None:
    """The grouped computation equals the textbook sum over each token's experts."""
    moe = next(model.moes())
    x = torch.randn(9, 192)
    weights, experts = moe.gate(x)
    for row in range(len(x)):
        expected = moe.shared_experts(x[row])
        for weight, expert in zip(weights[row], experts[row], strict=True):
            gate, up = (moe.gate_up[expert] @ x[row]).chunk(2)
            expected = expected + weight * (
                moe.down[expert] @ (torch.nn.functional.silu(gate) * up)
            )
        torch.testing.assert_close(moe(x)[row], expected, atol=1e-5, rtol=1e-5)
        assert len({int(expert) // 2 for expert in experts[row]}) <= model.c.topk_group


def test_bundled_chat_template_matches_training_text() -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(BUNDLED)
    problem = ar.work("add", ar.Expr("+", 2, 3), "Add 2 and 3.")
    earlier = (("What is 1 + 1?", "\n\nThe answer is **2**."),)
    prompt, _ = tok.prompt_and_response(ar.Conversation("Be brief.", earlier, problem))
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 1 + 1?"},
        {
            "role": "assistant",
            "content": "<think>\nI need 1 + 1.\n</think>\n\nThe answer is **2**.",
        },
        {"role": "user", "content": "Add 2 and 3."},
    ]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == prompt


def test_tokenizer_keeps_text_and_single_digits() -> None:
    tokenizer = tok.Tokenizer.from_file(str(BUNDLED / "tokenizer.json"))
    text = "What is 347×28?\n<think>\nné, 漢字 🙂 00123\n</think>\n\n"
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    digits = [token for token in tokenizer.get_vocab() if set(token) & set("0123456789")]
    assert sorted(digits) == list("0123456789")
    assert [tokenizer.token_to_id(token) for token in (tok.BOS, tok.EOS, tok.PAD)] == [0, 1, 2]
    config = json.loads((BUNDLED / "config.json").read_text(encoding="utf-8"))
    assert config["vocab_size"] == tokenizer.get_vocab_size()
