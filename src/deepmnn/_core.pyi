"""The C++ core. Arrays must have exactly the dtype and shape given; nothing is converted.

Bad arguments raise RequestError, damaged artifacts ArtifactError.
"""

from os import PathLike
from types import ModuleType
from typing import Any

from numpy import float16, float32, int8, int32, int64, uint8
from numpy.typing import NDArray

AnyPath = str | bytes | PathLike[str]
"""A name that is not UTF-8, too."""

PARTS: tuple[str, ...]
"""What a step does besides its instructions, and what `Model.sample` does."""

kernels: ModuleType
"""The kernel table, one function per kernel, for tests: native/bindings/kernel_table.cc."""

def isas() -> list[str]:
    """Instruction sets this machine runs, best first: of "avx512", "avx2", "scalar".

    The environment variable DEEPMNN_ISA overrides the choice of the best.
    """

def formats() -> list[dict[str, Any]]:
    """The core's table of storage formats, by code: the fields of `deepmnn.formats.Format`."""

def packed_nbytes(format: str, rows: int, cols: int) -> int:
    """Bytes of a stored weight (docs/layouts.md), padded to 64."""

def rotate(x: NDArray[float32], threads: int = 1, isa: str = "") -> NDArray[float32]:
    """Rows [n, cols] rotated, bit for bit as quant.rotation does: [n, cols padded to 32]."""

def quantize(
    w: NDArray[float32], format: str, threads: int = 1, isa: str = ""
) -> tuple[NDArray[int8], NDArray[float16]]:
    """Levels and scales of w [rows, cols], number for number those of quant.rounding: shaped as in
    `deepmnn.formats.Codes`.
    """

def pack(
    levels: NDArray[int8],
    scales: NDArray[float16],
    format: str,
    threads: int = 1,
    isa: str = "",
) -> NDArray[uint8]:
    """Stored bytes of levels; byte for byte those of quant.layout.pack. Levels that the format has
    not got give bytes that stand for other ones.
    """

def quantize_pack(
    w: NDArray[float32], format: str, threads: int = 1, isa: str = ""
) -> NDArray[uint8]:
    """Stored bytes of w [rows, cols] in a format of matrices: `quantize` and `pack` in one go."""

def unpack(packed: NDArray[uint8], format: str, rows: int, cols: int) -> NDArray[float32]:
    """The values of stored bytes: [rows, cols], or [cols] for a vector."""

def sample(
    logits: NDArray[float32],
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    u: float,
    isa: str = "",
) -> int:
    """Draws an index of logits [vocab]; equal arguments give equal answers.

    temperature 0 is greedy. The filters run in the order of the arguments: top_k 0 keeps all,
    top_p keeps the shortest best-first prefix with at least that share, min_p keeps what has at
    least that share of the best. u in [0, 1) is the random number. Ties go to the lower index.
    """

class KvCache:
    """A paged KV cache: for each cache entry of the program, [blocks, block_size, width]."""

    blocks: int
    block_size: int
    nbytes: int
    resident_nbytes: int
    """Of the pages that have been written."""
    block_nbytes: int
    """Of one block of every entry."""
    recent_blocks: int
    """Blocks that may have recent rows at the same time; 0: no entry has a window."""
    def place_recent(self, block: int, place: int) -> None:
        """Gives a block a place for its recent rows, and takes it from who had it; -1: none."""

    def copy_block(self, source: int, target: int) -> None:
        """Copies one block of every entry, recent rows where both have a place."""

    def read_block(self, block: int, rows: NDArray[uint8]) -> None:
        """One block of every entry, entry after entry, into rows [block_nbytes]."""

    def write_block(self, block: int, rows: NDArray[uint8]) -> None:
        """Puts back what `read_block` gave, here or into another block."""

class WeightPlan:
    """Where weights are, for a number of bytes. All sizes in bytes."""

    mapped: bool
    """Everything fits: the weight files are mapped."""
    total_nbytes: int
    """Of all weights."""
    least_nbytes: int
    """The fewest that the model can run with."""
    memory_nbytes: int
    """What the plan takes: resident, ring, cache and table together."""
    resident_nbytes: int
    """Vectors and dense weights that stay in memory."""
    streamed_nbytes: int
    """Dense weights that every step reads anew, by way of the ring."""
    ring_nbytes: int
    expert_nbytes: int
    """Of all routed experts."""
    cache_nbytes: int
    """The cache of experts."""
    table_nbytes: int
    """Room for rows of lookup tables, which are read when they are needed."""

def plan_weights(program: bytes, memory: int = 0, draft: bool = True) -> WeightPlan:
    """What a model with that program.bin would do with so many bytes for weights; 0: all of them.
    draft: with its draft part, which is left out where not everything fits.

    Raises ArtifactError for a damaged program, RequestError for less than its least_nbytes.
    """

class Model:
    """A loaded artifact directory. Not thread-safe: one step at a time."""

    vocab_size: int
    isa: str
    threads: int
    """That work: as asked for, at most one for each processor."""
    weight_nbytes: int
    weight_plan: WeightPlan
    streaming: dict[str, float]
    """Since the model was loaded; empty where all weights are mapped. reads, read_nbytes;
    read_seconds: while at least one read was on its way; wait_seconds: while a step waited;
    expert_hits, expert_misses: of the experts that steps chose, in memory by then or not;
    predicted, predicted_used: experts read before they were chosen, and those that then were."""
    caches: dict[str, tuple[int, int, int, bool]]
    """Row width of each cache entry, in elements."""
    outputs: dict[str, int]
    """Width of each output of a step, in elements a row; "logits" is one of them."""
    draft_state: str | None
    """The output that `draft` begins with; None: there is no draft part here."""
    step_seconds: float
    """Wall time inside the core's steps so far, without this binding."""
    numa: str
    """In force: "off" on a machine with one memory node."""
    def __init__(
        self,
        directory: AnyPath,
        threads: int = 0,
        isa: str = "",
        numa: str = "off",
        numa_root: AnyPath = "",
        memory: int = 0,
        draft: bool = True,
    ) -> None:
        """Maps the weights and checks the program. threads 0: one for each core.

        numa: "off", "distribute" or "isolate" (docs/numa.md); numa_root: where /sys lies.

        memory: bytes that weights may take. 0, and as many as there are, maps them all. With less
        some stay in memory and the others are read when they are needed (`weight_plan`).
        RequestError for less than `weight_plan.least_nbytes`. draft: with the draft part of a model
        that has one, if all weights are mapped.

        Raises ArtifactError for anything wrong in the directory. So does every step from the moment
        on that a weight file is cut, or cannot be read, while the model uses it.
        """

    def new_cache(
        self, blocks: int, block_size: int, dtype: str = "f32", recent_blocks: int | None = None
    ) -> KvCache:
        """An empty cache of "f32", "bf16" or "int8" rows.

        recent_blocks: places for recent rows; None: each block has its own.
        """

    def set_mla_form(self, form: str) -> None:
        """How MLA attention runs: "auto", "absorbed" or "expanded" (docs/ops.md)."""

    def reserve(self, working_nbytes: int) -> None:
        """Working memory for ops that need so much: it does not have to grow, which takes more.

        Pages are taken when they are written. Before the first step, or it does nothing.
        """

    def step(
        self,
        cache: KvCache,
        ids: NDArray[int32],
        positions: NDArray[int32],
        sequence_starts: NDArray[int32],
        context_lengths: NDArray[int32],
        block_tables: NDArray[int32],
        logit_rows: NDArray[int32],
    ) -> NDArray[float32]:
        """Runs one batch (backends.base.Batch), appends to the cache: logits [rows, vocab_size]."""

    def run(
        self,
        cache: KvCache,
        ids: NDArray[int32],
        positions: NDArray[int32],
        sequence_starts: NDArray[int32],
        context_lengths: NDArray[int32],
        block_tables: NDArray[int32],
        logit_rows: NDArray[int32],
        inputs: dict[str, NDArray[float32]] = {},
    ) -> dict[str, NDArray[Any]]:
        """Like `step`, but gives every output by name: [rows, width] each, float32 or int32.

        inputs: [rows, width] of each input of the program besides ids and positions: a part of a
        model reads what the part before it gave.
        """

    def draft(
        self,
        cache: KvCache,
        ids: NDArray[int32],
        positions: NDArray[int32],
        sequence_starts: NDArray[int32],
        context_lengths: NDArray[int32],
        block_tables: NDArray[int32],
        logit_rows: NDArray[int32],
        state: NDArray[float32],
    ) -> tuple[NDArray[float32], NDArray[float32]]:
        """Runs the draft part on state [tokens, width] (backends.base.Backend.draft): logits
        [rows, vocab_size], the next state [rows, width]."""

    def sample(
        self, draws: list[tuple[NDArray[float32], float, int, float, float, float]]
    ) -> list[int]:
        """`sample` of every (logits, temperature, top_k, top_p, min_p, u), by all threads."""

    @property
    def instructions(self) -> list[dict[str, Any]]:
        """Of the program, in order: op, name, and what each row takes in multiply-accumulates:
        row_macs, and context_macs for each cached row that it sees (latent attention in its
        absorbed form).
        """

    def start_profile(self, spans: int = 0, reads: int = 0) -> None:
        """Counts what steps cost from now on, afresh; otherwise no clock is read for it.

        spans: how many each thread remembers, the latest ones; 40 bytes each. reads: how many reads
        of weights are remembered, and how many waits for one; 64 bytes both together.
        """

    def stop_profile(self) -> None:
        """Counts no more, and forgets."""

    def profile(self, reset: bool = False) -> list[NDArray[int64]]:
        """What has been counted, by zone: the instructions, then `PARTS`, the parts of a step
        around them. `backends.cpu.counts.Counts` reads it.

        First calls and nanoseconds, [zones, 2]; then for each thread [zones, 5]: pieces, those of
        them that it stole, nanoseconds in its own, in stolen ones, and waiting for the others
        (which only the first thread counts). Raises RequestError when nothing is counted.
        """

    def spans(self) -> list[tuple[int, NDArray[int64]]]:
        """For each thread: how many spans it has forgotten, and [n, 5] those that it remembers:
        begin and end (nanoseconds of time.perf_counter_ns), zone, doing (0: the zone, 1: its own
        pieces, 2: stolen ones, 3: waiting), pieces.
        """

    def reads(self) -> dict[str, Any]:
        """What has been read of streamed weights since the profile began, or was reset; empty where
        all weights are mapped. Times are nanoseconds of time.perf_counter_ns.

        units: what is read at once, (name of its first weight, "expert", "dense" or "rows"); of the
        last kind a read brings some rows.
        reads [n, 6]: begin, end, unit, bytes, cause (0: wanted, 1: guessed, 2: read ahead in the
        program's order), whether it is a guess that a step used. waits [n, 3]: begin and end of a
        step's wait, and the unit that ended it (-1: several). choices [units, 4]: how often steps
        chose a unit that was in memory, and that was not; guesses of it that were read, and used.
        lost: reads and waits that were forgotten.
        """

    def memory(self, reset: bool = False) -> dict[str, tuple[int, int, int]]:
        """Owner → bytes held, those of them in memory, and the most that was needed at once since
        the last reset. Without weights and caches.
        """

def available_cores(root: AnyPath = "", processors: list[int] | None = None) -> int:
    """Physical cores this process may run on, within the quota of its control groups, at least 1.

    processors: to choose from; None: the CPU affinity. root: where /proc and /sys lie, for tests.
    """

def available_memory(root: AnyPath = "") -> int:
    """Bytes this process could still use: of the system, or of its control groups if that is less.

    2**63 - 1 where neither can be read. root: where /proc and /sys lie, for tests.
    """

def numa_nodes(processors: list[int] | None = None, root: AnyPath = "") -> dict[int, list[int]]:
    """Memory node → its processors among these; None: those this process may run on.

    root: where /sys lies, for tests.
    """

def measure_read_bandwidth(threads: int = 0) -> float:
    """Bytes per second this machine reads from memory. threads 0: one for each core."""

def measure_int8_peak(threads: int = 0, isa: str = "") -> float:
    """Int8 multiply-accumulates per second with all operands in registers."""

def measure_f32_peak(threads: int = 0, isa: str = "") -> float:
    """The same in f32, in which bf16 weights are multiplied, too."""
