"""The small files of an MNN folder: config.json, llm_config.json, the tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from deepmnn.artifact.reader import Artifact
from deepmnn.errors import TokenizerError
from deepmnn.exporters.mnn.chat_template import jinja_fields
from deepmnn.exporters.mnn.lower import Lowering
from deepmnn.exporters.mnn.mtok import FILE as TOKENIZER
from deepmnn.exporters.mnn.names import Names
from deepmnn.exporters.mnn.tokenizer import pack_tokenizer
from deepmnn.text.answer_end import end_ids
from deepmnn.text.generation_config import GenerationConfig
from deepmnn.text.tokenizer import Tokenizer

Json = dict[str, Any]


@dataclass(frozen=True)
class TextSide:
    """How MNN turns text into tokens and back.

    Attributes:
        tokenizer: tokenizer.mtok.
        jinja: the chat template's field of llm_config.json; None: there is no template.
        note: what MNN will do otherwise than the model's makers meant; "" for nothing.
    """

    tokenizer: bytes
    jinja: Json | None
    note: str


def text_side(artifact: Artifact, vocab_size: int, needs_tokenizer: bool) -> TextSide:
    """Of the artifact's tokenizer files, if there are any.

    A tokenizer that MNN has no form for leaves a model that MNN runs by token ids, and a note; with
    needs_tokenizer that and a model without one raise TokenizerError. So does a damaged one.
    """
    has_tokenizer = "tokenizer.json" in artifact.text_files
    if needs_tokenizer and not has_tokenizer:
        raise TokenizerError(
            f"{artifact.path} has no tokenizer.json",
            "a model with a tokenizer, which a phone needs",
            "Convert it again, with the tokenizer's files beside the checkpoint.",
        )
    tokenizer = Tokenizer(artifact.text_files) if has_tokenizer else None
    generation = GenerationConfig.read(artifact.text_files, artifact.config)
    ends = generation.eos_ids if tokenizer is None else end_ids(tokenizer, generation)
    stop_ids = {token for token in ends if token < vocab_size}
    notes = []
    try:
        packed = pack_tokenizer(tokenizer, vocab_size=vocab_size, stop_ids=stop_ids)
    except TokenizerError as error:
        if needs_tokenizer:
            raise
        packed = pack_tokenizer(None, vocab_size=vocab_size, stop_ids=stop_ids)
        notes.append(f"MNN's own tokenizer cannot be used: {error.found}")
    jinja = None
    if tokenizer is not None and tokenizer.has_chat_template:
        jinja = jinja_fields(tokenizer.chat_template, tokenizer.special_tokens)
        notes += [jinja["note"]] if "note" in jinja else []
    return TextSide(packed, jinja, "; ".join(notes))


def llm_config(artifact: Artifact, low: Lowering, text: TextSide, tied: Json) -> Json:
    """What MNN wants to know of the model."""
    fields: Json = {
        "model_type": artifact.manifest["model_type"],
        "hidden_size": low.hidden_size,
        "layer_nums": low.attentions,
        "attention_mask": "float",
        "attention_type": "full",
        "is_mrope": False,
        "max_position_embeddings": low.context_length,
    }
    if text.jinja is not None:
        fields["jinja"] = text.jinja
    if tied:
        fields["tie_embeddings"] = tied
    return fields


def runtime_config(artifact: Artifact, names: Names, text: TextSide, embedding: str) -> Json:
    """What MNN loads, and how it runs it; phones and their users change the rest."""
    return {
        "llm_model": names.model,
        "llm_weight": names.weight,
        "llm_config": names.of("llm_config.json"),
        "tokenizer_file": names.of(TOKENIZER),
        **({"embedding_file": embedding} if embedding else {}),
        "backend_type": "cpu",
        "thread_num": 4,
        "precision": "low",
        "memory": "low",
        "system_prompt": "",
        "use_template": text.jinja is not None,
        **_sampling(GenerationConfig.read(artifact.text_files, artifact.config)),
    }


def _sampling(generation: GenerationConfig) -> Json:
    """What the model's makers recommend, in MNN's names; only the steps that do something."""
    params = generation.params
    if params.temperature == 0.0:
        return {"sampler_type": "greedy"}
    steps = {
        "penalty": ("penalty", params.repetition_penalty, params.repetition_penalty != 1.0),
        "topK": ("topK", params.top_k, params.top_k > 0),
        "topP": ("topP", params.top_p, params.top_p < 1.0),
        "min_p": ("minP", params.min_p, params.min_p > 0.0),
        "temperature": ("temperature", params.temperature, True),
    }
    wanted = {name: step for name, step in steps.items() if step[2]}
    fields = {field: value for field, value, _ in wanted.values()}
    return {"sampler_type": "mixed", "mixed_samplers": list(wanted), **fields}
