"""What a step of the C++ engine needs besides weights and KV cache: bounds, never too small.

Each rule here names the file of native/ whose memory it counts. What ops take at once is reserved
before the first step (`Model.reserve`): while it grew, more would be held.
"""

from __future__ import annotations

from dataclasses import dataclass

from deepmnn.backends.cpu.program import DIMS, Instruction, Program
from deepmnn.formats import PANEL_COLS, named
from deepmnn.graph.ir import CONTEXT, ROWS, TOKENS

_FLOAT = 4
_ROTATED = 1 + 8 / PANEL_COLS
"""Bytes of a quantised number: its code, and its share of a panel's head (kernels/kernels.h)."""
_PLAIN = _ROTATED + 292 / PANEL_COLS
"""The same in rows that kept formats read: sums of groups, and outliers."""
_QUANTISED_ROWS = 4
"""Buffers whose int8 form is kept at a time (runtime/quantized.h)."""
_EXPANDED_FLOATS = 8 << 20
"""Keys and values that are rebuilt from latents at once (ops/mla_expanded.cc)."""
_TILE_FLOATS, _SPLIT_TOKENS, _SPLIT_KEYS, _MOST_SPLITS = 48 << 10, 4, 64, 33
"""Of attention (ops/attend.cc): floats of a tile of queries; new tokens up to which a sequence's
keys are split; keys of a split at least; splits at most."""
_TILE_NBYTES, _TILE_ROWS = 20, 16
"""Of a product's list of tiles (ops/gemm.cc): an entry, and rows that it is worth at least."""
_TILE_ROOM = 256 << 10
"""Of a thread, for a panel of what it multiplies before it is quantised (ops/gemm.cc)."""
_SMALL = 1 << 20
"""Lists of tasks and the like, of one op."""


@dataclass(frozen=True)
class StepShape:
    """The largest step that is run.

    Attributes:
        tokens: of the step.
        sequences: that run together.
        rows: of logits that are wanted.
        context: the longest context that a sequence sees.
        all_context: rows that all sequences of a step see together.
        threads: workers.
        mla_form: as `LoadOptions` has it.
    """

    tokens: int
    sequences: int
    rows: int
    context: int
    all_context: int
    threads: int
    mla_form: str = "auto"


@dataclass(frozen=True)
class Footprint:
    """Bytes by owner, as `Model.memory` names them."""

    activations: int
    working: int
    quantised: int
    rope: int
    outputs: int

    @property
    def nbytes(self) -> int:
        """All of it."""
        return self.activations + self.working + self.quantised + self.rope + self.outputs

    @staticmethod
    def of(program: Program, shape: StepShape) -> Footprint:
        """The most that steps of this shape need."""
        counts = {TOKENS: shape.tokens, CONTEXT: shape.all_context, ROWS: shape.rows}
        arenas = sum(counts[dim] * nbytes for dim, nbytes in zip(DIMS, program.arenas, strict=True))
        scratch = max((_scratch(program, each, shape) for each in program.instructions), default=0)
        given = [program.buffers[index] for index in program.outputs]
        outputs = sum(
            counts[buffer.dim] * _FLOAT * _product(buffer.shape)
            for buffer in given
            if buffer.name != "logits"
        )
        logits = sum(_product(buffer.shape) for buffer in given if buffer.name == "logits")
        return Footprint(
            activations=arenas,
            working=scratch + _SMALL + shape.threads * _TILE_ROOM,
            quantised=_quantised(program, shape),
            rope=_rope(program, shape.tokens),
            # a copy for whoever samples them, and one on its way
            outputs=outputs + 2 * _FLOAT * shape.rows * logits,
        )


def _product(shape: tuple[int, ...]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def _quantised(program: Program, shape: StepShape) -> int:
    """The int8 form of the rows that products read, in each place that keeps one."""
    largest = max(
        (
            _rows(program, each, shape)
            * _row_nbytes(program.weights[weight].cols, program.weights[weight].format)
            for each in program.instructions
            for weight, reading in zip(each.weights, each.readings, strict=True)
            if reading == "in_order"
        ),
        default=0.0,
    )
    return int(_QUANTISED_ROWS * largest)


def _rows(program: Program, each: Instruction, shape: StepShape) -> int:
    """Rows of an op's input, the most there may be."""
    counts = {TOKENS: shape.tokens, CONTEXT: shape.all_context, ROWS: shape.rows}
    return max((counts[program.buffers[index].dim] for index in each.inputs), default=0)


def _row_nbytes(cols: int, format: str) -> float:
    """Of one row of so many numbers as a product with that format reads it, its floats apart."""
    kind = named(format)
    if not (kind.is_quantized or kind.is_kept):
        return 0.0
    panels = -(-cols // PANEL_COLS)
    return panels * PANEL_COLS * (_PLAIN if kind.is_kept else _ROTATED)


def _rope(program: Program, tokens: int) -> int:
    """cos and sin of each token, for each set of frequencies (runtime/rope_tables.h)."""
    tables = {
        (each.attrs["inv_freq"], each.attrs.get("rope_scale"))
        for each in program.instructions
        if "inv_freq" in each.attrs
    }
    halves = sum(len(freq) for freq, _ in tables if isinstance(freq, tuple))
    return 2 * _FLOAT * tokens * halves


def _scratch(program: Program, each: Instruction, shape: StepShape) -> int:
    """What an op takes at once."""
    if each.op == "moe":
        return _moe(program, each, shape)
    if each.op == "expert_linear":
        return _expert_linear(program, each, shape)
    if each.op == "mla_attention":
        return _latent_attention(each, shape)
    if each.op in ("gqa_attention", "attention"):
        return _grouped_attention(each, shape)
    rows = _rows(program, each, shape)
    blocks = sum(-(-program.weights[weight].rows // 16) for weight in each.weights)
    tiles = _TILE_NBYTES * blocks * (-(-rows // _TILE_ROWS) if rows > 1 else 1)
    widths = [_product(program.buffers[i].shape) for i in (*each.inputs, *each.outputs)]
    shared = 16 * _FLOAT * rows * len(each.outputs)  # blocks that outputs share (ops/linear.cc)
    return tiles + shared + 4 * _FLOAT * shape.threads * max(widths, default=0)


def _moe(program: Program, each: Instruction, shape: StepShape) -> int:
    """ops/moe.cc: choices sorted by expert, their rows brought together, and what experts give."""
    hidden = _product(program.buffers[each.inputs[0]].shape)
    top_k, size = _int(each, "top_k"), _int(each, "intermediate_size")
    choices = shape.tokens * top_k
    experts = [program.weights[weight] for weight in each.weights]
    gate_up, down = ({weight.format for weight in half} for half in (experts[::2], experts[1::2]))
    row = sum(_row_nbytes(hidden, name) for name in gate_up)
    row += sum(_row_nbytes(size, name) for name in down) + _FLOAT * size
    row += _FLOAT * hidden + 3 * _FLOAT
    return int(choices * row) + _lists(len(each.weights), size + hidden, choices)


def _expert_linear(program: Program, each: Instruction, shape: StepShape) -> int:
    """ops/expert_linear.cc."""
    first = program.weights[each.weights[0]]
    choices = shape.tokens * _int(each, "top_k")
    forms = {program.weights[weight].format for weight in each.weights}
    row = 2 * sum(_row_nbytes(first.cols, name) for name in forms) + _FLOAT * first.rows
    return int(choices * (row + 3 * _FLOAT)) + _lists(len(each.weights), first.rows, choices)


def _lists(weights: int, width: int, choices: int) -> int:
    """Tasks and tiles of a mixture."""
    tiles = -(-width // 16) * (choices // _TILE_ROWS + min(weights, choices))
    return 256 * weights + _TILE_NBYTES * tiles


def _latent_attention(each: Instruction, shape: StepShape) -> int:
    """ops/mla_absorbed.cc and mla_expanded.cc: each sequence takes one form."""
    heads, rank = _int(each, "heads"), _int(each, "kv_lora_rank")
    nope, rope = _int(each, "qk_nope_head_dim"), _int(each, "qk_rope_head_dim")
    v = _int(each, "v_head_dim")
    width, content = rank + rope, nope + v
    rows = {"absorbed": heads * (width + rank + v), "expanded": heads * (nope + rope)}
    fixed = {"absorbed": _attend(shape, _Queries(1, heads, width, rank))}
    # The longest sequence's rows, and what is rebuilt of them; every sequence's rounded latents.
    floats = shape.context * width + max(_EXPANDED_FLOATS, shape.context * (content + rope))
    fixed["expanded"] = _FLOAT * floats + int(shape.all_context * _ROTATED * (rank + PANEL_COLS))
    tiles = heads * -(-content // 64) * (shape.all_context // _TILE_ROWS + shape.sequences)
    fixed["expanded"] += _TILE_NBYTES * tiles
    # A sequence whose keys are split has few new tokens: "auto" then takes the other form.
    never = shape.mla_form == "auto" and rank * content > _SPLIT_TOKENS * (2 * rank - content)
    splits = 0 if never else None
    fixed["expanded"] += _attend(shape, _Queries(heads, 1, nope + rope, v), splits)
    forms = rows if shape.mla_form == "auto" else {shape.mla_form}
    most = max(rows[form] for form in forms)
    return _FLOAT * (shape.tokens * most + shape.threads * width) + sum(fixed[f] for f in forms)


def _grouped_attention(each: Instruction, shape: StepShape) -> int:
    """ops/gqa_attention.cc: queries, sorted by the heads that they share."""
    heads, head_dim, v = _int(each, "heads"), _int(each, "head_dim"), _int(each, "v_head_dim")
    rows = shape.threads * _FLOAT * heads * max(head_dim, v)
    jobs = _int(each, "kv_heads") if each.op == "gqa_attention" else heads
    queries = shape.tokens * _FLOAT * heads * head_dim
    return queries + rows + _attend(shape, _Queries(jobs, -(-heads // jobs), head_dim, v))


@dataclass(frozen=True)
class _Queries:
    """A sequence's queries: so many jobs of so many a token."""

    jobs: int
    per_token: int
    qk: int
    v: int

    @property
    def tile(self) -> int:
        """Queries that are computed together."""
        fit = _TILE_FLOATS // (self.qk + self.v + _SPLIT_KEYS)
        return min(max(fit // 32 * 32, 32), 128)


def _attend(shape: StepShape, queries: _Queries, splits: int | None = None) -> int:
    """ops/attend.cc: partial results where keys are split, and each thread's room.

    splits: of all sequences together; None: as many as there can be. The cache bounds them: each
    has keys of its own.
    """
    tile, each = queries.tile, _FLOAT * (queries.v + 2) + 4
    tiles = -(-_SPLIT_TOKENS * queries.per_token // tile)
    some = min(shape.sequences, shape.tokens)
    if splits is None:
        splits = min(_MOST_SPLITS * some, shape.all_context // _SPLIT_KEYS + some)
    partial = splits * queries.jobs * tiles * tile * each
    merged = 16 * some * _SPLIT_TOKENS * queries.jobs * queries.per_token if splits else 0
    items = splits * tiles + shape.tokens * queries.per_token // tile + some
    columns = sum(-(-size // 64) * 64 + 64 for size in (queries.qk, queries.v))
    room = (tile + 64) * columns + 69 * tile  # kernels/kernels.h: attention_work
    lists = 256 * items * queries.jobs
    return partial + merged + lists + shape.threads * (tile * each + _FLOAT * room)


def _int(each: Instruction, name: str) -> int:
    value = each.attrs[name]
    return value if isinstance(value, int) else 0
