"""What a person sees while work goes on."""

from __future__ import annotations

import io
import sys

import pytest

from deit.system import progress
from deit.system.progress import Progress, duration, print_status


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (75, "1 min 15 s"), (3599, "59 min 59 s"), (9000, "2 h 30 min")],
)
def test_a_duration_reads_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_work_of_under_ten_seconds_prints_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("Reading", 100) as bar:
        clock.now += 9.9
        bar.advance(50)
    assert capsys.readouterr() == ("", "")


def test_longer_work_prints_a_line_every_ten_seconds_to_standard_error(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("Reading", 4000) as bar:
        for _ in range(4):
            clock.now += 5
            bar.advance(1000, note="loss 2.5")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "Reading: 2,000 of 4,000 images, 200/s, 10 s left, loss 2.5",
        "Reading: 4,000 of 4,000 images, 200/s, 0 s left, loss 2.5",
    ]


def test_more_work_than_expected_is_no_error(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("Reading", 1) as bar:
        clock.now += 20
        bar.advance(5)
    assert "5 of 1 images" in capsys.readouterr().err


def test_a_terminal_gets_a_bar_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with pytest.raises(RuntimeError, match="stop"), Progress("Reading", 2) as bar:
        bar.advance(1, note="loss 2.5")
        raise RuntimeError("stop")
    drawn = terminal.getvalue()
    assert "Reading" in drawn
    assert "\x1b[2K" in drawn.rsplit("Reading", 1)[1]  # the line is erased at the end
    assert "\x1b[?25h" in drawn  # the cursor comes back


def test_a_quiet_one_shows_nothing_anywhere(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    for stream in (Terminal(), io.StringIO()):
        monkeypatch.setattr(sys, "stderr", stream)
        with Progress("Reading", 2, quiet=True) as bar:
            clock.now += 60
            bar.advance(1)
        assert stream.getvalue() == ""


def test_a_line_for_a_person_leaves_standard_output_to_programs(capsys: pytest.CaptureFixture[str]) -> None:
    print_status("hello")
    assert capsys.readouterr() == ("", "hello\n")
