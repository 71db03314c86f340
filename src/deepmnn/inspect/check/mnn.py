"""A folder for MNN: what its network holds, against the same definitions.

MNN's RoPE op turns i with i + dim/2, its Attention scales by 1/√head size; a model that wants
something else has it in its operands. So tables, factors, norms and routers are read from there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepmnn.errors import ArtifactError, TokenizerError
from deepmnn.exporters.mnn.folder import MnnFolder
from deepmnn.exporters.mnn.mtok import FILE as TOKENIZER
from deepmnn.exporters.mnn.names import locate
from deepmnn.inspect.check.attention import judge_mscale, judge_scale, softmax_scale
from deepmnn.inspect.check.line import Line, judged, skipped
from deepmnn.inspect.check.network import Net, Op
from deepmnn.inspect.check.norms import LATENT_EPS, judge_eps
from deepmnn.inspect.check.probe import Sizes
from deepmnn.inspect.check.rope import (
    amplitude,
    far_positions,
    frequencies,
    interleaved,
    judge_angles,
)
from deepmnn.inspect.check.router import ROWS, Chosen, Routing, judge_router, together
from deepmnn.inspect.check.subject import with_defaults
from deepmnn.text.answer_end import end_ids
from deepmnn.text.generation_config import GenerationConfig
from deepmnn.text.tokenizer import FILE, Tokenizer

F64 = NDArray[np.float64]
_AGAIN = "Export the model again with this version."


def check_folder(folder: MnnFolder) -> Iterator[Line]:
    """What the engine's checks say of a converted model, as far as a network shows it."""
    directory, names = locate(folder.path)
    net = Net(directory / names.model, directory / names.weight)
    config = with_defaults(folder.config)
    yield from _tables(net, config)
    yield judge_scale("", _scales(net, config), softmax_scale(config))
    yield from _routers(net, config)
    yield _norms(net, config)
    head = (directory / names.of(TOKENIZER)).read_bytes().split(b"\n", 3)
    try:
        yield from list(_text(folder, *_head_ids(head)))
    except TokenizerError as fault:  # the lines about the tokenizer say so, too
        yield skipped("MNN's end of an answer", fault.shell)


def _tables(net: Net, config: Mapping[str, Any]) -> Iterator[Line]:
    """cos and sin of the network's own tables."""
    pairs = "the rows of queries and keys are reordered in the weights"
    if interleaved(config):
        yield skipped("RoPE pairs", f"{pairs}: compare the folder with its converted model")
    positions = far_positions(config)
    asked = {net.input("position_ids"): np.asarray(positions, np.int64)[None]}
    found = [table.reshape(len(positions), -1) for table in net.compute(_rotary(net), asked)]
    expected = frequencies(config, Sizes.of(config).rotary)
    angles = np.asarray(positions, np.float64)[:, None] * expected
    several = len(found) > 2
    for number in range(0, len(found), 2):
        cos, sin = (table[:, : len(expected)] for table in found[number : number + 2])
        where = f", table {number // 2}" if several else ""
        size = float(np.median(cos[0]))
        yield judge_angles(config, where, positions, (cos / size, sin / size), angles)
        yield from judge_mscale(config, where, size, amplitude(config))


def _rotary(net: Net) -> list[int]:
    """The tensors that follow from positions alone, where others meet them: cos, sin, cos, ..."""
    position = net.input("position_ids")
    known, follows = set[int](), {position}
    for op in net.ops:
        inputs, outputs = net.inputs(op), op["outputIndexes"] or ()
        if net.kind(op) == "Const":
            known.update(outputs)
        elif inputs and follows.intersection(inputs) and follows.union(known).issuperset(inputs):
            follows.update(outputs)
    found = {}
    for op in net.ops:
        met = [at for at in net.inputs(op) if at in follows]
        if met and not follows.union(known).issuperset(net.inputs(op)):
            found.update(dict.fromkeys(_unshaped(net, at) for at in met))
    return sorted(found)


def _unshaped(net: Net, tensor: int) -> int:
    """Before its reshapes: every layer has its own."""
    while net.kind(net.maker(tensor)) == "Reshape":
        (tensor,) = net.inputs(net.maker(tensor))
    return tensor


def _scales(net: Net, config: Mapping[str, Any]) -> list[float]:
    """What every attention multiplies its scores by."""
    sizes = Sizes.of(config)
    return [_attention_scale(net, op, sizes) for op in net.of_kind("Attention")]


def _attention_scale(net: Net, op: Op, sizes: Sizes) -> float:
    """1/√size, times the factor in its queries; size counts the zeros that they are filled with."""
    tensor, factor, size = net.inputs(op)[0], 1.0, sizes.nope + sizes.rotary
    while True:
        maker = net.maker(tensor)
        kind, inputs = net.kind(maker), net.inputs(maker)
        if kind == "BinaryOp":
            factor *= float(net.constant(net.maker(inputs[1])).reshape(()))
        elif kind == "Padding":
            size += int(net.constant(net.maker(inputs[1]))[-1])
        else:
            absorbed = kind == "Concat" and _is_absorbed(net, maker)
            size += sizes.rank - sizes.nope if absorbed else 0
            return factor / math.sqrt(size)
        tensor = inputs[0]


def _is_absorbed(net: Net, concat: Op) -> bool:
    """Whether queries were moved to the latents, [1, tokens, heads, rank], before a concat."""
    first = net.maker(net.inputs(concat)[0])
    return net.kind(first) == "Permute"


def _routers(net: Net, config: Mapping[str, Any]) -> list[Line]:
    """Every router on random logits."""
    routing, lines = Routing.of(config), []
    rng = np.random.default_rng(3)
    for layer, op in enumerate(net.of_kind("MoE")):
        _, weights, indices = net.inputs(op)
        logits, experts = _router_logits(net, weights)
        given = rng.standard_normal((ROWS, experts)) * 2
        values, chosen = net.compute([weights, indices], {logits: given[:, :, None, None]})
        found = _sorted(chosen, values)
        bias = _bias(net, indices, experts) if routing.has_bias else np.zeros(experts)
        lines.append(judge_router(f"router, expert layer {layer}", routing, given, bias, found))
    return together(lines)


def _sorted(indices: NDArray[np.int64], weights: F64) -> Chosen:
    order = np.argsort(indices, axis=1)
    return np.take_along_axis(indices, order, axis=1), np.take_along_axis(weights, order, axis=1)


def _router_logits(net: Net, weights: int) -> tuple[int, int]:
    """The convolution that weights follow from, and how many experts it has."""
    for tensor in net.before(weights, stop="Convolution"):
        op = net.maker(tensor)
        if net.kind(op) == "Convolution":
            return tensor, int(op["main"]["common"]["outputCount"])
    raise ArtifactError("the network's experts follow from no router", "a convolution", _AGAIN)


def _bias(net: Net, indices: int, experts: int) -> F64:
    """The vector that is added to the scores before the choice."""
    for tensor in net.before(indices, stop="Convolution"):
        op = net.maker(tensor)
        if net.kind(op) == "Const" and (op["main"]["dims"] or ()) == (1, experts):
            return np.asarray(net.constant(op)[0], np.float64)
    return np.zeros(experts)


def _norms(net: Net, config: Mapping[str, Any]) -> Line:
    """The epsilon of every norm: by the width, which says whose norm it is."""
    sizes = Sizes.of(config)
    own = float(config.get("rms_norm_eps", 1e-6))
    latent = {sizes.rank, int(config.get("q_lora_rank") or 0)} - {0} if sizes.rank else set[int]()
    found: list[tuple[str, float, float]] = []
    for op in net.of_kind("LayerNorm"):
        width = op["main"]["external"][1] // 4
        is_latent = width in latent and (width != config["hidden_size"] or len(net.inputs(op)) == 1)
        eps = float(op["main"]["epsilon"])
        if is_latent and width == config["hidden_size"] and _near(eps, own):
            is_latent = False  # a latent as wide as the model: either may be meant
        found.append((f"{op['name']}, {width} wide", eps, LATENT_EPS if is_latent else own))
    for op in net.of_kind("RoPE"):
        for which in ("q_norm", "k_norm"):
            norm = op["main"][which]
            if norm is not None:
                found.append((f"{which} of {op['name']}", float(norm["epsilon"]), own))
    wrong = [each for each in found if not _near(each[1], each[2])]
    return judge_eps(found[0] if not wrong else wrong[0], len(found), len(wrong), _AGAIN)


def _near(found: float, expected: float) -> bool:
    return abs(found - expected) <= 1e-5 * expected


def _head_ids(head: list[bytes]) -> tuple[list[int], list[int]]:
    """The ids that end an answer and those in front of every text, of tokenizer.mtok."""
    _, stops, _ = (int(word) for word in head[1].split())
    ids = [int(word) for word in head[2].split()]
    return ids[:stops], ids[stops:]


def _text(folder: MnnFolder, stops: list[int], prefix: list[int]) -> Iterator[Line]:
    """MNN's own tokenizer: when it stops, and what it puts in front."""
    if FILE not in folder.text_files:
        yield skipped("MNN's end of an answer", f"the model has no {FILE}")
        return
    tokenizer = Tokenizer(folder.text_files)
    generation = GenerationConfig.read(folder.text_files, folder.config)
    missing = sorted(end_ids(tokenizer, generation) - set(stops))
    named = ", ".join(f"{i} {tokenizer.special_text(i)!r:.40}" for i in stops)
    said = named + (f"; without {missing}" if missing else "")
    advice = f"MNN goes on behind an answer. {_AGAIN}"
    yield judged("MNN's end of an answer", not missing, said, "all ids that end one", advice)
    bos = tokenizer.token_id(tokenizer.special_tokens.get("bos_token", ""))
    if bos is not None:
        written = 0
        if tokenizer.has_chat_template:
            prompt = tokenizer.apply_chat_template([{"role": "user", "content": "Hello."}])
            written = tokenizer.encode(prompt, add_special_tokens=False)[:2].count(bos)
        found = prefix.count(bos) + written
        said = f"{prefix.count(bos)} by the tokenizer, {written} by the template"
        advice = f"MNN's prompts begin with BOS twice. {_AGAIN}"
        yield judged("MNN's BOS", found <= 1, said, "one at most", advice, found)
