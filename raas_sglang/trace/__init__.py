"""The trace stream of `--kv-trace-endpoint`: pages, their births and their timestamps."""

from raas_sglang.trace.message import PageTable, PageTrace, TraceBatch, page_table, reused
from raas_sglang.trace.subscriber import Received, listen

__all__ = [
    "PageTable",
    "PageTrace",
    "Received",
    "TraceBatch",
    "listen",
    "page_table",
    "reused",
]
