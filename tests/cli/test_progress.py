"""Without a terminal, long work speaks now and then; short work is silent."""

from __future__ import annotations

import time

import pytest

from deepmnn.cli import progress


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "FIRST_LINE", 0.01)
    monkeypatch.setattr(progress, "NEXT_LINE", 0.01)


def wait_for_lines(capsys: pytest.CaptureFixture[str], count: int) -> list[str]:
    """What stderr has once it has so many lines."""
    text, end = "", time.monotonic() + 20
    while text.count("\n") < count and time.monotonic() < end:
        time.sleep(0.005)
        text += capsys.readouterr().err
    return text.splitlines()


@pytest.mark.usefixtures("quick")
def test_lines_say_how_far_it_is_even_while_the_work_is_silent(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with progress.byte_progress("converting") as report:
        assert wait_for_lines(capsys, 1)[0].startswith("converting: working, ")
        report(250_000_000, 1_000_000_000, "model.\x1b[2J")
        lines = wait_for_lines(capsys, 3)
        assert lines[-1].startswith("converting: 25%, 250.0 MB of 1.0 GB, ")
        assert lines[-1].endswith(" s")
    assert capsys.readouterr().err.splitlines()[-1].startswith("converting: done, ")


@pytest.mark.usefixtures("quick")
def test_counts_and_steps(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.count_progress("asking") as report:
        report(3, 12, "")
        assert wait_for_lines(capsys, 2)[-1].startswith("asking: 25%, 3 of 12, ")
    with progress.status("measuring") as say:
        capsys.readouterr()
        say("prompt 128")
        assert wait_for_lines(capsys, 2)[-1].startswith("measuring: prompt 128, ")


@pytest.mark.usefixtures("quick")
def test_work_that_fails_is_not_done(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        with progress.byte_progress("exporting"):
            wait_for_lines(capsys, 1)
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    assert "done" not in capsys.readouterr().err


def test_short_work_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.byte_progress("converting") as report:
        report(1, 2, "")
    assert capsys.readouterr().err == ""


def test_a_line_comes_at_least_every_ten_seconds() -> None:
    assert progress.FIRST_LINE <= 5
    assert 5 <= progress.NEXT_LINE <= 10


@pytest.mark.usefixtures("quick")
def test_the_time_left_is_that_of_the_count_that_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """A search counts several times: what an earlier count took says nothing of the next one."""
    with progress.work_progress("searching") as report:
        report(0, 100, "first")
        report(1, 100, "first")
        capsys.readouterr()
        assert "left" not in wait_for_lines(capsys, 2)[-1]  # too little to judge by
        report(50, 100, "first")
        capsys.readouterr()
        assert "50%, first, about 0 s left" in wait_for_lines(capsys, 2)[-1]
        report(1, 100, "second")
        report(2, 100, "second")
        capsys.readouterr()
        assert "left" not in wait_for_lines(capsys, 2)[-1]
