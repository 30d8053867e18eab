"""What is active in this process: the server's settings, once a scheduler or server has them."""

from typing import TYPE_CHECKING

from raas_sglang.config import RaasConfig

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs

_ATTRIBUTE = "raas_config"
_SLOTS = "raas_request_slots"


def attach_config(server_args: "ServerArgs", config: RaasConfig | None) -> None:
    """Stores the settings on SGLang's arguments, which travel to every process.

    `ServerArgs` is read-only once resolved, and the settings are not a field of it.
    """
    object.__setattr__(server_args, _ATTRIBUTE, config)


def config_of(server_args: "ServerArgs") -> RaasConfig | None:
    """Returns the settings, or None if the server was started without ``--kv-policy``."""
    return getattr(server_args, _ATTRIBUTE, None)


def required_config(server_args: "ServerArgs") -> RaasConfig:
    """Returns the settings in what is only installed where a policy was asked for."""
    config = config_of(server_args)
    assert config is not None, "installed only where a policy was asked for"
    return config


def attach_request_slots(server_args: "ServerArgs", slots: int) -> None:
    """Stores for how many requests this process sized its eviction state."""
    object.__setattr__(server_args, _SLOTS, slots)


def request_slots_of(server_args: "ServerArgs") -> int:
    """Returns for how many requests this process sized its eviction state."""
    slots: int = getattr(server_args, _SLOTS)
    return slots
