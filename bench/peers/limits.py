"""This machine's limits, and the most tokens per second that they allow for a shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.peers.engine import Case

if TYPE_CHECKING:
    from deepmnn.graph.workload import Workload

KV_NBYTES = 2
"""Bytes of a cached number that the limit assumes: 16 bits, which most engines use."""


@dataclass(frozen=True)
class Machine:
    """Bytes per second read from memory, multiply-accumulates per second in int8 and in f32."""

    read_bandwidth: float
    int8_macs: float
    f32_macs: float = 0.0

    @staticmethod
    def best(measured: Sequence[Machine]) -> Machine:
        """The best of several measurements: a disturbance only lowers a figure."""
        return Machine(
            max(machine.read_bandwidth for machine in measured),
            max(machine.int8_macs for machine in measured),
            max(machine.f32_macs for machine in measured),
        )


def measure_machine(threads: int) -> Machine:
    """Takes about a second, in which nothing else should run. DEEPMNN_ISA sets the kernels."""
    from deepmnn import _core

    return Machine(
        float(_core.measure_read_bandwidth(threads)),
        float(_core.measure_int8_peak(threads)),
        float(_core.measure_f32_peak(threads)),
    )


@dataclass(frozen=True)
class Costs:
    """What tokens of a shape cost in w4.

    The two differ in latent attention: decode on the latents reads fewer bytes, prefill with
    expanded keys and values takes fewer multiply-accumulates.
    """

    prefill: Workload
    decode: Workload
    weights_nbytes: int

    @staticmethod
    def of(config: Mapping[str, Any]) -> Costs:
        """From the graph that deepmnn makes of a config.json."""
        from deepmnn import models
        from deepmnn.graph.levels import optimize
        from deepmnn.graph.workload import Workload
        from deepmnn.quant.recipe import RECIPES, apply

        graph, _ = optimize(models.build(dict(config)), 3, None)
        apply(graph, RECIPES["w4"])
        decode = Workload.of(graph)
        experts = sum(layer.experts * layer.nbytes for layer in decode.experts)
        table = config["vocab_size"] * decode.embedding_nbytes
        return Costs(decode.in_form("expanded"), decode, int(decode.dense_nbytes + experts + table))


def limit(costs: Costs, machine: Machine, case: Case) -> float:
    """The most tokens per second that the machine allows.

    A step takes at least the time to read its weights and cache, and at least the time of its
    multiply-accumulates at the int8 peak; whichever is longer counts.
    """
    if not case.steps:
        tokens = case.batch * case.tokens
        macs = costs.prefill.macs(tokens, case.tokens / 2, case.batch)
        nbytes = costs.prefill.decode_nbytes(tokens, 0, KV_NBYTES)
    else:
        tokens, context = case.batch, case.tokens + case.steps / 2
        macs = costs.decode.macs(tokens, context, tokens)
        nbytes = costs.decode.decode_nbytes(tokens, context, KV_NBYTES)
    return tokens / max(macs / machine.int8_macs, nbytes / machine.read_bandwidth)
