"""`sglang.srt.server_args`: our settings are arguments of the server like SGLang's own.

Why: SGLang has no place where a plugin declares arguments. How: they become fields of the
dataclass, so that whatever copies, replaces or shows its fields does so with ours, and the parser
gets our group. Remove when: SGLang lets plugins declare server arguments.
"""

import argparse
import inspect
import sys
from collections.abc import Callable
from dataclasses import field, fields, make_dataclass
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.plugins.hook_registry import HookType

from raas_patches import installation
from raas_patches.active import attach_config, config_of
from raas_patches.backends import DECODE_BACKENDS
from raas_patches.preference import require_preference
from raas_patches.seam import Seam
from raas_patches.support import refused_settings
from raas_sglang.config import RaasConfig, add_flags, take_settings

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs

_SETTINGS = fields(RaasConfig)


def declare_settings() -> None:
    """Makes our settings fields of `ServerArgs`; all are None where no policy is asked for."""
    from sglang.srt.server_args import ServerArgs

    names = [item.name for item in _SETTINGS]
    if names[0] in ServerArgs.__dataclass_fields__:
        return
    ours: Any = make_dataclass("KvArguments", [(name, Any, field(default=None)) for name in names])
    ServerArgs.__dataclass_fields__.update(ours.__dataclass_fields__)
    for name in names:
        setattr(ServerArgs, name, None)
    _extend_signature(ServerArgs.__init__, names)


def _extend_signature(init: Any, names: list[str]) -> None:
    """Callers that drop what a signature does not name must not drop ours."""
    signature = inspect.signature(init)
    kind = inspect.Parameter.KEYWORD_ONLY
    more = [inspect.Parameter(name, kind, default=None) for name in names]
    init.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *more])


def add_cli_args(_: None, parser: argparse.ArgumentParser) -> None:
    """After `ServerArgs.add_cli_args`: our flags beside SGLang's."""
    add_flags(parser)


def from_cli_args(
    original: Callable[..., "ServerArgs"], cls: type, args: argparse.Namespace
) -> "ServerArgs":
    """Around `ServerArgs.from_cli_args`: our refusals are one sentence, SGLang's stay its own."""
    _or_exit(take_settings, dict(vars(args)))
    server_args = original(cls, args)
    _or_exit(require_support, server_args)
    return server_args


def _or_exit(check: Callable[[Any], Any], value: Any) -> None:
    try:
        check(value)
    except (ValueError, RuntimeError) as error:
        sys.exit(f"error: {error}")


def init(original: Callable[..., None], self: "ServerArgs", *args: Any, **kwargs: Any) -> None:
    """Around `ServerArgs.__init__`: the same settings as keyword arguments."""
    given = {item.name: kwargs.get(item.name) for item in _SETTINGS}
    config = take_settings(kwargs)
    _choose_decode_backend(kwargs, config)
    original(self, *args, **kwargs)
    if config is None:
        return
    attach_config(self, config)
    # As given, since what follows from them may follow otherwise once one of them is replaced.
    for item in _SETTINGS:
        value = item.default if given[item.name] is None else given[item.name]
        object.__setattr__(self, item.name, value)


def check_server_args(_: None, self: "ServerArgs") -> None:
    """After `ServerArgs.check_server_args`: the last call before processes are started."""
    require_support(self)


def require_support(server_args: "ServerArgs") -> None:
    """Checks that RaaS can run, if it was asked for, and installs what the parent needs.

    Raises:
        ValueError: a setting excludes RaaS or was changed past it, or a preferred policy or budget
            cannot be had.
        RuntimeError: SGLang's code is not what RaaS was tested with.
    """
    config = config_of(server_args)
    if config != take_settings({item.name: getattr(server_args, item.name) for item in _SETTINGS}):
        raise ValueError(
            "kv_policy and what goes with it must be given when ServerArgs is made, got it changed "
            "afterwards; use dataclasses.replace(server_args, kv_policy=...)"
        )
    require_preference(server_args)
    if config is None:
        return
    problems = refused_settings(server_args)
    if problems:
        raise ValueError("; ".join(problems))
    installation.require_seams(config.traced)


def _choose_decode_backend(values: dict[str, Any], config: RaasConfig | None) -> None:
    """Puts decode on our backend where the user left it open; prefill stays SGLang's choice."""
    if config is None or values.get("device") == "cpu" or not torch.cuda.is_available():
        return
    if values.get("decode_attention_backend") is None:
        values["decode_attention_backend"] = DECODE_BACKENDS["cuda"]


_WHY = "flags and keyword arguments of the server"
_UNTIL = "SGLang lets plugins declare server arguments"
_PATH = "sglang.srt.server_args.ServerArgs."
SEAMS = (
    Seam(_PATH + "add_cli_args", HookType.AFTER, add_cli_args, ("parser",), _WHY, _UNTIL),
    Seam(_PATH + "from_cli_args", HookType.AROUND, from_cli_args, ("args",), _WHY, _UNTIL),
    Seam(_PATH + "__init__", HookType.AROUND, init, None, _WHY, _UNTIL),
    Seam(
        _PATH + "check_server_args",
        HookType.AFTER,
        check_server_args,
        ("self",),
        "refuses settings that exclude RaaS",
        "SGLang lets plugins check server arguments",
    ),
)
