"""A plugin that lets a server on the CPU have SGLang's float8 pool of a GPU.

SGLang has float8 on the CPU for intel_amx attention alone, in a pool of another kind. The attention
that there is otherwise reads float8 as it is, which is right where no layer has a scale.
"""

from typing import Any

import torch
from sglang.srt.mem_cache import kv_cache_configurator


class Platform:
    """SGLang's platform, but for whom it asks before it builds a pool."""

    def __init__(self, platform: Any) -> None:
        self._platform = platform

    def __getattr__(self, name: str) -> Any:
        return getattr(self._platform, name)

    def is_cpu(self) -> bool:
        return False


def register() -> None:
    """Entry point."""
    from raas_sglang.support import models, settings

    kv_cache_configurator.current_platform = Platform(kv_cache_configurator.current_platform)
    settings.REFUSALS = tuple(r for r in settings.REFUSALS if r.flag != "--kv-cache-dtype")
    models._DTYPES = (*models._DTYPES, torch.float8_e4m3fn)
