"""Keeps tokens at random."""

from raas_kernels import Policy
from raas_sglang.policies.policy import NaiveHead, PolicyInfo


class NaiveRandom(NaiveHead):
    """Gives up a token drawn by a hash of step, layer and head: the same on every machine."""

    def victim(self, step: int) -> int:
        """Two rounds of a 32-bit mixer (Chris Wellons' hash prospector), modulo L."""
        layer, head = self.seed
        x = (step * 0x9E3779B1 + layer * 0x85EBCA77 + head * 0xC2B2AE3D) % 2**32
        x = (x ^ x >> 16) * 0x7FEB352D % 2**32
        x = (x ^ x >> 15) * 0x846CA68B % 2**32
        return (x ^ x >> 16) % self.budget


POLICY = PolicyInfo(
    Policy.RANDOM,
    "Gives up generated tokens at random; a control.",
    "nothing",
    "Random Attention (arXiv 2609.03430)",
    NaiveRandom,
)
