"""Progress display and status lines."""

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
    ("seconds", "formatted"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (75, "1 min 15 s"), (3599, "59 min 59 s"), (9000, "2 h 30 min")],
)
def test_duration(seconds: float, formatted: str) -> None:
    assert duration(seconds) == formatted


def test_short_work_prints_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("Reading", 100) as bar:
        clock.now += 9.9
        bar.advance(50)
    assert capsys.readouterr() == ("", "")


def test_long_work_prints_a_line_every_ten_seconds(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_note_before_the_first_unit_prints_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("Training", 100) as bar:
        clock.now += 20
        bar.advance(0, note="validation loss 2.5")  # resumed between an epoch and its evaluation
        assert capsys.readouterr() == ("", "")
        bar.advance(10)
    assert "validation loss 2.5" in capsys.readouterr().err


def test_more_units_than_expected(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("Reading", 1) as bar:
        clock.now += 20
        bar.advance(5)
    assert "5 of 1 images" in capsys.readouterr().err


def test_terminal_bar_is_erased_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with pytest.raises(RuntimeError, match="stop"), Progress("Reading", 2) as bar:
        bar.advance(1, note="loss 2.5")
        raise RuntimeError("stop")
    output = terminal.getvalue()
    assert "Reading" in output
    assert "\x1b[2K" in output.rsplit("Reading", 1)[1]  # erases the line
    assert "\x1b[?25h" in output  # shows the cursor again


def test_quiet_progress_shows_nothing(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    for stream in (Terminal(), io.StringIO()):
        monkeypatch.setattr(sys, "stderr", stream)
        with Progress("Reading", 2, quiet=True) as bar:
            clock.now += 60
            bar.advance(1)
        assert stream.getvalue() == ""


def test_status_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    print_status("hello")
    assert capsys.readouterr() == ("", "hello\n")
