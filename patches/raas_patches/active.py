"""What is active in this process: the server's settings, once a scheduler or server has them."""

from dataclasses import fields
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from sglang.srt.plugins import load_plugins

from raas_sglang.config import RaasConfig, take_settings

if TYPE_CHECKING:
    from sglang.srt.managers.tokenizer_manager import TokenizerManager
    from sglang.srt.server_args import ServerArgs

_SETTINGS = tuple(item.name for item in fields(RaasConfig))
_SLOTS = "_raas_request_slots"
_POOL = "raas_pool_tokens"


def arrive(values: dict[str, Any], notes: dict[str, Any]) -> "ServerArgs":
    """Rebuilds arguments with a policy that arrive from another process, and loads the plugins.

    Without ours such a process would serve every request dense.

    Args:
        values: The fields, ours among them.
        notes: What SGLang noted while it resolved them.

    Raises:
        RuntimeError: our plugin is not among those of this process.
    """
    from sglang.srt import server_args

    load_plugins()
    if not set(_SETTINGS) <= set(server_args.ServerArgs.__struct_fields__):
        raise RuntimeError(
            f"--kv-policy {values['kv_policy']} must run in every process that gets the server's "
            "arguments, this one did not load the plugin; start all processes in one environment, "
            "with one SGLANG_PLUGINS"
        )
    return server_args._rebuild_server_args(server_args.ServerArgs, values, notes)


def config_of(server_args: "ServerArgs") -> RaasConfig | None:
    """Returns the settings, or None if the server was started without ``--kv-policy``.

    Raises:
        ValueError: a setting is wrong, or one was given without ``kv_policy``.
    """
    return _config(tuple(getattr(server_args, name, None) for name in _SETTINGS))


@lru_cache
def _config(values: tuple[Any, ...]) -> RaasConfig | None:
    return take_settings(dict(zip(_SETTINGS, values, strict=True)))


def required_config(server_args: "ServerArgs") -> RaasConfig:
    """Returns the settings in what is only installed where a policy was asked for."""
    config = config_of(server_args)
    assert config is not None, "installed only where a policy was asked for"
    return config


def attach_request_slots(server_args: "ServerArgs", slots: int) -> None:
    """Notes for how many requests this process sized its eviction state."""
    setattr(server_args, _SLOTS, slots)


def request_slots_of(server_args: "ServerArgs") -> int:
    """Returns for how many requests this process sized its eviction state."""
    slots: int = getattr(server_args, _SLOTS)
    return slots


def attach_pool_tokens(tokenizer_manager: "TokenizerManager", tokens: int) -> None:
    """Stores how many tokens the pool of a scheduler holds, once it is ready."""
    setattr(tokenizer_manager, _POOL, tokens)


def pool_tokens_of(tokenizer_manager: "TokenizerManager") -> int:
    """Returns how many tokens the pool of a scheduler holds."""
    tokens: int = getattr(tokenizer_manager, _POOL)
    return tokens
