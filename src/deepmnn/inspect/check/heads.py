"""The output head, and the tensors that a model does not read.

The definition: with tie_word_embeddings the head is the embedding table (tie_weights in
transformers, which keeps a head that is in the checkpoint and differs).
"""

from __future__ import annotations

import numpy as np

from deepmnn.conversion.plan import unused
from deepmnn.errors import ArtifactError
from deepmnn.graph.ir import Graph
from deepmnn.inspect.check.line import Line, judged, skipped
from deepmnn.inspect.check.subject import Original, Subject
from deepmnn.source.tensor_names import EMBEDDING, HEAD

TOLERANCE = 0.5
"""RMS over RMS. 3 bits beside 8 are 0.2 apart; another matrix is 1.4."""

ROWS = 512


def head_weights(graph: Graph) -> tuple[str, str]:
    """The weights of the embedding and of what gives the logits. Raises ArtifactError."""
    first = [node.weights[0] for node in graph.nodes if "ids" in node.inputs and node.weights]
    last = [node.weights[0] for node in graph.nodes if "logits" in node.outputs and node.weights]
    if not first or not last:
        raise ArtifactError("the program reads no embedding table, or no head", "both")
    return first[0], last[0]


def check_heads(subject: Subject) -> Line:
    """Whether the head is tied to the embedding as config.json says."""
    name = "output head"
    is_tied = subject.config.get("tie_word_embeddings") is True
    table, head = head_weights(subject.graph)
    if isinstance(subject, Original):
        return _of_checkpoint(subject, name, is_tied)
    said = "the embedding table" if table == head else "a matrix of its own"
    if not is_tied:
        return judged(name, True, said, "a matrix of its own, which may have the table's numbers")
    away = 0.0 if table == head else _apart(subject, table, head)
    said += f", {away:.2g} from the table (RMS over RMS)" if away else ""
    advice = "Convert again; if the checkpoint has a head of its own, its config.json is wrong."
    return judged(name, away <= TOLERANCE, said, "the embedding table (tied)", advice, away)


def _of_checkpoint(subject: Original, name: str, is_tied: bool) -> Line:
    """What the graph reads, against what config.json and the files say."""
    reads = subject.naive.weights[head_weights(subject.naive)[1]].expr
    tensor = getattr(reads, "name", "")
    if not is_tied:
        advice = "The head is another tensor than config.json says; the model file is wrong."
        return judged(name, tensor == HEAD, f"reads {tensor}", HEAD, advice)
    if HEAD not in subject.source or tensor == EMBEDDING:
        advice = "The head is not tied; the model file is wrong."
        return judged(name, tensor == EMBEDDING, f"reads {tensor}", f"{EMBEDDING} (tied)", advice)
    a, b = (subject.source.read(each)[:ROWS].astype(np.float64) for each in (EMBEDDING, HEAD))
    away = float(np.sqrt(((a - b) ** 2).mean() / (a**2).mean()))
    advice = "The checkpoint has a head that is not the table: set tie_word_embeddings to false."
    said = f"reads {HEAD}, {away:.2g} from the table (RMS over RMS)"
    return judged(name, False, said, f"{EMBEDDING} (tied)", advice, away)


def _apart(subject: Subject, table: str, head: str) -> float:
    """RMS of the difference of the first rows over their RMS."""
    a, b = (subject.weight(name)[:ROWS].astype(np.float64) for name in (table, head))
    return float(np.sqrt(((a - b) ** 2).mean() / max(float((a**2).mean()), 1e-30)))


def check_unread(subject: Subject) -> Line:
    """What is in a checkpoint and in no node."""
    name = "tensors that nothing reads"
    if not isinstance(subject, Original):
        return skipped(name, "a converted model holds what it reads")
    left = unused(subject.source, subject.tensors)
    read = {tensor.rpartition(".")[0] for tensor in subject.tensors}
    own = [tensor for tensor in left if tensor.rpartition(".")[0] in read]
    said = f"{len(left)}" + (f": {', '.join(left[:3])}" if left else "")
    said += ", ..." if len(left) > 3 else ""
    advice = "They belong to layers that the model reads: config.json lacks an option, a bias say."
    return judged(name, not own, said, "none of a layer that the model reads", advice, len(left))
