"""The ops as Triton kernels; see `raas_kernels.ops.Ops` for their contract."""

from raas_kernels.claim_slots import claim_slots
from raas_kernels.score_tokens import score_tokens
from raas_kernels.store_decode import store_decode

__all__ = ["claim_slots", "score_tokens", "store_decode"]
