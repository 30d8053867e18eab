"""How a request's report travels from the scheduler to the response.

SGLang carries one value per output token in `Req.customized_info`. The report is one for the whole
request, so it is read when tokens are sent, and only the last of them bears it.
"""

from typing import Any

from raas_sglang.request import RequestState

REPORT_KEY = "raas_report"


class TokenReports:
    """Stands for the list of per-token values that SGLang slices when it sends tokens."""

    def __init__(self, state: RequestState) -> None:
        self._state = state

    def __getitem__(self, sent: slice) -> list[dict[str, Any] | None]:
        # At least one, since a message without new tokens may be the only one or the last.
        count = max(1, sent.stop - (sent.start or 0))
        return [None] * (count - 1) + [self._state.report()]


def show_report(meta_info: dict[str, Any]) -> None:
    """Makes the latest report plain fields of ``meta_info``, where there is one.

    It is looked for from the end, since a stream that is not incremental shows all tokens so far
    with each message.
    """
    entries = reversed(meta_info.pop(REPORT_KEY, ()))
    meta_info.update(next((entry for entry in entries if entry is not None), {}))
