"""`sglang.srt.server_args`: the flags, and the refusal to start.

Why: SGLang has no place where a plugin declares flags. How: the parser gets our group, and our
values leave the namespace before `ServerArgs` is built. Remove when: SGLang lets plugins add flags.
"""

import argparse
import sys
from collections.abc import Callable
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


def add_cli_args(_: None, parser: argparse.ArgumentParser) -> None:
    """After `ServerArgs.add_cli_args`: our flags beside SGLang's."""
    add_flags(parser)


def from_cli_args(
    original: Callable[..., "ServerArgs"], cls: type, args: argparse.Namespace
) -> "ServerArgs":
    """Around `ServerArgs.from_cli_args`: takes our values, refuses with one sentence."""
    try:
        config = take_settings(vars(args))
        _choose_decode_backend(vars(args), config)
        server_args = original(cls, args)
        attach_config(server_args, config)
        require_support(server_args)
    except (ValueError, RuntimeError) as error:
        if "kv-" not in str(error):
            raise
        sys.exit(f"error: {error}")
    return server_args


def init(original: Callable[..., None], self: "ServerArgs", *args: Any, **kwargs: Any) -> None:
    """Around `ServerArgs.__init__`: the same settings as keyword arguments of `sgl.Engine`."""
    config = take_settings(kwargs)
    _choose_decode_backend(kwargs, config)
    original(self, *args, **kwargs)
    attach_config(self, config)


def check_server_args(_: None, self: "ServerArgs") -> None:
    """After `ServerArgs.check_server_args`: the last call before processes are started."""
    require_support(self)


def require_support(server_args: "ServerArgs") -> None:
    """Checks that RaaS can run, if it was asked for, and installs what the parent needs.

    Raises:
        ValueError: a setting excludes RaaS, or a preferred policy or budget cannot be had.
        RuntimeError: SGLang's code is not what RaaS was tested with.
    """
    require_preference(server_args)
    config = config_of(server_args)
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
