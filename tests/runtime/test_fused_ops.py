"""Every fused op of docs/ops.md on the engine against the numpy reference."""

import numpy as np
import pytest
from one_op import INT8_CACHE, VOCAB, add, ceil_rows, check, one_op, rotary
from program_dir import cpu_of, random_weights

from deepmnn import _core
from deepmnn.backends.reference import ReferenceBackend
from deepmnn.graph.caches import CacheEntry
from parity import SCHEDULES, Runner, prompts_for, relative_error, run_schedule
from storage import NAMES, QUANTIZED_NAMES


def f32(graph, *names):
    for name in names:
        graph.weights[name].format = "f32"
    return graph


@pytest.mark.parametrize("width", [1, 16, 33, 200])
def test_add_rms_norm(width):
    def build(b, x):
        w = b.weight("norm", (width,), "vector")
        total, normed = add(b, "add_rms_norm", [x, b.silu(x, "s")], [width, width], [w], eps=0.01)
        return b.mul(total, normed, "y")

    check(one_op(build, width), threads=2)


@pytest.mark.parametrize("dtype", NAMES)
@pytest.mark.parametrize("sizes", [(16, 32), (5, 3, 9), (1, 1), (20, 12, 17, 16), (40, 7)])
def test_linear_with_several_outputs(dtype, sizes):
    """Outputs that start inside a block of 16 rows of the weight."""

    def build(b, x):
        w = b.weight("w", (sum(sizes), b.value(x).width), "linear")
        bias = b.weight("bias", (sum(sizes),), "vector")
        return b.concat(list(reversed(add(b, "linear", [x], list(sizes), [w, bias]))), "y")

    check(one_op(build, 40, dtype), threads=3)


@pytest.mark.parametrize("dtype", NAMES)
@pytest.mark.parametrize("limit", [0.0, 0.3])
@pytest.mark.parametrize("size", [1, 16, 19, 64])
def test_swiglu(dtype, size, limit):
    def build(b, x):
        w = b.weight("gate_up", (2 * ceil_rows(size), b.value(x).width), "linear")
        return add(b, "swiglu", [x], [size], [w], intermediate_size=size, limit=limit)[0]

    check(one_op(build, 70, dtype), threads=2)


def engine_logits(graph, lengths):
    """Of whole prompts, on the engine."""
    engine = cpu_of(graph, random_weights(graph).__getitem__, threads=2)
    return np.concatenate(run_schedule(engine, prompts_for(lengths, VOCAB), [lengths], blocks=400))


@pytest.mark.parametrize("dtype", QUANTIZED_NAMES)
@pytest.mark.parametrize("size", [1, 16, 100, 129, 256, 300, 700])
@pytest.mark.parametrize("lengths", [(1,), (3,), (300, 7)])
def test_swiglu_quantises_for_the_linear_that_reads_it(dtype, size, lengths):
    """The same bits as when an instruction stands between the two, so that floats are written."""

    def graph(apart):
        def build(b, x):
            w = b.weight("gate_up", (2 * ceil_rows(size), b.value(x).width), "linear")
            other = None if apart else b.silu(x, "other")
            y = add(b, "swiglu", [x], [size], [w], intermediate_size=size, limit=0.0)[0]
            other = other or b.silu(x, "other")
            return b.add(b.linear(y, "down", b.value(x).width), other, "sum")

        return one_op(build, 70, dtype)

    want = engine_logits(graph(True), lengths)
    np.testing.assert_array_equal(engine_logits(graph(False), lengths), want)


@pytest.mark.parametrize("dtype", QUANTIZED_NAMES)
@pytest.mark.parametrize("norm", ["rms_norm", "rms_norm of 2 heads", "add_rms_norm"])
@pytest.mark.parametrize("reader", ["linear", "swiglu"])
@pytest.mark.parametrize("width", [2, 70, 256, 600])
@pytest.mark.parametrize("lengths", [(1,), (300, 7)])
def test_norm_quantises_for_the_product_that_reads_it(dtype, norm, reader, width, lengths):
    """The same bits as when an instruction stands between the two, so that floats are written."""

    def graph(apart):
        def build(b, x):
            w = b.weight("norm", (width // 2 if "2" in norm else width,), "vector")
            if norm == "add_rms_norm":
                twice = b.silu(x, "twice")
                other = None if apart else b.silu(x, "other")
                y = add(b, norm, [x, twice], [width, width], [w], eps=0.01)[1]
            else:
                other = None if apart else b.silu(x, "other")
                heads = 2 if "2" in norm else 1
                y = add(b, "rms_norm", [x], [width], [w], heads=heads, eps=0.01)[0]
            other = other or b.silu(x, "other")
            if reader == "linear":
                y = b.linear(y, "down", width)
            else:
                gate_up = b.weight("gate_up", (2 * ceil_rows(width), width), "linear")
                y = add(b, "swiglu", [y], [width], [gate_up], intermediate_size=width, limit=0.0)[0]
            return b.add(y, other, "sum")

        return one_op(build, width, dtype)

    want = engine_logits(graph(True), lengths)
    np.testing.assert_array_equal(engine_logits(graph(False), lengths), want)


@pytest.mark.parametrize("dtype", QUANTIZED_NAMES)
def test_norm_that_two_instructions_read(dtype):
    """One of them reads floats."""

    def build(b, x):
        w = b.weight("norm", (70,), "vector")
        total, y = add(b, "add_rms_norm", [x, b.silu(x, "s")], [70, 70], [w], eps=0.01)
        return b.add(b.linear(y, "down", 70), b.mul(y, total, "floats"), "sum")

    check(one_op(build, 70, dtype), threads=2)


def test_swiglu_that_two_instructions_read():
    """One of them reads floats."""

    def build(b, x):
        w = b.weight("gate_up", (2 * ceil_rows(100), b.value(x).width), "linear")
        y = add(b, "swiglu", [x], [100], [w], intermediate_size=100, limit=0.0)[0]
        return b.add(b.linear(y, "down", 100), y, "sum")

    check(one_op(build, 70, "w8"), threads=2)


def gqa(heads, kv_heads, dim, v_dim, norms):
    def build(b, x):
        q, k = b.linear(x, "q", heads * dim), b.linear(x, "k", kv_heads * dim)
        v = b.linear(x, "v", kv_heads * v_dim)
        b.graph.caches |= {
            "keys": CacheEntry(kv_heads * dim),
            "values": CacheEntry(kv_heads * v_dim),
        }
        weights = [b.weight(f"{n}_norm", (dim,), "vector") for n in "qk"] if norms else []
        sizes = {"heads": heads, "kv_heads": kv_heads, "head_dim": dim, "v_head_dim": v_dim}
        caches = {"k_cache": "keys", "v_cache": "values"}
        attrs = sizes | caches | rotary(dim, norms) | {"scale": 0.7, "eps": 0.01}
        return add(b, "gqa_attention", [q, k, v, b.positions], [heads * v_dim], weights, **attrs)[0]

    return build


@pytest.mark.parametrize("schedule", ["prefill", "one by one", "chunks", "ragged"])
@pytest.mark.parametrize("cache_dtype", ["f32", "bf16"])
@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize("sizes", [(1, 1, 2, 1), (6, 2, 18, 7)])
def test_gqa_attention(schedule, cache_dtype, norms, sizes):
    check(one_op(gqa(*sizes, norms), 33), schedule, cache_dtype, threads=2)


@pytest.mark.parametrize("schedule", ["prefill", "one by one", "chunks", "ragged"])
@pytest.mark.parametrize(
    "sizes", [(1, 1, 2, 1), (6, 2, 18, 7), (12, 2, 64, 80), (4, 4, 40, 96), (3, 1, 192, 128)]
)
def test_gqa_attention_int8_cache(schedule, sizes):
    check(one_op(gqa(*sizes, True), 33), schedule, "int8", tolerance=INT8_CACHE, threads=2)


@pytest.mark.parametrize("isa", _core.isas())
@pytest.mark.parametrize("sizes", [(6, 2, 80, 48), (4, 2, 128, 64)])
def test_int8_cache_on_every_isa(isa, sizes):
    check(one_op(gqa(*sizes, False), 33), "chunks", "int8", tolerance=INT8_CACHE, isa=isa)
    latent = one_op(mla(3, 2 * sizes[2], 10, sizes[3], 17), 33)
    for form in ("absorbed", "expanded"):
        check(latent, "chunks", "int8", tolerance=INT8_CACHE, isa=isa, mla_form=form)


@pytest.mark.parametrize("dim", [40, 64, 80, 128])
def test_an_int8_cache_with_outliers(monkeypatch, dim):
    """Large biases of two columns of the keys, as in Qwen2, and one large column of the values."""

    def build(b, x):
        q = b.linear(x, "q", 4 * dim)
        k, v = (b.linear(x, name, 2 * dim, bias=True) for name in "kv")
        b.graph.caches |= {"keys": CacheEntry(2 * dim), "values": CacheEntry(2 * dim)}
        attrs = {"heads": 4, "kv_heads": 2, "head_dim": dim, "v_head_dim": dim}
        attrs |= {"k_cache": "keys", "v_cache": "values", "scale": dim**-0.5}
        attrs |= rotary(dim, False)
        return add(b, "gqa_attention", [q, k, v, b.positions], [4 * dim], [], **attrs)[0]

    graph = one_op(build, 33)
    weights = random_weights(graph)
    for name, columns in (("k.bias", [3, dim // 2 + 7, dim + 9]), ("v.bias", [5, dim + 1])):
        weights[name][:] = 0
        weights[name][columns] = 40
    lengths, steps = SCHEDULES["chunks"]
    prompts = prompts_for(lengths, VOCAB)

    def logits(backend, dtype):
        return np.concatenate(run_schedule(backend, prompts, steps, cache_dtype=dtype))

    engine = cpu_of(graph, weights.__getitem__, threads=2)
    exact = logits(engine, "f32")
    error = np.abs(logits(engine, "int8") - exact).mean()
    for turn in ("rotate_heads", "unrotate_heads"):
        monkeypatch.setattr(f"deepmnn.backends.reference.cache.{turn}", lambda x, head: x)
    unrotated = ReferenceBackend(graph, weights.__getitem__)
    assert error < np.abs(logits(unrotated, "int8") - exact).mean() / 2


def mla(heads, rank, nope, rope, v_dim):
    def build(b, x):
        q = b.linear(x, "q", heads * (nope + rope))
        kv = b.linear(x, "kv", rank + rope)
        b.graph.caches["latent"] = CacheEntry(rank + rope)
        weights = [
            b.weight("kv_a_norm", (rank,), "vector"),
            b.weight("w_uk", (heads * ceil_rows(nope), rank), "latent"),
            b.weight("w_uv", (heads * ceil_rows(v_dim), rank), "latent"),
        ]
        sizes = {"heads": heads, "kv_lora_rank": rank, "qk_nope_head_dim": nope}
        sizes |= {"qk_rope_head_dim": rope, "v_head_dim": v_dim}
        attrs = sizes | rotary(rope) | {"scale": 0.4, "eps": 0.01, "cache": "latent"}
        return add(b, "mla_attention", [q, kv, b.positions], [heads * v_dim], weights, **attrs)[0]

    return build


@pytest.mark.parametrize("schedule", ["prefill", "one by one", "chunks", "ragged"])
@pytest.mark.parametrize("cache_dtype", ["f32", "bf16"])
@pytest.mark.parametrize("form", ["absorbed", "expanded"])
@pytest.mark.parametrize("dtype", NAMES)
def test_mla_attention(schedule, cache_dtype, form, dtype):
    graph = one_op(mla(3, 35, 10, 6, 17), 33, dtype)
    check(f32(graph, "q.weight", "kv.weight"), schedule, cache_dtype, threads=2, mla_form=form)


@pytest.mark.parametrize("schedule", ["prefill", "one by one", "chunks", "ragged"])
@pytest.mark.parametrize("form", ["absorbed", "expanded"])
@pytest.mark.parametrize("sizes", [(3, 35, 10, 6, 17), (5, 80, 32, 8, 16), (16, 128, 32, 64, 32)])
def test_mla_attention_int8_cache(schedule, form, sizes):
    graph = one_op(mla(*sizes), 33)
    check(graph, schedule, "int8", tolerance=INT8_CACHE, threads=2, mla_form=form)


@pytest.mark.parametrize("form", ["absorbed", "expanded"])
@pytest.mark.parametrize("sizes", [(1, 1, 1, 2, 1), (2, 64, 32, 8, 16), (5, 16, 7, 4, 33)])
def test_mla_attention_sizes(form, sizes):
    check(one_op(mla(*sizes), 20), "ragged", threads=3, mla_form=form)


def sparse_mla(heads, rank, nope, rope, v_dim, index_heads, index_dim, top_k):
    def build(b, x):
        dense = mla(heads, rank, nope, rope, v_dim)(b, x)
        node = b.graph.nodes.pop()
        del b.graph.values[dense]
        b.graph.caches["index"] = CacheEntry(index_dim)
        index = [
            b.linear(x, "index_q", index_heads * index_dim),
            b.linear(x, "index_k", index_dim),
            b.linear(x, "index_w", index_heads),
        ]
        norm = [b.weight(f"index_norm.{part}", (index_dim,), "vector") for part in ("w", "b")]
        attrs = node.attrs | {"index_n_heads": index_heads, "index_head_dim": index_dim}
        attrs |= {"index_topk": top_k, "index_scale": 0.2, "index_eps": 1e-6}
        attrs |= {"index_interleaved": 0, "index_cache": "index"}
        inputs, weights = [*node.inputs, *index], [*node.weights, *norm]
        return add(b, "sparse_mla_attention", inputs, [heads * v_dim], weights, **attrs)[0]

    return build


INDEXED = ("q.weight", "kv.weight", "index_q.weight", "index_k.weight", "index_w.weight")


@pytest.mark.parametrize("schedule", ["prefill", "one by one", "chunks", "ragged"])
@pytest.mark.parametrize("cache_dtype", ["f32", "bf16"])
@pytest.mark.parametrize("form", ["absorbed", "expanded"])
@pytest.mark.parametrize("dtype", ["f32", "bf16", "w8", "w4"])
@pytest.mark.parametrize("top_k", [1, 4, 15])
def test_sparse_mla_attention(schedule, cache_dtype, form, dtype, top_k):
    graph = one_op(sparse_mla(3, 35, 10, 6, 17, 13, 11, top_k), 33, dtype)
    check(f32(graph, *INDEXED), schedule, cache_dtype, threads=2, mla_form=form)


@pytest.mark.parametrize("isa", _core.isas())
@pytest.mark.parametrize("schedule", ["prefill", "one by one", "chunks", "ragged"])
@pytest.mark.parametrize("form", ["absorbed", "expanded"])
@pytest.mark.parametrize("index", [(13, 32), (21, 64), (16, 100), (9, 128)])
def test_sparse_mla_attention_int8_cache(schedule, form, index, isa):
    graph = one_op(sparse_mla(5, 80, 32, 8, 16, *index, 5), 33)
    given = {"threads": 2, "mla_form": form, "isa": isa}
    check(graph, schedule, "int8", tolerance=INT8_CACHE, **given)


@pytest.mark.parametrize("cache_dtype", ["f32", "bf16", "int8"])
@pytest.mark.parametrize("form", ["absorbed", "expanded", "auto"])
def test_sparse_mla_attention_to_many_keys(cache_dtype, form):
    """Scores in several pieces, tokens in several groups, keys split and whole; one by one, too."""
    graph = one_op(sparse_mla(3, 64, 16, 8, 24, 13, 32, 301), 33)
    weights = random_weights(graph)
    prompts, given = prompts_for([700, 333], VOCAB), {"block_size": 16, "blocks": 80}
    steps = [(300, 0), (350, 333), (1, 0), (1, 0), (48, 0)]
    oracle = ReferenceBackend(
        graph, weights.__getitem__, "absorbed" if form != "expanded" else form
    )
    want = run_schedule(oracle, prompts, steps, cache_dtype=cache_dtype, **given)
    runs = []
    for threads in (1, 3):
        engine = cpu_of(graph, weights.__getitem__, threads=threads, mla_form=form)
        runs.append(run_schedule(engine, prompts, steps, cache_dtype=cache_dtype, **given))
    for one, three, expected in zip(*runs, want, strict=True):
        np.testing.assert_array_equal(one, three)
        errors = np.abs(one - expected).max(axis=1) / np.abs(expected).max()
        # A token in a thousand may choose another last key, where two scores nearly tie.
        assert np.quantile(errors, 0.99) < (INT8_CACHE if cache_dtype == "int8" else 2e-5)
        assert errors.max() < 0.1


@pytest.mark.parametrize("schedule", ["prefill", "one by one", "chunks", "ragged"])
@pytest.mark.parametrize("cache_dtype", ["f32", "bf16", "int8"])
@pytest.mark.parametrize("form", ["absorbed", "expanded", "auto"])
def test_all_keys_are_attended_as_in_mla_attention(schedule, cache_dtype, form):
    """To the bit, while a sequence is no longer than what is chosen."""
    lengths, steps = SCHEDULES[schedule]
    prompts, runs = prompts_for(lengths, VOCAB), []
    for build in (sparse_mla(3, 64, 10, 6, 17, 13, 11, 23), mla(3, 64, 10, 6, 17)):
        graph = one_op(build, 33, "w8")
        weights = random_weights(one_op(sparse_mla(3, 64, 10, 6, 17, 13, 11, 23), 33, "w8"))
        engine = cpu_of(graph, weights.__getitem__, threads=2, mla_form=form)
        runs.append(run_schedule(engine, prompts, steps, cache_dtype=cache_dtype))
    for sparse, dense in zip(*runs, strict=True):
        np.testing.assert_array_equal(sparse, dense)


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("n_group", "topk_group", "group_score"), [(1, 1, "max"), (4, 2, "max"), (3, 2, "top2_sum")]
)
@pytest.mark.parametrize("normalize", [0, 1])
def test_route(scoring, bias, n_group, topk_group, group_score, normalize):
    experts, k = 12, 4
    attrs = {"n_group": n_group, "topk_group": topk_group, "group_score": group_score}
    attrs |= {"scoring": scoring, "normalize": normalize, "top_k": k, "eps": 1e-9, "factor": 2.5}

    def build(b, x):
        logits = b.linear(x, "router", experts)
        weights = [b.weight("correction", (experts,), "vector")] if bias else []
        chosen, mixed = add(b, "route", [logits], [k, k], weights, **attrs)
        value = b.graph.values[chosen]
        b.graph.values[chosen] = type(value)(value.name, value.shape, "i32")
        return b.concat([mixed, b.gather(x, chosen, "which")], "y")

    check(one_op(build, 24))


def moe(experts, k, size, shared, routed=None, limit=0.0):
    """With `routed` only the first so many experts are ever chosen."""

    def build(b, x):
        scores = b.softmax(b.linear(x, "router", routed or experts), "scores")
        chosen = b.top_k(scores, "chosen", k)
        inputs = [x, chosen, b.gather(scores, chosen, "weights")]
        width = b.value(x).width
        weights = []
        for e in range(experts):
            weights.append(b.weight(f"{e}.gate_up", (2 * ceil_rows(size), width), "expert"))
            weights.append(b.weight(f"{e}.down", (width, size), "expert"))
        if shared:
            inputs.append(b.silu(x, "shared"))
        attrs = {"experts": experts, "top_k": k, "intermediate_size": size, "limit": limit}
        return add(b, "moe", inputs, [width], weights, **attrs)[0]

    return build


@pytest.mark.parametrize("dtype", NAMES)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("sizes", [(1, 1, 5), (7, 3, 19), (4, 4, 32), (3, 2, 150)])
@pytest.mark.parametrize("schedule", ["one by one", "ragged"])
def test_moe(dtype, shared, sizes, schedule):
    graph = one_op(moe(*sizes, shared), 33, dtype)
    check(f32(graph, "router.weight"), schedule, threads=2)


@pytest.mark.parametrize("dtype", QUANTIZED_NAMES)
@pytest.mark.parametrize("size", [19, 128, 300])
@pytest.mark.parametrize("lengths", [(1,), (5,), (300, 7)])
def test_moe_quantises_for_its_down_projections(dtype, size, lengths):
    """The same bits as with an expert, never chosen, whose down projection reads floats."""

    def graph(floats):
        graph = one_op(moe(4, 2, size, True, routed=3), 70, dtype)
        return f32(graph, "3.down") if floats else graph

    np.testing.assert_array_equal(
        engine_logits(graph(False), lengths), engine_logits(graph(True), lengths)
    )


def test_long_contexts_split_their_keys():
    """Decoding 700 rows back: more than one split, blocks of 3 rows in shuffled order."""
    for form in ("absorbed", "expanded"):
        graph = one_op(mla(3, 20, 10, 6, 17), 33)
        weights = random_weights(graph)
        backends = [
            ReferenceBackend(graph, weights.__getitem__, form),
            cpu_of(graph, weights.__getitem__, threads=2, mla_form=form),
        ]
        ids = np.random.default_rng(1).integers(0, 41, 703).tolist()
        answers = []
        for backend in backends:
            runner = Runner(backend, blocks=300)
            runner.step({0: ids[:600]})
            parts = [runner.step({0: part})[0] for part in (ids[600:700], ids[700:702], ids[702:])]
            answers.append(np.concatenate(parts))
        assert relative_error(answers[1], answers[0]) < 2e-5


def test_a_split_that_earlier_tokens_do_not_see():
    """129 keys in splits of 128, 130 heads: the first token's tile has none of the second."""
    graph = one_op(mla(130, 8, 4, 2, 3), 20)
    weights = random_weights(graph)
    prompt, steps = [np.random.default_rng(1).integers(0, 41, 129).tolist()], [(126,), (3,)]
    want, got = (
        run_schedule(backend, prompt, steps, blocks=50)[0]
        for backend in (
            ReferenceBackend(graph, weights.__getitem__, "absorbed"),
            cpu_of(graph, weights.__getitem__, threads=2, mla_form="absorbed"),
        )
    )
    assert relative_error(got, want) < 2e-5


def test_expanded_in_groups_of_heads():
    """All the heads together have more keys and values than are rebuilt at once."""
    graph = one_op(mla(3, 8, 1000, 8, 1001), 20)
    weights = random_weights(graph)
    prompt, steps = [np.random.default_rng(1).integers(0, 41, 1501).tolist()], [(1490,), (11,)]
    want, got = (
        run_schedule(backend, prompt, steps, blocks=501)[0]
        for backend in (
            ReferenceBackend(graph, weights.__getitem__, "expanded"),
            cpu_of(graph, weights.__getitem__, threads=2, mla_form="expanded"),
        )
    )
    assert relative_error(got, want) < 2e-5
