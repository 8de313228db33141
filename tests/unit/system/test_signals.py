"""Signals: the first sets the flag, the second has its usual effect."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from deit.system.signals import stop_on_signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_sets_the_event_and_restores_the_handler(number: signal.Signals) -> None:
    previous = signal.getsignal(number)
    with stop_on_signals() as stop:
        assert not stop.is_set()
        os.kill(os.getpid(), number)
        assert stop.is_set()
        assert signal.getsignal(number) is previous
    assert signal.getsignal(number) is previous


def test_other_threads_install_no_handler() -> None:
    seen: list[bool] = []

    def work() -> None:
        with stop_on_signals() as stop:
            seen.append(stop.is_set())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
