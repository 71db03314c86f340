"""select_rows_early: what it writes, and what it must leave alone."""

from deepmnn.graph.ir import ROWS, TOKENS, Node
from deepmnn.graph.passes import select_rows_early
from deepmnn.graph.verify import verify
from small_graphs import WIDTH, Start, experts, named, node, ops, route


def attention(b, x, name="attn"):
    q, k, v = (b.linear(x, f"{name}.{part}", WIDTH) for part in "qkv")
    keys, values = b.cache(k, f"{name}.keys"), b.cache(v, f"{name}.values")
    return b.attention(q, keys, values, name, 3, 3, 0.5)


def rows_of(graph):
    return {
        node.name: graph.values[node.outputs[0]].rows
        for node in graph.nodes
        if node.op != "select_rows"
    }


def test_what_follows_the_last_attention():
    b = Start()
    mixed = b.add(b.x, b.linear(attention(b, b.x), "o", WIDTH), "mixed")
    normed = b.rms_norm(mixed, "norm", 1e-5)
    graph = b.end(b.add(mixed, b.linear(b.silu(normed, "silu"), "down", WIDTH), "out"))
    before = rows_of(graph)
    assert select_rows_early.run(graph) == 6
    verify(graph)
    late = {"o", "mixed", "norm", "silu", "down", "out", "head"}
    assert rows_of(graph) == {name: ROWS if name in late else TOKENS for name in before} | {
        name: rows for name, rows in before.items() if name.endswith(("keys", "values"))
    }
    selections = [node for node in graph.nodes if node.op == "select_rows"]
    assert sorted(node.inputs for node in selections) == [("attn",), ("embed",)]
    assert select_rows_early.run(graph) == 0


def test_rows_are_selected_once_for_several_readers():
    b = Start()
    y = attention(b, b.x)
    graph = b.end(b.silu(y, "a"), b.sigmoid(y, "c"), y)
    assert select_rows_early.run(graph) == 4
    verify(graph)
    assert ops(graph).count("select_rows") == 1


def test_an_earlier_layer_is_left():
    b = Start()
    first = b.linear(attention(b, b.x, "first"), "o", WIDTH)
    graph = b.end(b.linear(attention(b, first, "second"), "last", WIDTH))
    assert select_rows_early.run(graph) == 1
    verify(graph)
    assert [rows_of(graph)[name] for name in ("o", "last")] == [TOKENS, ROWS]


def test_experts_go_with_their_routing():
    b = Start()
    b.x = attention(b, b.x)
    graph = b.end(experts(b, *route(b)))
    assert select_rows_early.run(graph) > 5
    verify(graph)
    assert rows_of(graph)["experts.combine"] == ROWS


def test_what_reads_positions_is_left():
    b = Start()
    turned = b.rope(attention(b, b.x), "turned", 2, (1.0, 0.5, 0.25), 1.0, False)
    graph = b.end(b.silu(turned, "silu"))
    assert select_rows_early.run(graph) == 1
    verify(graph)
    assert [rows_of(graph)[name] for name in ("turned", "silu")] == [TOKENS, ROWS]


def test_what_reads_indices_of_every_token_is_left():
    b = Start()
    chosen = b.top_k(b.linear(b.x, "scores", 8), "chosen", 3)
    y = attention(b, b.linear(b.gather("scores", chosen, "early"), "wide", WIDTH))
    late = b.gather(b.linear(y, "more", 8), chosen, "late")
    graph = b.end(b.linear(late, "out", WIDTH))
    assert select_rows_early.run(graph) == 1
    verify(graph)
    assert [rows_of(graph)[name] for name in ("late", "out")] == [TOKENS, ROWS]


def test_a_graph_output_keeps_its_rows():
    b = Start()
    graph = b.end(b.silu(attention(b, b.x), "silu"))
    graph.outputs.append("silu")
    assert select_rows_early.run(graph) == 0
    verify(graph)


def test_a_selection_that_is_an_output_keeps_its_name():
    b = Start()
    graph = b.end(b.silu(attention(b, b.x), "silu"))
    graph.outputs.append("rows")
    assert select_rows_early.run(graph) == 1
    verify(graph)
    assert node(graph, "silu").outputs == ("rows",)
    assert named(graph, "head").inputs == ("rows",)
    assert graph.values["rows"].rows == ROWS
    assert ops(graph).count("select_rows") == 1


def test_two_selections_that_are_outputs_are_left():
    b = Start()
    made = b.silu(attention(b, b.x), "silu")
    graph = b.end(made)
    b.select_rows(made, "others")
    graph.outputs += ["rows", "others"]
    assert select_rows_early.run(graph) == 0
    verify(graph)


def test_nothing_to_do():
    b = Start()
    graph = b.end(attention(b, b.x))
    before = graph.copy()
    assert select_rows_early.run(graph) == 0
    assert graph == before
    assert node(graph, "select_rows") == Node("select_rows", ("attn",), ("rows",), (), {}, "rows")
