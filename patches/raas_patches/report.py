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
        count = max(0, sent.stop - (sent.start or 0))
        if count == 0:
            return []
        return [None] * (count - 1) + [self._state.report()]
