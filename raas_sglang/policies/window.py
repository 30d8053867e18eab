"""Keeps the newest tokens."""

from raas_kernels import Policy
from raas_sglang.policies.policy import NaiveHead, PolicyInfo


class NaiveWindow(NaiveHead):
    """Gives up the oldest token."""

    def victim(self, step: int) -> int:
        """The places form a ring."""
        return min(self.tokens, key=lambda place: self.tokens[place].birth)


POLICY = PolicyInfo(
    Policy.WINDOW,
    "Keeps the newest L generated tokens.",
    "nothing",
    "StreamingLLM (arXiv 2309.17453), with the whole prompt in place of its sinks",
    NaiveWindow,
)
