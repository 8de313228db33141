"""Signals: the first requests a stop, a second SIGINT stops at once, and repeated SIGTERM and SIGHUP change nothing."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from deit.errors import InterruptedWorkError
from deit.system.signals import (
    STOP_SIGNALS,
    Terminated,
    blocked_signals,
    check_stop,
    exit_on_signals,
    ignore_stop_signals,
    stop_on_signals,
)

REPEATED = [number for number in STOP_SIGNALS if number != signal.SIGINT]


@pytest.fixture(autouse=True)
def restored_handlers() -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in handlers.items():
        assert signal.getsignal(number) is handler
        signal.signal(number, handler)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_signal_requests_a_stop(number: int) -> None:
    check_stop()
    with stop_on_signals() as stop:
        check_stop()
        assert not stop.is_set()
        send(number)
        assert stop.is_set()
        with pytest.raises(InterruptedWorkError) as error_info:
            check_stop()
        assert error_info.value.exit_code == stop.error("Stopped").exit_code == 128 + number
    check_stop()


@pytest.mark.parametrize("number", REPEATED)
def test_repeated_signal_of_a_container_runtime_is_one_request(number: int) -> None:
    with stop_on_signals() as stop:
        for _ in range(3):
            send(number)
        assert stop.number == number


def test_second_interrupt_stops_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), stop_on_signals() as stop:
        send(signal.SIGINT)
        assert stop.is_set()
        send(signal.SIGINT)


def test_inner_context_is_the_outer_one() -> None:
    with stop_on_signals() as outer:
        with stop_on_signals() as inner:
            assert inner is outer
            send(signal.SIGTERM)
        send(signal.SIGTERM)  # still handled
        assert outer.is_set()


@pytest.mark.parametrize("number", REPEATED)
def test_program_exits_once_and_cleans_up_undisturbed(number: int) -> None:
    cleaned = []
    with pytest.raises(Terminated) as exit_info, exit_on_signals():
        try:
            send(number)
        finally:
            send(number)
            send(number)
            cleaned.append(True)
    assert (exit_info.value.code, exit_info.value.number, cleaned) == (128 + number, number, [True])


def test_stop_takes_precedence_over_exit() -> None:
    with exit_on_signals(), stop_on_signals() as stop:
        for number in REPEATED:
            send(number)
        assert stop.is_set()
    with pytest.raises(Terminated), exit_on_signals():
        with stop_on_signals():
            pass
        send(signal.SIGTERM)


@pytest.mark.parametrize("number", REPEATED)
def test_ignored_signal_stays_ignored(number: int) -> None:
    """As started by nohup."""
    previous = signal.signal(number, signal.SIG_IGN)
    try:
        with exit_on_signals(), stop_on_signals() as stop:
            send(number)
            assert not stop.is_set()
    finally:
        signal.signal(number, previous)


def test_child_that_starts_under_a_block_ignores_what_was_sent_meanwhile() -> None:
    with blocked_signals():
        child = os.fork()
        if not child:
            for number in STOP_SIGNALS:
                send(number)
            ignore_stop_signals()
            send(signal.SIGTERM)
            os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_other_threads_install_no_handler() -> None:
    seen: list[bool] = []

    def work() -> None:
        with exit_on_signals(), stop_on_signals() as stop:
            seen.append(stop.is_set())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
