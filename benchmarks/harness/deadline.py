"""The time of a run: what waits for a server gives up when it is used up."""

import time
from collections.abc import Callable


class OutOfTimeError(Exception):
    """The run's time is used up; what was stored stays."""


def poll(seconds: float, deadline: float) -> None:
    """Sleeps for so long.

    Raises:
        OutOfTimeError: the deadline, a `time.monotonic`, has passed.
    """
    if time.monotonic() > deadline:
        raise OutOfTimeError
    time.sleep(seconds)


def wait_until(condition: Callable[[], object], seconds: float, deadline: float) -> None:
    """Polls every so many seconds until a condition is true; see `poll` for the error."""
    while not condition():
        poll(seconds, deadline)
