"""`sglang.srt.utils.request_logger`: `--log-requests` says what the answer says.

Why: SGLang logs an answer before `_wait_one_response` returns it, so with the report as it travels,
one entry for each token. How: the report is unpacked before the line is written. Remove when:
SGLang lets plugins add scalars to `meta_info`.
"""

from typing import TYPE_CHECKING, Any

from sglang.srt.plugins.hook_registry import HookType

from raas_patches.report import show_report
from raas_patches.seam import Seam

if TYPE_CHECKING:
    from sglang.srt.utils.request_logger import RequestLogger


def log_finished_request(
    self: "RequestLogger", obj: Any, out: dict[str, Any], *_: Any, **__: Any
) -> None:
    """Before `log_finished_request`: the report becomes plain fields."""
    show_report(out["meta_info"])


SEAMS = (
    Seam(
        "sglang.srt.utils.request_logger.RequestLogger.log_finished_request",
        HookType.BEFORE,
        log_finished_request,
        ("self", "obj", "out", "request"),
        "keeps the form in which the report travels out of the log",
        "SGLang lets plugins add scalars to meta_info",
    ),
)
