"""Ctrl-C as a wish: the first one is heard, the second one ends the program."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from deit.system.signals import stop_on_signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_sets_the_event_and_gives_the_next_one_its_usual_effect(number: signal.Signals) -> None:
    old = signal.getsignal(number)
    with stop_on_signals() as stop:
        assert not stop.is_set()
        os.kill(os.getpid(), number)
        assert stop.is_set()
        assert signal.getsignal(number) is old
    assert signal.getsignal(number) is old


def test_other_threads_are_left_alone() -> None:
    seen: list[bool] = []

    def work() -> None:
        with stop_on_signals() as stop:
            seen.append(stop.is_set())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
