"""A plugin that counts what RaaS keeps in the server's processes; `/server_info` shows it."""

import gc
import sys
from collections import Counter
from collections.abc import Awaitable
from typing import Any

from sglang.srt.plugins.hook_registry import HookRegistry, HookType

# SGLang's own that hold ours.
HOLDERS = ("Req", "ReqState", "ScheduleBatch")
CONTAINERS = (dict, list, set)


def census() -> dict[str, int]:
    """Objects of our classes, and entries of the containers in them and in our modules."""
    gc.collect()
    counts: Counter[str] = Counter()
    for thing in gc.get_objects():
        name, module = type(thing).__name__, str(type(thing).__module__)
        if module.startswith("sglang.") and name in HOLDERS:
            counts[name] += 1
        elif module.startswith("raas_"):
            counts[name] += 1
            counts.update(_entries(name, getattr(thing, "__dict__", {})))
    for name, module in list(sys.modules.items()):
        if name.startswith("raas_"):
            counts.update(_entries(name, vars(module)))
    return dict(counts)


def _entries(owner: str, attributes: dict[str, Any]) -> dict[str, int]:
    return {
        f"{owner}.{key}": len(value)
        for key, value in list(attributes.items())
        if isinstance(value, CONTAINERS) and not key.startswith("__")
    }


def of_scheduler(result: Any, *_: Any) -> Any:
    """After `Scheduler.get_internal_state`."""
    result.internal_state["census"] = census()
    return result


async def of_server(states: Awaitable[list[dict[str, Any]]], *_: Any) -> list[dict[str, Any]]:
    """After `TokenizerManager.get_internal_state`, which is awaited."""
    return [{**state, "census of the server": census()} for state in await states]


def register() -> None:
    """Entry point."""
    path = "sglang.srt.managers."
    for target, hook in (
        (path + "scheduler.Scheduler.get_internal_state", of_scheduler),
        (path + "tokenizer_manager.TokenizerManager.get_internal_state", of_server),
    ):
        HookRegistry.register(target, hook, HookType.AFTER)
