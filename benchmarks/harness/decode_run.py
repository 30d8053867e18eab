"""One batch of fixed requests on one arm, and the checks that make its timing worth storing."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness.arms import Arm
from benchmarks.harness.prompts import Prompts
from benchmarks.harness.rows import RowFile
from benchmarks.harness.shapes import endless
from benchmarks.harness.streams import TokenStreams, Window
from raas_sglang.cpu import has_driver

SETTLE_S = 0.05
SPARE_MESSAGES = 32


@dataclass(frozen=True)
class Workload:
    """What every request of every arm is.

    Attributes:
        prompt: Tokens of a prompt.
        budget: L, generated tokens that an evicting request keeps.
        window: Decode steps that are timed, a multiple of ``interval``.
        interval: Tokens in one message of a stream.
        seed: Seed of the prompts.
        model_path: Folder with the model's `config.json`.
    """

    prompt: int
    budget: int
    window: int
    interval: int
    seed: int
    model_path: Path

    @property
    def checked_tokens(self) -> int:
        """Budget of the check before the timing, in tokens."""
        return min(64, self.budget)

    @property
    def stride(self) -> int:
        """Tokens from the begin of a window to that of the next, which waits for a message."""
        return self.window + self.interval

    @property
    def spare(self) -> int:
        """Tokens that requests go on for while others, or what measures them, are not as far."""
        return SPARE_MESSAGES * self.interval

    def config(self) -> dict[str, Any]:
        """What a row says of it."""
        names = ("prompt", "budget", "window", "interval")
        return {name: getattr(self, name) for name in names}

    def prompts(self, batch: int) -> list[list[int]]:
        """Token ids; no two prompts share a prefix worth speaking of."""
        return Prompts(self.model_path, self.seed).batch([self.prompt] * batch)

    def span(self, is_evicting: bool, rounds: int) -> tuple[int, int]:
        """Generated tokens before the first round, and those expected after the last.

        Rounds of a dense arm lie around ``budget`` tokens; an evicting arm has given up its first.

        Raises:
            ValueError: the budget is too small for so many rounds.
        """
        before = self.interval + (rounds - 1) * self.stride // 2 + self.window // 2
        first = self.budget + self.interval if is_evicting else self.budget - before
        if first < 1:
            raise ValueError(
                f"--kv-budget must be above {before} for {rounds} rounds, got {self.budget}; "
                "use fewer rounds or a smaller --window"
            )
        return first, first + rounds * self.stride + 2 * self.interval


class DecodeRun:
    """A batch that decodes on one arm.

    Args:
        arm: A started server, running nothing.
        load: The requests.
        batch: How many of them.
        tokens: Most tokens that each may generate.
    """

    def __init__(self, arm: Arm, load: Workload, batch: int, tokens: int) -> None:
        self.arm, self.load, self.batch, self.tokens = arm, load, batch, tokens
        self.windows: list[Window] = []
        self._pool_tokens: list[int] = []
        self._streams: TokenStreams | None = None
        self._mark = 0

    @property
    def streams(self) -> TokenStreams:
        """The running requests; the first use starts them, all at once, on an empty cache."""
        if self._streams is None:
            self._streams = self._start({})
        return self._streams

    def first_tokens(self, policy: str, budget: int, deadline: float) -> list[list[int]]:
        """Runs the batch with a policy and budget; returns what came before the budget was full."""
        streams = self._start({"custom_params": {"kv_policy": policy, "kv_budget": budget}})
        streams.wait(self.tokens, deadline)
        streams.join()
        return [ids[:budget] for ids in streams.output_ids]

    def advance(self, tokens: int, deadline: float) -> None:
        """Lets every request generate so many tokens."""
        self.streams.wait(tokens, deadline)

    def take_turn(self, deadline: float) -> None:
        """Goes on, times one window and pauses again."""
        time.sleep(SETTLE_S)  # messages that were under way when it paused have come by now
        first = [count + 1 for count in self.streams.counts()]
        self._mark = self.arm.log_size()
        self.arm.resume()
        self.windows.append(self.streams.wait_window(first, self.load.window, deadline))
        self.arm.pause()
        self._check()

    def window_at(self, first: int, deadline: float) -> Window:
        """The window that begins with each request's next message once all are at a token.

        Requests that came first are ahead of the others, and all must run while it is timed.
        """
        self.advance(first, deadline)
        begins = [count + 1 for count in self.streams.counts()]
        self._mark = self.arm.log_size()
        window = self.streams.wait_window(begins, self.load.window, deadline)
        self._check()
        return window

    def end(self) -> None:
        """Ends the requests."""
        self.arm.resume()
        self.arm.post("/abort_request", abort_all=True)
        self.streams.join()

    def write(
        self, result: str, windows: Sequence[Window], rows: RowFile, config: dict[str, Any]
    ) -> None:
        """Stores windows as one row, in milliseconds.

        Raises:
            RuntimeError: SGLang logged no decode batch, so nothing shows how they ran.
        """
        if not self._pool_tokens:
            raise RuntimeError(
                f"arm {self.arm.name} must log a decode batch while it is timed, got none; "
                "raise --rounds or --window"
            )
        generated = [window.generated for window in windows]
        rows.write(
            result,
            [window.milliseconds for window in windows],
            "ms",
            {**config, "arm": self.arm.name, "batch": self.batch},
            generated_tokens=generated,
            resident_tokens=[self._resident(count) for count in generated],
            pool_tokens=self._pool_tokens,
            flags=self.arm.flags,
        )
        self._pool_tokens = []

    def _start(self, chosen: dict[str, Any]) -> TokenStreams:
        self.arm.clear()
        params = {
            **endless(self.load.model_path),
            "max_new_tokens": self.tokens,
            "stream_interval": self.load.interval,
            **chosen,
        }
        return TokenStreams(self.arm.server.url, self.load.prompts(self.batch), params)

    def _resident(self, generated: float) -> float:
        kept = min(generated, self.load.budget) if self.arm.is_evicting else generated
        return self.load.prompt + kept

    def _check(self) -> None:
        """Makes sure that the window timed what it is said to have timed.

        Raises:
            RuntimeError: it did not.
        """
        lines = self.arm.decode_batches(self._mark)
        for line in lines:
            if line.running != self.batch or line.queued or line.is_graph is not has_driver():
                raise RuntimeError(
                    f"all {self.batch} requests of arm {self.arm.name} must decode in one batch, "
                    f"as a CUDA graph where there is a GPU, got {line}"
                )
        self._pool_tokens += [line.pool_tokens for line in lines]
        for info in self.streams.meta_infos:
            self._check_report(info)

    def _check_report(self, info: dict[str, Any]) -> None:
        if info["num_retractions"]:
            raise RuntimeError(
                f"no request of arm {self.arm.name} may be retracted; raise --max-total-tokens"
            )
        self.arm.check_answer(info)
        if not self.arm.is_evicting:
            return
        most = self.load.prompt + self.load.budget
        if info["resident_tokens"] != most or not info["evicted_tokens"]:
            raise RuntimeError(
                f"requests of arm {self.arm.name} must be saturated at {most} resident tokens, "
                f"got {info}"
            )
