"""The Triton kernels under the names of `torch_ops`."""

from raas_kernels.claim_slots import claim_slots
from raas_kernels.score_pages import score_pages
from raas_kernels.stamp_decode import stamp_decode
from raas_kernels.store_decode import store_decode

__all__ = ["claim_slots", "score_pages", "stamp_decode", "store_decode"]
