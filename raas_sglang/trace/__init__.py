"""The trace stream of `--kv-trace-endpoint`: which tokens each request holds, and why."""

from raas_sglang.trace.message import (
    RequestTrace,
    TokenTable,
    TokenTrace,
    TraceBatch,
    reused,
    token_table,
)
from raas_sglang.trace.subscriber import Received, Subscription, listen

__all__ = [
    "Received",
    "RequestTrace",
    "Subscription",
    "TokenTable",
    "TokenTrace",
    "TraceBatch",
    "listen",
    "reused",
    "token_table",
]
