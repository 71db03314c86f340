"""Draft parts of converted models: how often they are right, how they are stored and given back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from deepmnn.artifact.manifest import MANIFEST, file_crc, manifest_crc
from deepmnn.artifact.reader import Artifact
from deepmnn.artifact.restored import RestoredSource
from deepmnn.backends.base import F32
from deepmnn.backends.cpu.backend import CpuBackend
from deepmnn.backends.reference import ReferenceBackend
from deepmnn.conversion.bundled import bundled_checkpoint
from deepmnn.conversion.convert import convert, plan_conversion
from deepmnn.errors import ArtifactError
from deepmnn.exporters.hf.export import export_hf
from deepmnn.inspect.check.checks import check
from deepmnn.measure.problems import read_problems
from deepmnn.quant.recipe import Recipe, Rule
from deepmnn.quant.store import stored_values
from deepmnn.text.tokenizer import Tokenizer
from parity import Runner, relative_error
from tiny_models import tiny_checkpoint

ANSWER = 96
HELD_OUT = Path(bundled_checkpoint()) / "held_out.jsonl"


@pytest.fixture(scope="module")
def tiny_r1(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    out = tmp_path_factory.mktemp("tiny-r1") / "model"
    return Artifact.open(convert("tiny-r1", out, "w8").path)


def reseal(path: Path, without: str = "") -> None:
    """Has the manifest say what its small files are now."""
    fields = json.loads((path / MANIFEST).read_text())
    fields["files"].pop(without, None)
    for name, record in fields["files"].items():
        record["nbytes"], record["crc32"] = (path / name).stat().st_size, file_crc(path / name)
    fields["crc32"] = manifest_crc(fields)
    (path / MANIFEST).write_text(json.dumps(fields))


def guessed(artifact: Artifact, question: str, deep: int) -> tuple[list[int], list[list[int]]]:
    """The greedy answer to a question, and after each of its tokens the guesses of a chain."""
    tokenizer, backend = Tokenizer(artifact.text_files), CpuBackend(artifact.path)
    ids = tokenizer.encode_chat([{"role": "user", "content": question}])
    run, chains = Runner(backend, block_size=16, blocks=40), []
    new, answer, known = ids, list[int](), 0
    while len(answer) < ANSWER:
        batch = run._batch({0: new}, run.lengths)
        outputs = backend.run(run.cache, batch)
        token = int(outputs["logits"][-1].argmax())
        answer.append(token)
        chain, pairs, state = list[int](), [*new[1:], token], outputs["hidden"]
        for depth in range(deep):
            logits, states = run.draft({0: pairs}, {0: state})[0]
            chain.append(int(logits[-1].argmax()))
            pairs, state = chain[-1:], states[-1:]
            if depth == 0:
                known = run.drafted[0]
        run.drafted[0] = known  # what was guessed is written over
        chains.append(chain)
        if token == tokenizer.token_id("<｜end▁of▁sentence｜>"):
            break
        new = [token]
    return answer, chains


def test_the_bundled_models_drafts_are_right(tiny_r1: Artifact) -> None:
    """99.7 % of the first ones, as its README says; of the second ones 46 % (docs/log.md), which
    the layer was not trained for.
    """
    right, seen = np.zeros(2), np.zeros(2)
    for problem in read_problems(HELD_OUT)[::60]:
        answer, chains = guessed(tiny_r1, problem.question, 2)
        for at, chain in enumerate(chains):
            wanted = answer[at + 1 : at + 3]
            for depth in range(len(wanted)):
                seen[depth] += 1
                right[depth] += chain[: depth + 1] == wanted[: depth + 1]
    assert seen[0] > 600
    assert right[0] / seen[0] > 0.985
    assert 0.35 < right[1] / seen[1] < 0.6


def test_numpy_and_the_engine_draft_alike(tmp_path: Path) -> None:
    artifact = Artifact.open(convert("tiny-r1", tmp_path / "m", "fp32").path)
    parts = artifact.parts()

    def read(name: str) -> F32:
        return stored_values(parts.weights[name], artifact.tensor(name))

    ids, found = list(range(20, 60)), []
    for backend in (
        ReferenceBackend(parts.main, read, draft=parts.draft),
        CpuBackend(artifact.path),
    ):
        run = Runner(backend, output="hidden")
        hidden = run.step({0: ids[:-1]})
        found.append((hidden[0], *run.draft({0: ids[1:]}, hidden)[0]))
    for exact, ours in zip(*found, strict=True):
        assert relative_error(ours, exact) < 1e-3


def test_copies_of_the_models_own_matrices_are_stored_once(tiny_r1: Artifact) -> None:
    """The checkpoint has an embedding and a head for each part, with the same numbers."""
    parts = tiny_r1.parts()
    assert parts.draft is not None
    shared = parts.main.weights.keys() & parts.draft.weights.keys()
    assert shared == {"embed_tokens.weight", "lm_head.weight"}
    own = [name for name in parts.draft.weights if name not in shared]
    assert own
    assert all(name.startswith("layers.4.") for name in own)
    total = sum(weight.nbytes for weight in parts.weights.values())
    assert total <= tiny_r1.weights_nbytes < 1.02 * total


def test_a_draft_part_takes_the_recipes_formats(tmp_path: Path) -> None:
    tiny = tiny_checkpoint("deepseek_v3", 0, tmp_path / "hf")
    rules = (Rule("layers.2.*experts*", "w3"), Rule("role:expert", "w5"), Rule("*", "w8"))
    made = plan_conversion(tiny.path, Recipe("mine", rules))
    assert made.draft is not None
    assert made.idle == ()
    formats = {w.format for w in made.draft_weights if ".experts." in w.name}
    assert formats == {"w3"}
    assert {w.format for w in made.graph.weights.values() if ".experts." in w.name} == {"w5"}
    assert {w.format for w in made.draft_weights if w.name.endswith("eh_proj.weight")} == {"w8"}


@pytest.mark.parametrize("level", [0, 1, 3])
def test_every_tensor_comes_back(tmp_path: Path, level: int) -> None:
    """Those of the draft part, too, and those that are stored once."""
    tiny = tiny_checkpoint("deepseek_v3", 0, tmp_path / "hf")
    want = load_file(tiny.path / "model.safetensors")
    own, other = "model.layers.2.embed_tokens.weight", "model.embed_tokens.weight"
    want[own] = want[other].clone()
    save_file(want, tiny.path / "model.safetensors")
    made = convert(tiny.path, tmp_path / "m", "fp32", level)
    artifact = Artifact.open(made.path)
    draft = artifact.parts().draft
    assert draft is not None
    assert ("embed_tokens.weight" in draft.weights) == (level > 0)
    export_hf(RestoredSource(artifact), tmp_path / "again", type="fp32")
    found = load_file(tmp_path / "again" / "model.safetensors")
    assert found.keys() == want.keys()
    for name, tensor in want.items():
        assert np.array_equal(found[name].numpy(), tensor.numpy()), name
    again = convert(tmp_path / "again", tmp_path / "m2", "fp32", level)
    assert Artifact.open(again.path).parts() == artifact.parts()


def test_a_draft_part_that_does_not_fit_the_model_is_refused(tmp_path: Path) -> None:
    tiny = tiny_checkpoint("deepseek_v3", 0, tmp_path / "hf")
    path = convert(tiny.path, tmp_path / "m").path
    plain = (path / "draft.json").read_text()
    changes: list[tuple[str, str]] = [
        ('"hidden"', '"unknown"'),
        ('"state"', '"next"'),
        ('["state","logits"]', '["logits"]'),
        ('"layers.2.latent"', '"layers.1.latent"'),
        ('"inputs":["ids","positions","hidden"]', '"inputs":["ids","positions"]'),
        ('["f32","tokens",36]', '["f32","tokens",37]'),
    ]
    for before, after in changes:
        assert before in plain
        (path / "draft.json").write_text(plain.replace(before, after))
        reseal(path)
        with pytest.raises(ArtifactError):
            Artifact.open(path).parts()
    (path / "draft.json").write_text((path / "graph.json").read_text())
    reseal(path)
    with pytest.raises(ArtifactError, match="draft part"):
        Artifact.open(path).parts()
    (path / "draft.json").write_text(plain)
    (path / "graph.json").write_text(plain)
    reseal(path)
    with pytest.raises(ArtifactError, match="ids and positions"):
        Artifact.open(path).parts()


def test_a_draft_part_that_is_missing_is_seen(tmp_path: Path) -> None:
    tiny = tiny_checkpoint("deepseek_v3", 0, tmp_path / "hf")
    path = convert(tiny.path, tmp_path / "m").path
    (path / "draft.json").unlink()
    with pytest.raises(ArtifactError, match=r"draft\.json is missing"):
        Artifact.open(path)
    reseal(path, "draft.json")
    lines = [line for line in check(path) if "draft.json" in line.name]
    assert [line.verdict for line in lines] == ["wrong"]
