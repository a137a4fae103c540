"""Stopping a run at a place from which it can go on: signals, and the end of the time it was given."""

import math
import os
import signal
import time
from types import FrameType, TracebackType
from typing import Self

from candid.errors import CandidError

TIME_UP, LAST_STEP = 1, 3
SIGNALS = {signal.SIGINT: "Interrupted", signal.SIGTERM: "Terminated"}


class Stopped(CandidError):
    """A run stopped before its end because it was told to; what it had done is saved."""

    def __init__(self, text: str, exit_code: int) -> None:
        """`exit_code` is 128 + the signal, as shells count, and 0 where the time was up."""
        super().__init__(text)
        self.exit_code = exit_code


class Stop:
    """Whether a run shall stop, as a context in which signals wait until the run asks.

    The first signal is remembered; a second one leaves at once, because whoever sends it does not want to wait.
    """

    def __init__(self, max_seconds: float = math.inf, last_step: int | None = None) -> None:
        """The time begins now."""
        self._ends_at_s, self._last_step = time.monotonic() + max_seconds, last_step
        self.signal = 0
        self._earlier: dict[int, object] = {}

    def __enter__(self) -> Self:
        """Take over the signals."""
        for number in SIGNALS:
            self._earlier[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        """Give the signals back."""
        for number, handler in self._earlier.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]  # as signal.signal returned it

    def reason(self, step: int) -> int:
        """0 to go on after so many steps; a signal's number, TIME_UP or LAST_STEP to stop."""
        if self.signal or time.monotonic() >= self._ends_at_s:
            return self.signal or TIME_UP
        return LAST_STEP if step == self._last_step else 0

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.signal:
            os._exit(128 + number)
        self.signal = number


def stop_for(reason: int) -> None:
    """Raise `Stopped` for what `Stop.reason` gives, unless that is 0."""
    if reason in SIGNALS:
        raise Stopped(SIGNALS[signal.Signals(reason)], 128 + reason)
    if reason:
        raise Stopped("The time is up" if reason == TIME_UP else "The last step that was asked for is done", 0)
