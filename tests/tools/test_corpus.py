"""What the training and calibration texts are made of."""

from __future__ import annotations

import struct
import sys
import zlib
from pathlib import Path

import pytest

pytest.importorskip("typer")
sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
sys.path.insert(0, str(Path(__file__).parents[2]))

from bench.accuracy.texts import Texts

import corpus
import make_calibration
from deepmnn.text.samples import built_in

ROOT = Path(__file__).parents[2]


def test_pages_become_text() -> None:
    html = (
        "<html><head><title>T</title></head><body><nav>Home</nav><h1>A  title</h1>"
        "<p>One\n line &amp; <b>more</b>.</p><pre>def f():\n    return 1</pre><script>x</script>"
        "</body></html>"
    )
    assert corpus.page_text(html).split() == (
        ["A", "title", "One", "line", "&", "more.", "def", "f():", "return", "1"]
    )
    assert "\n    return 1\n" in corpus.page_text(html)


def test_character_vectors_of_r() -> None:
    def vector(texts: list[str]) -> bytes:
        data = b"X\n" + struct.pack(">iiii", 3, 1, 1, 0) + struct.pack(">ii", 16, len(texts))
        for text in map(str.encode, texts):
            data += struct.pack(">ii", 0x40009, len(text)) + text
        return struct.pack(">i", len(data)) + zlib.compress(data)

    wanted = [["EMMA", "", "naïve"], ["second"]]
    assert list(corpus.strings_of_r(b"".join(map(vector, wanted)))) == wanted


def test_held_out_is_a_matter_of_the_name() -> None:
    def is_held_out(name: str) -> bool:
        return corpus.Document(name, "").is_held_out

    assert is_held_out("stdlib/zipfile.py")
    assert is_held_out("stdlib/zipfile/_path/glob.py")
    assert not is_held_out("stdlib/zipapp.py")
    assert is_held_out("python/reference/datamodel")
    assert 10 < sum(is_held_out(f"rust/book/{number}") for number in range(1000)) < 60


def test_what_models_are_judged_on_is_held_out(tmp_path: Path) -> None:
    assert "statistics" in corpus.HELD_OUT_MODULES  # measure/texts.py: that, and pydoc's topics
    own = "Never seen."
    (tmp_path / "HELDOUT.txt").write_text(own)
    plain = Texts.of(tmp_path, (), None).held_out
    assert [*plain, own] == Texts.of(tmp_path / "hf", (), None).held_out
    files = sorted((ROOT / "bench" / "accuracy" / "held_out").glob("*.txt"))
    assert [path.stem for path in files] == ["chinese", "english"]
    known = "\n".join(
        sample.text or "\n".join(m["content"] for m in sample.messages) for sample in built_in()
    )
    for text in (*plain, *(path.read_text(encoding="utf-8") for path in files)):
        paragraphs = [part for part in text.split("\n\n") if len(part) > 200]
        assert len(paragraphs) >= 8
        assert not [part for part in paragraphs if part in known]


def test_written_and_generated_samples_are_made_again() -> None:
    """What needs no download comes out as it is in the package, to the byte."""
    shipped = {tuple(m["content"] for m in sample.messages) for sample in built_in()} - {()}
    lines = [*make_calibration.written_chats(), *make_calibration.generated(18)]
    assert {tuple(m["content"] for m in line["messages"]) for line in lines} == shipped
    texts = {sample.text for sample in built_in()}
    for name in ("english.txt", "chinese.txt", "code.txt"):
        assert set(make_calibration.written(name)) <= texts


def test_passages_are_whole_paragraphs() -> None:
    paragraphs = [f"Paragraph {n} says something. " * 12 for n in range(40)]
    document = corpus.Document("test/a", "\n\n".join(p.strip() for p in paragraphs))
    passage = make_calibration.passage(document, "english")
    assert passage is not None
    assert passage in document.text
    assert 1000 < len(passage) <= make_calibration.LONGEST
