"""The names under which models keep their tensors, and what wrappers and libraries make of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from deepmnn.errors import CheckpointError, UnsupportedModelError
from deepmnn.source.deepseek_v4_names import has_own_names, transformers_name
from deepmnn.source.entry import Entry

WRAPPED = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Components that DDP, torch.compile, FSDP and activation checkpointing put into names."""

MAX_EXPERTS = 1 << 16
"""No layer has more experts; a damaged size is not taken for their number."""

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"

TABLE = ".tid2eid"
"""What a table of experts is called, whose whole numbers are no codes."""

_SCALES = "_scale_inv"
"""What scales of stacked FP8 experts are called, behind the name of the weights."""

_EMBEDDING = EMBEDDING.removeprefix("model.")


def plain_names(names: Iterable[str], what: object) -> dict[str, str]:
    """Name in the files → the one that a Hugging Face checkpoint has: "model.layers.0...".

    WRAPPED components go away anywhere, and so does whatever stands before "model.": a trainer's
    "model.", PEFT's "base_model.model.". Where the inner model was saved by itself, its "model." is
    added. What comes before the embedding shows which it is.

    Raises CheckpointError when two tensors get one name; `what` has them.
    """
    plain = {name: _unwrapped(name) for name in names}
    if has_own_names(plain.values()):
        plain = {name: transformers_name(short) for name, short in plain.items()}
    roots = [name.removesuffix(_EMBEDDING) for name in plain.values() if _is_embedding(name)]
    root = min(roots, key=len, default="model.")
    prefix, added = root.removesuffix("model."), ""
    if root != "model." and not root.endswith(".model."):
        inner = any(name.startswith(f"{root}layers.") for name in plain.values())
        prefix, added = (root, "model.") if inner else ("", "")
    renamed = {name: _rooted(short, prefix, added) for name, short in plain.items()}
    if len(set(renamed.values())) < len(renamed):
        raise CheckpointError(
            f"{what} has tensors of the same name with and without {_example(renamed)!r:.80}",
            "one model's weights",
            "Save one model's state dict.",
        )
    return renamed


def unstack_experts(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """Gives every expert tensors of its own, as checkpoints have them.

    Since version 5 transformers holds the experts of a layer in memory as two tensors,
    experts.gate_up_proj [experts, 2 · moe_intermediate_size, hidden_size] and
    experts.down_proj [experts, hidden_size, moe_intermediate_size]; model.state_dict() shows those.
    Of FP8 weights each has scales [experts, blocks of rows, blocks of columns], called like it with
    _scale_inv behind.

    Raises UnsupportedModelError for FP8 weights with other scales.
    """
    unstacked: dict[str, Entry] = {}
    for name, entry in entries.items():
        for part_name, part in _experts(name, entry, entries):
            if part_name in unstacked or (part_name != name and part_name in entries):
                raise CheckpointError(
                    f"{entry.file.path} has {part_name!r:.200} both by itself and in {name!r:.200}",
                    "each tensor once",
                    "Save one model's state dict.",
                )
            unstacked[part_name] = part
    return unstacked


def _experts(name: str, entry: Entry, entries: Mapping[str, Entry]) -> Iterator[tuple[str, Entry]]:
    """The tensors in one that may be stacked; itself when it is not."""
    layer, dot, last = name.rpartition(".experts.")
    projection = last.removesuffix(_SCALES)
    experts = entry.shape[0] if dot and len(entry.shape) == 3 else 0
    if projection not in ("gate_up_proj", "down_proj") or not 0 < experts <= MAX_EXPERTS:
        yield name, entry
        return
    if entry.dtype.startswith("F8") and last == projection:
        _check_scales(name, entry, entries)
    kind, rows = f"weight{last.removeprefix(projection)}", entry.shape[1]
    first, second = rows // 2, rows // 2
    if kind != "weight" and rows == 1:  # the one scale of gate and up
        first, second = 1, 0
    for expert in range(experts):
        of = f"{layer}.experts.{expert}"
        if projection == "down_proj":
            yield f"{of}.down_proj.{kind}", entry.part(expert)
        else:
            yield f"{of}.gate_proj.{kind}", entry.part(expert, 0, first)
            yield f"{of}.up_proj.{kind}", entry.part(expert, second)


def _check_scales(name: str, entry: Entry, entries: Mapping[str, Entry]) -> None:
    """Raises UnsupportedModelError unless stacked FP8 weights have scales that can be unstacked.

    Where gate and up are one matrix, no block may have rows of both. Sizes of blocks are powers of
    two: where rows / blocks is one, it is their size, or that of a half in one block.
    """
    scale = entries.get(name + _SCALES)
    experts, rows, _ = entry.shape
    blocks = 0 if scale is None or len(scale.shape) != 3 else scale.shape[1]
    size, rest = divmod(rows, blocks or 1)
    apart = blocks == 1 or (blocks % 2 == 0 and rest == 0 and size & (size - 1) == 0)
    if blocks and (apart or name.endswith("down_proj")):
        return
    found = {other: list(entries[other].shape) for other in entries if other.startswith(f"{name}_")}
    with_ = ", ".join(f"{other!r:.200} {shape}" for other, shape in found.items()) or "no scales"
    raise UnsupportedModelError(
        f"the stacked FP8 experts {name!r:.200} {list(entry.shape)} come with {with_:.500}",
        f"{name + _SCALES!r:.200} [{experts}, blocks of rows, blocks of columns], "
        "no block across gate and up",
        "Save the model with save_pretrained() of transformers, which gives each expert tensors of "
        "its own, or convert from the original checkpoint.",
    )


def _unwrapped(name: str) -> str:
    if not any(part in name for part in WRAPPED):
        return name
    return ".".join(part for part in name.split(".") if part not in WRAPPED)


def _is_embedding(name: str) -> bool:
    return name == _EMBEDDING or name.endswith("." + _EMBEDDING)


def _rooted(name: str, prefix: str, added: str) -> str:
    if not added:
        return name.removeprefix(prefix)
    if not name.startswith(prefix) or name.startswith(prefix + "lm_head."):
        return name.removeprefix(prefix)
    return added + name.removeprefix(prefix)


def _example(renamed: Mapping[str, str]) -> str:
    """What was taken off one of the names that another tensor has."""
    first: dict[str, str] = {}
    for name, short in renamed.items():
        other = first.setdefault(short, name)
        if other != name:
            longer = max(name, other, key=len)
            return longer.removesuffix(short)
    return ""
