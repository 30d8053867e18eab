"""Device code of RaaS and its plain-torch counterpart; imports torch and Triton, never SGLang."""

from raas_kernels.buffers import EvictionBuffers, RequestTables, ScoreScratch, StepBuffers
from raas_kernels.layout import DecodeBatch, KeyCaches, KVScales, Policy, StepOptions

__all__ = [
    "DecodeBatch",
    "EvictionBuffers",
    "KVScales",
    "KeyCaches",
    "Policy",
    "RequestTables",
    "ScoreScratch",
    "StepBuffers",
    "StepOptions",
]
