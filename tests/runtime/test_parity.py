"""Whole models on the engine against the library that made them, and against themselves."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from program_dir import cpu
from torch.utils.flop_counter import FlopCounterMode

from deepmnn import _core
from deepmnn.backends.base import Batch
from parity import (
    SCHEDULES,
    check_outputs,
    check_parity,
    lowered,
    prompts_for,
    reference,
    reference_absorbed,
    run_schedule,
)
from tiny_models import ALL, tiny_checkpoint

LATENT = [m for m in ALL if m[0] in ("deepseek_v2", "deepseek_v3", "deepseek_v32")]
"""Those with MLA."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    made = {}

    def make(model_type, index):
        if (model_type, index) not in made:
            folder = tmp_path_factory.mktemp(f"{model_type}-{index}")
            made[model_type, index] = tiny_checkpoint(model_type, index, folder)
        return made[model_type, index]

    return make


@pytest.mark.parametrize(("model_type", "index"), ALL)
@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_every_model_at_every_level(tiny, model_type, index, level):
    check_parity(tiny(model_type, index), cpu(threads=2), level)


@pytest.mark.parametrize(("model_type", "index"), ALL)
@pytest.mark.parametrize("level", [0, 3])
def test_hidden_states_are_the_oracles(tiny, model_type, index, level):
    check_outputs(tiny(model_type, index), cpu(threads=2), level, 1e-4, "ragged")


@pytest.mark.parametrize("model_type", ["qwen3", "deepseek_v3", "deepseek_v32"])
def test_hidden_states_change_no_bit_of_quantised_logits(tiny, model_type):
    """Without them the last norm leaves the head quantised rows alone."""
    model = tiny(model_type, 0)
    lengths, steps = SCHEDULES["chunks"]
    prompts = prompts_for(lengths, model.config["vocab_size"])
    runs = []
    for outputs in (("logits",), ("hidden", "logits")):
        graph = lowered(model, 3, outputs)
        for weight in graph.weights.values():
            if weight.format != "vector":
                weight.format = "w8"
        runs.append(run_schedule(cpu()(graph, model), prompts, steps))
    np.testing.assert_array_equal(*runs)


@pytest.mark.parametrize(
    ("model_type", "index"),
    [("qwen3", 1), ("qwen2", 3), ("deepseek_v2", 1), ("deepseek_v3", 0), ("deepseek_v32", 0)],
)
def test_the_program_says_what_torch_multiplies(tiny, model_type, index):
    """For one token, which sees one row: its own."""
    model = tiny(model_type, index)
    with FlopCounterMode(display=False) as counter:
        model.logits([3])
    instructions = cpu()(lowered(model, 0), model).model.instructions
    found = sum(entry["row_macs"] + entry["context_macs"] for entry in instructions)
    assert found == counter.get_total_flops() / 2


@pytest.mark.parametrize(("model_type", "index"), ALL)
def test_an_int8_cache_is_close(tiny, model_type, index):
    """Rotated numbers of rows and queries are off by at most 1/254 of the largest of their 64.

    The median token, as a random router with near ties sends a few tokens to other experts.
    """
    model = tiny(model_type, index)
    vocab_size = model.config["vocab_size"]
    for level in (0, 3):
        engine, errors = cpu(threads=2)(lowered(model, level), model), []
        for lengths, steps in SCHEDULES.values():
            prompts = prompts_for(lengths, vocab_size)
            got = np.concatenate(run_schedule(engine, prompts, steps, cache_dtype="int8"))
            want = np.concatenate([model.logits(prompt) for prompt in prompts])
            errors += [*np.abs(got - want).max(axis=1) / np.abs(want).max()]
        assert 0 < np.median(errors) < 2.5e-2


@pytest.mark.parametrize(
    ("model_type", "index", "form"),
    [(*m, "expanded") for m in ALL] + [(*m, "absorbed") for m in LATENT],
)
def test_an_int8_cache_holds_the_references_codes(tiny, model_type, index, form):
    """What is left: weights of values in 15 bits move a number of a later row into the next code.

    The median token, for the same reason as above.
    """
    model, graph = tiny(model_type, index), lowered(tiny(model_type, index), 3)
    engine = cpu(threads=2, mla_form=form)(graph, model)
    oracle = (reference_absorbed if form == "absorbed" else reference)(graph, model)
    errors = []
    for lengths, steps in SCHEDULES.values():
        prompts = prompts_for(lengths, model.config["vocab_size"])
        got, want = (
            np.concatenate(run_schedule(backend, prompts, steps, cache_dtype="int8"))
            for backend in (engine, oracle)
        )
        errors += [*np.abs(got - want).max(axis=1) / np.abs(want).max()]
    assert np.median(errors) < 2e-3


@pytest.mark.parametrize("isa", _core.isas())
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("model_type", ["qwen3", "deepseek_v2", "deepseek_v3", "deepseek_v32"])
def test_every_isa(tiny, model_type, isa, threads):
    for index in range(3):
        check_parity(tiny(model_type, index), cpu(threads=threads, isa=isa), 3)


@pytest.mark.parametrize("form", ["absorbed", "expanded"])
@pytest.mark.parametrize(("model_type", "index"), LATENT)
def test_both_forms_of_latent_attention(tiny, model_type, index, form):
    check_parity(tiny(model_type, index), cpu(threads=2, mla_form=form), 3)


@pytest.mark.parametrize("dtype", ["f32", "bf16", "w4"])
@pytest.mark.parametrize("model_type", ["llama", "deepseek_v3", "deepseek_v32"])
def test_the_same_numbers_whatever_the_threads(tiny, model_type, dtype):
    """How work is cut up must not show: logits are equal bit for bit."""
    model = tiny(model_type, 0)
    graph = lowered(model, 3)
    for weight in graph.weights.values():
        if weight.format != "vector" and weight.role != "router":
            weight.format = dtype
    lengths, steps = SCHEDULES["ragged"]
    prompts = prompts_for(lengths, model.config["vocab_size"])
    runs = [
        run_schedule(cpu(threads=threads)(graph, model), prompts, steps) for threads in (1, 2, 5, 2)
    ]
    for run in runs[1:]:
        for got, want in zip(run, runs[0], strict=True):
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("model_type", ["qwen3", "deepseek_v3", "deepseek_v32"])
def test_the_same_numbers_whatever_the_company(tiny, model_type):
    """Other sequences in the step, and the cache blocks one is given, must not show either.

    True of quantised weights, whose sums are exact; float32 sums depend on the kernel's tile.
    """
    model = tiny(model_type, 0)
    graph = lowered(model, 3)
    for weight in graph.weights.values():
        if weight.format != "vector":
            weight.format = "w8"
    backend = cpu(threads=2)(graph, model)
    prompts = prompts_for([19, 7, 11], model.config["vocab_size"])
    steps = [(4, 2, 1), (9, 1, 0), (1, 1, 8), (1, 0, 1), (4, 3, 1)]
    together = run_schedule(backend, prompts, steps)
    for index, prompt in enumerate(prompts):
        alone = [(step[index],) for step in steps if step[index]]
        np.testing.assert_array_equal(run_schedule(backend, [prompt], alone)[0], together[index])


def test_two_threads_take_turns(tiny):
    model = tiny("deepseek_v3", 0)
    backend = cpu(threads=2)(lowered(model, 3), model)
    prompts = prompts_for([23, 23], model.config["vocab_size"])
    steps = SCHEDULES["chunks"][1]
    want = [run_schedule(backend, [prompt], steps)[0] for prompt in prompts]
    for _ in range(5):
        with ThreadPoolExecutor(2) as executor:
            runs = [executor.submit(run_schedule, backend, [prompt], steps) for prompt in prompts]
        for run, expected in zip(runs, want, strict=True):
            np.testing.assert_array_equal(run.result()[0], expected)


def test_a_step_may_want_no_logits(tiny):
    model = tiny("deepseek_v3", 0)
    backend = cpu(threads=2)(lowered(model, 3), model)
    cache = backend.new_cache(4, 8)
    ids = np.arange(9, dtype=np.int32)

    def step(start, stop, rows):
        return backend.step(
            cache,
            Batch(
                ids=ids[start:stop],
                positions=np.arange(start, stop, dtype=np.int32),
                sequence_starts=np.array([0, stop - start], np.int32),
                context_lengths=np.array([stop], np.int32),
                block_tables=np.array([[2, 0, -1]], np.int32),
                logit_rows=np.array(rows, np.int32),
            ),
        )

    assert step(0, 7, []).shape == (0, backend.vocab_size)
    got = step(7, 9, [1, 0, 1])
    want = model.logits(ids)[[8, 7, 8]]
    assert np.abs(got - want).max() < 1e-4 * np.abs(want).max()


def test_a_shared_prefix_is_read_by_two_sequences(tiny):
    model = tiny("qwen3", 1)
    backend = cpu(threads=2)(lowered(model, 3), model)
    cache = backend.new_cache(6, 4)
    prefix, tails = [5, 9, 2, 7], [[1, 3], [8]]
    first = Batch(
        ids=np.array(prefix + tails[0], np.int32),
        positions=np.arange(6, dtype=np.int32),
        sequence_starts=np.array([0, 6], np.int32),
        context_lengths=np.array([6], np.int32),
        block_tables=np.array([[3, 1]], np.int32),
        logit_rows=np.array([5], np.int32),
    )
    backend.step(cache, first)
    second = Batch(
        ids=np.array([8, 4], np.int32),
        positions=np.array([4, 6], np.int32),
        sequence_starts=np.array([0, 1, 2], np.int32),
        context_lengths=np.array([5, 7], np.int32),
        block_tables=np.array([[3, 5], [3, 1]], np.int32),
        logit_rows=np.array([0, 1], np.int32),
    )
    got = backend.step(cache, second)
    want = np.stack([model.logits([*prefix, 8])[-1], model.logits([*prefix, 1, 3, 4])[-1]])
    assert np.abs(got - want).max() < 1e-4 * np.abs(want).max()


def test_a_copied_block_continues_alone(tiny):
    model = tiny("deepseek_v2", 0)
    backend = cpu()(lowered(model, 3), model)
    cache = backend.new_cache(3, 4)

    def step(ids, start, block):
        return backend.step(
            cache,
            Batch(
                ids=np.array(ids, np.int32),
                positions=np.arange(start, start + len(ids), dtype=np.int32),
                sequence_starts=np.array([0, len(ids)], np.int32),
                context_lengths=np.array([start + len(ids)], np.int32),
                block_tables=np.array([[block]], np.int32),
                logit_rows=np.array([len(ids) - 1], np.int32),
            ),
        )[0]

    step([5, 9], 0, 0)
    cache.copy_block(0, 2)
    step([7], 2, 0)
    got, want = step([4], 2, 2), model.logits([5, 9, 4])[-1]
    assert np.abs(got - want).max() < 1e-4 * np.abs(want).max()
