"""Without the extra `serve`, the verbs that need it say so."""

import sys
from pathlib import Path

import pytest

from deepmnn.cli import main


@pytest.mark.parametrize("verb", ["serve", "batch"])
def test_a_server_needs_its_packages(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith(("deepmnn.serve.", "fastapi"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    files = [str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl")] if verb == "batch" else []
    with pytest.raises(SystemExit) as ended:
        main([verb, "tiny-r1", *files])
    assert ended.value.code == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "fastapi" in said
    assert 'pip install "deepmnn[serve]"' in said
