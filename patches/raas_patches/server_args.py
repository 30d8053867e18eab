"""`sglang.srt.server_args`: our settings are arguments of the server like SGLang's own.

Why: SGLang has no place where a plugin declares arguments. How: its record of arguments becomes a
subclass with a field for each of ours, so that whatever copies, replaces, shows or sends its fields
does so with ours. Remove when: SGLang lets plugins declare server arguments.

With a policy two of SGLang's resolution hooks are ours as well: before
`handle_model_specific_adjustments` a model that is known to be another is refused, and before
`handle_attention_backend_compatibility` decode goes to FlashInfer where the user left it open.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import msgspec
from sglang.srt.arg_groups.model_override_base import model_config_of
from sglang.srt.arg_groups.overrides import declare_resolution, resolving_view
from sglang.srt.arg_groups.resolution_hooks import register_resolution_hook
from sglang.srt.plugins.hook_registry import HookRegistry, HookType
from sglang.srt.server_args import ServerArgs

from raas_patches import installation
from raas_patches.active import arrive, config_of
from raas_sglang.config import DECODE_BACKENDS, RaasConfig, add_flags, take_settings
from raas_sglang.life.preference import require_preference
from raas_sglang.support.architectures import require_architecture
from raas_sglang.support.settings import refused_settings

_SETTINGS = [item.name for item in fields(RaasConfig)]
_Extended: Any = msgspec.defstruct(
    "_Extended", [(name, Any, None) for name in _SETTINGS], bases=(ServerArgs,), dict=True
)


class RaasServerArgs(_Extended):
    """SGLang's arguments with ours; all of ours are None where no policy is asked for.

    Raises:
        ValueError: one of ours is wrong, or was given without ``kv_policy``.
    """

    # The class has SGLang's name, so that a process without the plugin can read what is sent.
    __module__ = ServerArgs.__module__
    __qualname__ = ServerArgs.__qualname__
    _is_command_line = False

    @staticmethod
    def add_cli_args(parser: argparse.ArgumentParser) -> None:
        """Adds our flags to SGLang's."""
        _Extended.add_cli_args(parser)
        add_flags(parser)

    @classmethod
    def from_cli_args(cls, args: argparse.Namespace) -> "RaasServerArgs":
        """Makes the arguments of a command line; a refusal of ours ends it in one sentence."""
        with _one_sentence(True):
            take_settings(dict(vars(args)))
        made: RaasServerArgs = super().from_cli_args(args)
        made._is_command_line = True
        return made

    def __post_init__(self) -> None:
        super().__post_init__()
        config_of(self)

    def __reduce__(self) -> tuple[Any, ...]:
        """Lets arguments with a policy bring the plugin to each process that gets them."""
        rebuild, (cls, values, notes) = super().__reduce__()
        if config_of(self) is not None:
            return arrive, (values, notes)
        return rebuild, (cls, {k: v for k, v in values.items() if k not in _SETTINGS}, notes)

    def check_server_args(self) -> None:
        """Checks the resolved arguments: the last call before processes are started."""
        super().check_server_args()
        with _one_sentence(self._is_command_line):
            require_support(self)


def declare_settings() -> None:
    """Lets SGLang make its arguments with ours, once its hooks are applied."""
    from sglang.srt.entrypoints.engine import Engine

    for owner in (ServerArgs, Engine):
        place = f"{owner.__module__}.{owner.__qualname__}"
        target = place if owner is ServerArgs else f"{place}.server_args_class"
        HookRegistry.register(target, RaasServerArgs, HookType.REPLACE)
    register_resolution_hook("handle_model_specific_adjustments")(know_model)
    register_resolution_hook("handle_attention_backend_compatibility")(choose_decode_backend)


def know_model(server_args: Any, previous: Callable[[Any], None]) -> None:
    """Refuses a model that is not ours before SGLang asks for backends that are not either."""
    if config_of(server_args) is not None:
        with _one_sentence(server_args._is_command_line):
            require_architecture(model_config_of(server_args))
    previous(server_args)


def choose_decode_backend(server_args: Any, previous: Callable[[Any], None]) -> None:
    """Puts decode on our backend where the user left it open; prefill stays SGLang's choice."""
    chosen = resolving_view(server_args)
    if (
        config_of(server_args) is not None
        and chosen.device == "cuda"
        and chosen.decode_attention_backend is None
    ):
        declare_resolution(
            server_args, "--kv-policy", decode_attention_backend=DECODE_BACKENDS["cuda"]
        )
    previous(server_args)


def require_support(server_args: ServerArgs) -> None:
    """Checks that RaaS can run, if it was asked for, and installs what the parent needs.

    Args:
        server_args: SGLang's arguments, resolved.

    Raises:
        ValueError: a setting excludes RaaS, or a preferred policy or budget cannot be had.
        RuntimeError: SGLang's code is not what RaaS was tested with.
    """
    config = config_of(server_args)
    require_preference(server_args, config)
    if config is None:
        return
    problems = refused_settings(server_args)
    if problems:
        raise ValueError("; ".join(problems))
    installation.require_seams(config.traced)


@contextmanager
def _one_sentence(is_command_line: bool) -> Iterator[None]:
    """Lets a refusal end a command line in one sentence; elsewhere it is raised."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        if is_command_line:
            sys.exit(f"error: {error}")
        raise


SEAMS = ()
