"""Work that a decode step need not wait for."""

from collections.abc import Callable

import torch


class SideStream:
    """Lets work of a captured graph run beside the model; elsewhere it runs at once, in its place.

    Small kernels that wait for memory then cost next to nothing beside a large matrix product. A
    capture must end joined. Without a graph the host is what a step waits for, and a second stream
    would give it more to do.

    Args:
        device: Of the model.
    """

    def __init__(self, device: torch.device | str) -> None:
        self._stream: torch.cuda.Stream | None = None
        if torch.device(device).type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._is_forked = False

    def run(self, work: Callable[[], None]) -> None:
        """Runs work that depends on all before it, and that nothing before `join` depends on.

        Args:
            work: Launches kernels; what they read must not be written or freed before `join`.
        """
        if self._stream is None or not torch.cuda.is_current_stream_capturing():
            work()
            return
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            work()
        self._is_forked = True

    def join(self) -> None:
        """Lets what follows depend on the work."""
        if self._stream is not None and self._is_forked:
            torch.cuda.current_stream().wait_stream(self._stream)
            self._is_forked = False
