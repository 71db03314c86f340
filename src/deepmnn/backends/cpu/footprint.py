"""What a step of the C++ engine needs besides weights and KV cache: bounds, never too small.

Each rule here names the file of native/ whose memory it counts. What ops take at once is reserved
before the first step (`Model.reserve`): while it grew, more would be held.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

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
_PARTIALS_NBYTES = 16 << 20
"""Of attention's partial results at once, or those of one job (ops/attend.cc)."""
_TILE_NBYTES, _TILE_ROWS = 20, 16
"""Of a product's list of tiles (ops/gemm.cc): an entry, and rows that it is worth at least."""
_TILE_ROOM = 256 << 10
"""Of a thread, for a panel of what it multiplies before it is quantised (ops/gemm.cc)."""
_SCORE_FLOATS, _BUCKETS = 4 << 20, 1 << 11
"""Of an indexer (ops/select_keys.cc): scores at once, or one token's; counts of a thread."""
_SPARSE_TOKENS = 32
"""That attend to rows of their own at once (ops/mla_absorbed.cc)."""
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
        all_context: rows that all sequences of a step see together; those that several share count
            for each.
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
        each_op = _instructions(program)
        scratch = max((_scratch(program, each, shape) for each in each_op), default=0)
        given = [program.buffers[index] for part in program.parts for index in part.outputs]
        outputs = sum(
            counts[buffer.dim] * _FLOAT * _product(buffer.shape)
            for buffer in given
            if buffer.name != "logits"
        )
        read = [program.buffers[index] for part in program.parts for index in part.inputs]
        states = sum(_product(each.shape) for each in read if each.dtype == "f32")
        logits = sum(_product(buffer.shape) for buffer in given if buffer.name == "logits")
        return Footprint(
            activations=arenas,
            working=scratch + _SMALL + shape.threads * _TILE_ROOM,
            quantised=_quantised(program, shape),
            rope=_rope(program, shape.tokens),
            # a copy for whoever samples them, and one on its way
            outputs=outputs + _FLOAT * shape.tokens * states + 2 * _FLOAT * shape.rows * logits,
        )


def _instructions(program: Program) -> list[Instruction]:
    """Of all parts."""
    return [each for part in program.parts for each in part.instructions]


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
            for each in _instructions(program)
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
    return _form_nbytes(cols, _quantised_form(format))


def _quantised_form(format: str) -> float:
    """Bytes of a number as a product with that format reads it, quantised; 0 for floats."""
    kind = named(format)
    return _PLAIN if kind.is_kept else _ROTATED if kind.is_quantized else 0.0


def _form_nbytes(cols: int, form: float) -> float:
    """Of one row in a form, in whole panels."""
    return -(-cols // PANEL_COLS) * PANEL_COLS * form


def _rope(program: Program, tokens: int) -> int:
    """cos and sin of each token, for each set of frequencies (runtime/rope_tables.h)."""
    tables = {
        (each.attrs["inv_freq"], each.attrs.get("rope_scale"))
        for each in _instructions(program)
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
    if each.op == "sparse_mla_attention":
        return _sparse_latent_attention(each, shape)
    if each.op == "select_keys":
        return _select_keys(shape, _int(each, "heads"), _int(each, "head_dim"))
    if each.op == "sparse_attention":
        one = replace(shape, tokens=1, sequences=1)
        return _grouped_attention(each, one)
    if each.op in ("gqa_attention", "attention"):
        return _grouped_attention(each, shape)
    if each.op in _WINDOWED:
        return _windowed_attention(program, each, shape)
    if each.op in ("grouped_linear", "hyper_in"):
        return _projected_rows(program, each, shape)
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
    gate_up, down = (
        {_quantised_form(weight.format) for weight in half}
        for half in (experts[::2], experts[1::2])
    )
    row = sum(_form_nbytes(hidden, form) for form in gate_up) + _FLOAT * hidden + 3 * _FLOAT
    row += sum(_form_nbytes(size, form) for form in down)
    if len(down) > 1 or 0.0 in down:  # else they are quantised as they are made
        row += _FLOAT * size
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
    latent = _Latent.of(each)
    width = _FLOAT * shape.threads * (latent.rank + latent.rope) + 16 * shape.sequences
    if shape.mla_form == "absorbed":
        return width + latent.absorbed(shape, shape.tokens)
    if shape.mla_form == "expanded":
        return width + latent.expanded(shape, shape.context)
    # One form after the other, in the same room.
    absorbed = latent.absorbed(shape, latent.most_absorbed(shape))
    return width + max(absorbed, latent.expanded(shape, shape.context))


def _sparse_latent_attention(each: Instruction, shape: StepShape) -> int:
    """ops/sparse_mla_attention.cc: besides, the chosen rows, and what choosing them takes."""
    heads, dim = _int(each, "index_n_heads"), _int(each, "index_head_dim")
    keys = _FLOAT * shape.threads * dim + 16 * shape.sequences
    latent, most = _Latent.of(each), _int(each, "index_topk")
    dense = _latent_attention(each, shape) + keys
    if shape.context <= most:
        return dense
    chosen = _FLOAT * shape.tokens * most
    queries = _FLOAT * shape.tokens * heads * dim
    choosing = queries + _select_keys(shape, heads, dim)
    masks = 2 * (-(-shape.tokens // 16)) * shape.context
    some = min(shape.tokens, _SPARSE_TOKENS)
    few = replace(shape, tokens=some, sequences=some, context=most)
    absorbed = latent.absorbed(few, some) + 32 * shape.tokens
    return chosen + max(dense + masks, choosing, absorbed + dense)


def _select_keys(shape: StepShape, heads: int, dim: int) -> int:
    """ops/select_keys.cc."""
    groups = -(-dim // 64)
    token = heads * (_FLOAT + groups * (64 + 2 * _FLOAT)) + _FLOAT  # the queries in int8, weights
    scores = max(_SCORE_FLOATS, shape.context + 16)
    room = _FLOAT * (groups * 64 * 16 + 64 + _BUCKETS)  # kernels/kernels.h: index_work
    return shape.tokens * token + _FLOAT * scores + shape.threads * room


@dataclass(frozen=True)
class _Latent:
    """Sizes of a latent attention, and what each of its two forms takes."""

    heads: int
    rank: int
    nope: int
    rope: int
    v: int

    @staticmethod
    def of(each: Instruction) -> _Latent:
        """Of an instruction."""
        names = ("heads", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
        return _Latent(*(_int(each, name) for name in names))

    @property
    def _rebuilt(self) -> int:
        """Multiply-accumulates that rebuild a key and a value of one head."""
        return self.rank * (self.nope + self.v)

    @property
    def _saved(self) -> int:
        """Those that a rebuilt key saves for each query (ops/mla_attention.cc)."""
        return 2 * self.rank - self.nope - self.v

    def absorbed(self, shape: StepShape, tokens: int) -> int:
        """Of so many tokens of a step."""
        floats = self.heads * (self.rank + self.rope + self.rank + self.v)
        some = _Queries(1, self.heads, self.rank + self.rope, self.rank)
        return tokens * (_FLOAT * floats + 4) + _attend(replace(shape, tokens=tokens), some)

    def expanded(self, shape: StepShape, context: int) -> int:
        """Of sequences whose longest context is that."""
        width, content = self.rank + self.rope, self.nope + self.v
        together = context * self.heads * (content + self.rope)
        rebuilt = max(min(_EXPANDED_FLOATS, together), context * (content + self.rope))
        queries = shape.tokens * self.heads * (self.nope + self.rope)
        latents = context * _ROTATED * (self.rank + PANEL_COLS)
        tiles = self.heads * -(-content // 64) * (context // _TILE_ROWS + 1)
        # A sequence whose keys are split has few new tokens: "auto" then takes the other form.
        never = shape.mla_form == "auto" and self._rebuilt > _SPLIT_TOKENS * self._saved
        some = _Queries(self.heads, 1, self.nope + self.rope, self.v)
        room = _attend(shape, some, 0 if never else None)
        floats = context * width + rebuilt + queries
        return _FLOAT * floats + int(latents) + _TILE_NBYTES * tiles + room

    def most_absorbed(self, shape: StepShape) -> int:
        """Tokens of a step that "auto" may leave absorbed."""
        if self._saved <= 0:
            return shape.tokens
        return min(shape.tokens, shape.sequences * (self._rebuilt // self._saved + 1))


def _grouped_attention(each: Instruction, shape: StepShape) -> int:
    """ops/gqa_attention.cc: queries, sorted by the heads that they share."""
    heads, head_dim, v = _int(each, "heads"), _int(each, "head_dim"), _int(each, "v_head_dim")
    rows = shape.threads * _FLOAT * heads * max(head_dim, v)
    jobs = _int(each, "kv_heads") if each.op == "gqa_attention" else heads
    queries = shape.tokens * _FLOAT * heads * head_dim
    return queries + rows + _attend(shape, _Queries(jobs, -(-heads // jobs), head_dim, v))


_WINDOWED = (
    "window_attention",
    "sliding_attention",
    "heavily_compressed_attention",
    "compressed_sparse_attention",
)
_GATHERED_NBYTES = 32 << 20
"""Rows that are brought together at once, or those of one token (ops/gathered.h)."""
_SCORES_NBYTES = 16 << 20
"""Scores of an indexer at once, or one token's (ops/select_keys.cc)."""


def _windowed_attention(program: Program, each: Instruction, shape: StepShape) -> int:
    """ops/compressed_attention.cc and ops/window_attention.cc: every token attends by itself."""
    heads, dim, window = (_int(each, name) for name in ("heads", "head_dim", "window"))
    ratio = _int(each, "ratio") if "ratio" in each.attrs else 1
    entries = (
        0 if len(each.inputs) < 4 and each.op != "window_attention" else shape.context // ratio
    )
    top_k = _int(each, "top_k") if "top_k" in each.attrs else entries
    most = min(window, shape.context) + min(entries, top_k)
    gathered = max(_GATHERED_NBYTES, most * _FLOAT * dim)
    index = 0
    if each.op == "compressed_sparse_attention":
        columns = _int(each, "index_heads") * _int(each, "index_dim")
        index = shape.tokens * (2 * _FLOAT * columns + _FLOAT * top_k)
        index += max(_SCORES_NBYTES, _FLOAT * (entries + 16)) + shape.threads * (1 << 16)
    queries = _FLOAT * shape.tokens * (heads * dim + 4)
    rooms = shape.threads * (8 * _FLOAT * dim + 64 * ratio)
    tokens = min(shape.tokens, _GATHERED_NBYTES // (_FLOAT * dim) + 1)  # that run together
    some = replace(shape, tokens=tokens, sequences=tokens, context=most)
    return queries + gathered + index + rooms + _attend(some, _Queries(1, heads, dim, dim))


def _projected_rows(program: Program, each: Instruction, shape: StepShape) -> int:
    """ops/grouped_linear.cc, and hyper_in of ops/streams.cc: a product's rows in scratch."""
    weight, rows = program.weights[each.weights[0]], _rows(program, each, shape)
    groups = _int(each, "groups") if "groups" in each.attrs else 1
    tiles = _TILE_NBYTES * (-(-weight.rows // 16) + 2 * groups) * (-(-rows // _TILE_ROWS) + 1)
    quantised = int(groups * _row_nbytes(weight.cols, weight.format))
    room = _FLOAT * shape.threads * weight.cols
    return tiles + rows * (_FLOAT * (weight.rows + 32 * groups) + quantised) + room


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

    splits: of a job; None: as many as there can be.
    """
    tile, each = queries.tile, _FLOAT * (queries.v + 2) + 4
    tiles = -(-_SPLIT_TOKENS * queries.per_token // tile)
    some = min(shape.sequences, shape.tokens)
    if splits is None:
        splits = min(_MOST_SPLITS, -(-shape.context // _SPLIT_KEYS))
    job = splits * tiles * tile * each
    partial = min(some * queries.jobs * job, max(job, _PARTIALS_NBYTES))
    merged = 16 * some * _SPLIT_TOKENS * queries.jobs * queries.per_token if splits else 0
    items = splits * tiles * some + shape.tokens * queries.per_token // tile + some
    columns = sum(-(-size // 64) * 64 + 64 for size in (queries.qk, queries.v))
    room = (tile + 64) * columns + 69 * tile  # kernels/kernels.h: attention_work
    lists = 256 * items * queries.jobs
    return partial + merged + lists + shape.threads * (tile * each + _FLOAT * room)


def _int(each: Instruction, name: str) -> int:
    value = each.attrs[name]
    return value if isinstance(value, int) else 0
