"""Keeps every token."""

from raas_kernels import Policy
from raas_sglang.policies.policy import PolicyInfo

POLICY = PolicyInfo(Policy.DENSE, "Keeps every token, as SGLang does.", "nothing", "full attention")
