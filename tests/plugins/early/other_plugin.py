"""A plugin of somebody else's on functions that RaaS hooks as well; found by its metadata.

On the path of Python before `raas-sglang` it registers first; `late/sitecustomize.py` puts it last.
"""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from sglang.srt.plugins.hook_registry import HookRegistry, HookType

HOOKED = {
    "sglang.srt.server_args.ServerArgs.add_cli_args": HookType.AROUND,
    "sglang.srt.server_args.ServerArgs.from_cli_args": HookType.AROUND,
    "sglang.srt.server_args.ServerArgs.check_server_args": HookType.AFTER,
    "sglang.srt.managers.scheduler.Scheduler.__init__": HookType.BEFORE,
    "sglang.srt.managers.scheduler.Scheduler.get_init_info": HookType.AFTER,
    "sglang.srt.managers.tokenizer_manager.TokenizerManager._validate_one_request": HookType.AROUND,
    "sglang.srt.managers.tokenizer_manager.TokenizerManager._wait_one_response": HookType.AROUND,
    "sglang.srt.mem_cache.allocation.alloc_for_decode": HookType.AROUND,
    "sglang.srt.managers.schedule_batch.ScheduleBatch.prepare_for_decode": HookType.AFTER,
    "sglang.srt.managers.schedule_batch.Req.__init__": HookType.BEFORE,
    "sglang.srt.model_executor.forward_batch_info.ForwardBatch.init_new": HookType.AROUND,
}
_seen: set[str] = set()


def _hook(target: str, kind: HookType, *args: Any, **kwargs: Any) -> Any:
    """Says once that it was called, and changes nothing."""
    if target not in _seen:
        _seen.add(target)
        sys.stderr.write(f"other plugin at {target}\n")
    if kind is not HookType.AROUND:
        return None
    original: Callable[..., Any] = args[0]
    return original(*args[1:], **kwargs)


def register() -> None:
    """Entry point."""
    for target, kind in HOOKED.items():
        HookRegistry.register(target, partial(_hook, target, kind), kind)


def fail() -> None:
    """Entry point of a plugin that cannot be loaded."""
    raise RuntimeError("this plugin always fails")
