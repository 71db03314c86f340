"""A GGUF file: its head, its tensors, the config and the tokenizer that are made of its keys."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from byte_tokenizer import write_tokenizer
from deepmnn.conversion.naive import naive_parts
from deepmnn.exporters.gguf.export import export_gguf
from deepmnn.graph.tensors import tensor_shapes
from deepmnn.models import build
from deepmnn.source.open import open_source
from deepmnn.source.random import RandomWeights
from deepmnn.text.tokenizer import Tokenizer
from fuzz.harness import FileTarget
from fuzz.mutations import EXTREMES, mutate_bytes
from fuzz.targets.text import use_tokenizer

SMALL: dict[str, Any] = {
    "vocab_size": 12,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}
EXPERTS = SMALL | {"n_routed_experts": 2, "n_shared_experts": 1, "num_experts_per_tok": 1}
EXPERTS |= {"moe_intermediate_size": 32, "first_k_dense_replace": 0}
LATENT = EXPERTS | {"q_lora_rank": 32, "kv_lora_rank": 32, "qk_nope_head_dim": 32}
LATENT |= {"qk_rope_head_dim": 32, "v_head_dim": 32, "num_key_value_heads": 2, "n_group": 1}
MODELS: tuple[tuple[dict[str, Any], str, bool], ...] = (
    (SMALL | {"model_type": "llama"}, "f16", False),
    (SMALL | {"model_type": "llama", "vocab_size": 271}, "q8_0", True),
    (SMALL | {"model_type": "qwen2"}, "q4_0", False),
    (SMALL | {"model_type": "qwen3", "head_dim": 16}, "q4_1", False),
    (EXPERTS | {"model_type": "deepseek"}, "q8_0", False),
    (LATENT | {"model_type": "deepseek_v2", "topk_group": 1}, "q8_0", False),
    (LATENT | {"model_type": "deepseek_v3", "topk_group": 1}, "q4_0", False),
    (
        SMALL
        | {"model_type": "llama", "tie_word_embeddings": True}
        | {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
        "f32",
        False,
    ),
)
"""Config, type and whether there is a tokenizer."""


class Gguf(FileTarget):
    """A .gguf file."""

    file = "a.gguf"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        for number, (config, kind, speaks) in enumerate(MODELS):
            source, path = folder / f"source{number}", folder / f"{number}.gguf"
            source.mkdir()
            (source / "config.json").write_text(json.dumps(config))
            if speaks:
                write_tokenizer(source)
            random = RandomWeights(lambda fields: tensor_shapes(build(fields)), number)
            export_gguf(open_source(source, random=random), path, type=kind)
            self.seeds.append(path.read_bytes())
        self.seeds += models_of_types(folder)

    def use(self) -> None:
        source = open_source(self.path)
        naive_parts(source)
        for name in source.names():
            values, kept = source.read(name), source.kept_format(name)
            assert values.shape == source.shape(name)
            assert values.dtype == np.float32
            source.sample(name)
            codes = source.codes(name)
            assert kept == (codes and codes.format)
            if codes is not None:
                np.testing.assert_array_equal(codes.values()[:, : values.shape[1]], values)
        for name, data in source.side_files().items():
            (self.out / name).write_bytes(data)
        if "tokenizer.json" in source.side_files():
            use_tokenizer(Tokenizer(self.out))

    def mutate(self, rng: np.random.Generator, data: bytes) -> bytes:
        """Mostly in the head, and often a number of 4 or 8 bytes."""
        if rng.integers(3) == 0 or len(data) < 64:
            return mutate_bytes(rng, data)
        width = int(rng.choice([4, 8]))
        head = max(32, data.rfind(b".weight") + 64)
        at = int(rng.integers(4, min(head, len(data) - width)))
        old = int.from_bytes(data[at : at + width], "little")
        near = (
            old + int(rng.integers(-3, 4)),
            int(rng.integers(64)),
            int(rng.choice(EXTREMES[:9])),
        )
        number = near[int(rng.integers(3))] % (1 << 8 * width)
        return data[:at] + number.to_bytes(width, "little") + data[at + width :]


def models_of_types(folder: Path) -> Iterator[bytes]:
    """Models of one layer, whose matrices are of every type that ggml has, and whose tokenizers are
    byte-level and SentencePiece's.
    """
    kinds = [kind for kind, (block, _) in gguf.GGML_QUANT_SIZES.items() if block > 1]
    for number in range(0, len(kinds), len(_WIDE)):
        path, six = folder / f"types{number}.gguf", kinds[number : number + len(_WIDE)]
        writer = gguf.GGUFWriter(path, "llama")
        for key, value in _LLAMA.items():
            writer.add_uint32(f"llama.{key}", value)
        writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
        _add_tokenizer(writer, "gpt2" if number else "llama")
        for (name, rows), kind in zip(_WIDE.items(), six + six[:1] * 6, strict=False):
            block, nbytes = gguf.GGML_QUANT_SIZES[kind]
            data = np.arange(rows * 256 // block * nbytes).astype(np.uint8) % 60
            writer.add_tensor(name, data.reshape(rows, -1), raw_dtype=kind)
        for name, shape in _NARROW.items():
            writer.add_tensor(name, np.ones(shape, np.float16))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        yield path.read_bytes()


_LLAMA = {
    "block_count": 1,
    "context_length": 64,
    "embedding_length": 256,
    "feed_forward_length": 8,
    "attention.head_count": 1,
    "attention.key_length": 8,
    "attention.value_length": 8,
    "rope.dimension_count": 8,
}
_WIDE = {
    "token_embd.weight": 10,
    "blk.0.attn_q.weight": 8,
    "blk.0.attn_k.weight": 8,
    "blk.0.attn_v.weight": 8,
    "blk.0.ffn_gate.weight": 8,
    "blk.0.ffn_up.weight": 8,
}
_NARROW = {
    "output_norm.weight": (256,),
    "blk.0.attn_norm.weight": (256,),
    "blk.0.ffn_norm.weight": (256,),
    "blk.0.attn_output.weight": (256, 8),
    "blk.0.ffn_down.weight": (256, 8),
}


def _add_tokenizer(writer: gguf.GGUFWriter, model: str) -> None:
    tokens = ["<unk>", "<s>", "</s>", "a", "b", "ab", "\u2581", "\u2581a", "<0x0A>", "[PAD9]"]
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([2, 3, 3, 1, 1, 1, 1, 1, 6, 5])
    writer.add_token_scores([-float(n) for n in range(10)])
    if model == "gpt2":
        writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_add_bos_token(True)
    writer.add_chat_template("{{ messages[0].content }}")
    writer.add_float32("general.sampling.temp", 0.5)
