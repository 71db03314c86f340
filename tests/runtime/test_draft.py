"""Draft parts on the engine: against transformers' modules, and what a model is without one."""

from pathlib import Path

import numpy as np
import pytest
from program_dir import cpu_of, random_weights, stored, write_program
from streamed import MIXTURE
from streamed import run as steps

from deepmnn import _core
from deepmnn.backends.cpu.backend import CpuBackend
from deepmnn.backends.cpu.program import read_program
from deepmnn.backends.reference import ReferenceBackend
from deepmnn.errors import RequestError
from deepmnn.graph.caches import kept_width
from deepmnn.graph.draft import Parts, optimize_parts
from deepmnn.models import build_parts
from draft_oracle import DRAFTS, check_drafts, drafting_checkpoint, lowered_parts
from parity import Runner, prompts_for, relative_error
from tiny_models import TinyModel


def backend_of(parts: Parts, tiny: TinyModel, **options: object) -> CpuBackend:
    def read(name: str) -> np.ndarray:
        return parts.weights[name].expr.read(tiny)

    return cpu_of(parts.main, read, parts.draft, **{"threads": 2, **options})


@pytest.mark.parametrize("index", DRAFTS)
@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_drafts_are_the_oracles(tmp_path: Path, index: int, level: int) -> None:
    check_drafts(drafting_checkpoint(index, tmp_path), backend_of, level, 1e-4)


@pytest.mark.parametrize("isa", _core.isas())
@pytest.mark.parametrize("form", ["absorbed", "expanded"])
def test_on_every_instruction_set(tmp_path: Path, isa: str, form: str) -> None:
    def make(parts: Parts, tiny: TinyModel) -> CpuBackend:
        return backend_of(parts, tiny, isa=isa, mla_form=form)

    check_drafts(drafting_checkpoint(3, tmp_path), make, 3, 1e-4, ["chunks", "ragged"])


@pytest.mark.parametrize("format", ["w8", "bf16"])
def test_quantised_drafts_are_the_references(tmp_path: Path, format: str) -> None:
    """Floats of the state for the next guess, beside quantised rows for the head. Rounding has a
    few rows choose other experts.
    """
    tiny = drafting_checkpoint(0, tmp_path)
    parts = lowered_parts(tiny, 3)
    for weight in parts.weights.values():
        if weight.format != "vector" and weight.role not in ("router", "latent"):
            weight.format = format

    def read(name: str) -> np.ndarray:
        return parts.weights[name].expr.read(tiny)

    both = Parts(parts.main, parts.draft)
    numbers = {}
    for part in (parts.main, parts.draft):
        assert part is not None
        numbers |= {name: stored(part, read)(name) for name in part.weights}
    exact = ReferenceBackend(both.main, numbers.__getitem__, draft=both.draft)
    (prompt,) = prompts_for([12], tiny.config["vocab_size"])
    found, states = [], dict[int, np.ndarray]()
    for backend in (exact, backend_of(parts, tiny)):
        run = Runner(backend, output="hidden")
        hidden = run.step({0: prompt[:-1]})
        states = states or hidden
        found.append(run.draft({0: prompt[1:]}, states)[0])
    for exactly, ours in zip(*found, strict=True):
        rows = [relative_error(a, b) for a, b in zip(ours, exactly, strict=True)]
        assert np.median(rows) < 0.05


@pytest.fixture(scope="module")
def drafting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture with random weights, in w8."""
    config = {"model_type": "deepseek_v3", "num_nextn_predict_layers": 1, **MIXTURE}
    sizes = {"q_lora_rank": 96, "kv_lora_rank": 64, "qk_nope_head_dim": 32, "v_head_dim": 32}
    config |= {"num_attention_heads": 4, "num_key_value_heads": 4, "qk_rope_head_dim": 16, **sizes}
    parts, _ = optimize_parts(build_parts(config), 3)
    for weight in parts.weights.values():
        if weight.format != "vector":
            weight.format = "w8"
    numbers = random_weights(parts.main)
    assert parts.draft is not None
    numbers = random_weights(parts.draft, 1) | numbers
    folder = tmp_path_factory.mktemp("drafting")
    write_program(parts.main, numbers.__getitem__, folder, draft=parts.draft)
    return folder


def test_without_a_draft_part_nothing_is_spent_on_it(drafting: Path) -> None:
    program = read_program((drafting / "program.bin").read_bytes())
    whole, alone = CpuBackend(drafting, threads=1), CpuBackend(drafting, threads=1, draft=False)
    assert (whole.draft_state, alone.draft_state) == ("hidden", None)
    entry = program.caches["layers.4.latent"]
    assert kept_width(whole.caches) - kept_width(alone.caches) == entry.width == 80
    caches = [backend.new_cache(4, 16) for backend in (whole, alone)]
    nbytes = [cache.block_nbytes for cache in caches]
    assert nbytes[0] - nbytes[1] == 4 * 16 * entry.width
    own = sum(weight.nbytes for weight in program.weights)
    own -= sum(weight.nbytes for weight in program.without_draft().weights)
    assert whole.model.weight_nbytes - alone.model.weight_nbytes == own > 0
    for got, want in zip(steps(alone), steps(whole), strict=True):
        assert np.array_equal(got, want)
    with pytest.raises(RequestError, match="draft part"):
        Runner(alone).draft({0: [1]}, {0: np.zeros((1, 192), np.float32)})
    with pytest.raises(RequestError, match="another model"):
        alone.step(caches[0], Runner(alone)._batch({0: [1]}, {}))


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_streamed_weights_have_no_draft_part(drafting: Path, share: float) -> None:
    """A guess that waits for the disk is no gain, and a check of several asks for more experts."""
    data = (drafting / "program.bin").read_bytes()
    plan, alone = _core.plan_weights(data), _core.plan_weights(data, draft=False)
    assert plan.least_nbytes == alone.least_nbytes
    assert plan.total_nbytes > alone.total_nbytes
    memory = int(alone.least_nbytes + share * (alone.total_nbytes - alone.least_nbytes))
    backend = CpuBackend(drafting, threads=2, memory=memory)
    assert not backend.model.weight_plan.mapped
    assert backend.draft_state is None
    for got, want in zip(steps(backend), steps(CpuBackend(drafting, threads=2)), strict=True):
        assert np.array_equal(got, want)


def test_what_holds_the_model_alone_maps_it_alone(drafting: Path) -> None:
    data = (drafting / "program.bin").read_bytes()
    whole, alone = _core.plan_weights(data), _core.plan_weights(data, draft=False)
    for memory, state in (
        (alone.total_nbytes, None),
        (whole.total_nbytes - 1, None),
        (whole.total_nbytes, "hidden"),
    ):
        backend = CpuBackend(drafting, threads=1, memory=memory)
        assert backend.model.weight_plan.mapped
        assert backend.draft_state == state


@pytest.mark.parametrize(
    "state", [np.zeros((3, 192)), np.zeros((2, 191)), np.zeros(384), np.zeros((2, 192), np.int32)]
)
def test_a_state_of_another_shape_is_refused(drafting: Path, state: np.ndarray) -> None:
    backend = CpuBackend(drafting, threads=1)
    with pytest.raises(RequestError, match="state"):
        Runner(backend).draft({0: [1, 2]}, {0: state})


def test_a_state_is_taken_as_it_is_or_made_contiguous(drafting: Path) -> None:
    backend = CpuBackend(drafting, threads=1)
    wide = np.random.default_rng(0).standard_normal((2, 384)).astype(np.float32)
    plain = Runner(backend).draft({0: [1, 2]}, {0: np.ascontiguousarray(wide[:, ::2])})[0]
    cut = Runner(backend)
    batch = cut._batch({0: [1, 2]}, cut.drafted)
    for other in (wide[:, ::2], wide[:, ::2].astype(np.float64)):
        for got, want in zip(backend.draft(cut.cache, batch, other), plain, strict=True):
            assert np.array_equal(got, want)


def test_a_profile_has_the_draft_parts_instructions_last(drafting: Path) -> None:
    backend = CpuBackend(drafting, threads=1)
    program = read_program((drafting / "program.bin").read_bytes())
    assert program.draft is not None
    core, first = backend.model, len(program.instructions)
    names = [entry["name"] for entry in core.instructions]
    assert names == [each.name for part in program.parts for each in part.instructions]
    core.start_profile()
    run = Runner(backend, output="hidden")
    hidden = run.step({0: [1, 2, 3]})
    zones = core.profile(reset=True)[0]
    assert (zones[:first, 0] == 1).all()
    assert not zones[first : len(names), 0].any()
    run.draft({0: [2, 3, 4]}, hidden)
    zones = core.profile()[0]
    assert (zones[first : len(names), 0] == 1).all()
    assert not zones[:first, 0].any()
