"""What is active in this process: the server's settings, once a scheduler or server has them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sglang.srt.plugins import load_plugins

from raas_sglang.config import RaasConfig

if TYPE_CHECKING:
    from sglang.srt.managers.tokenizer_manager import TokenizerManager
    from sglang.srt.server_args import ServerArgs

_ATTRIBUTE = "raas_config"
_SLOTS = "raas_request_slots"
_POOL = "raas_pool_tokens"


@dataclass(frozen=True)
class Attached:
    """The settings on SGLang's arguments; they bring the plugin to each process that gets them.

    Without it such a process would serve every request dense, or lose the settings when it copies
    the arguments field by field.
    """

    config: RaasConfig

    def __reduce__(self) -> tuple[Any, ...]:
        return arrive, (self.config,)


def arrive(config: RaasConfig) -> Attached:
    """Loads the plugins where arguments with a policy arrive from another process.

    Raises:
        RuntimeError: the plugin is not among them.
    """
    from raas_patches.installation import ALWAYS, seams

    load_plugins()
    if not all(seam.is_installed() for seam in seams(ALWAYS)):
        raise RuntimeError(
            f"--kv-policy {config.kv_policy} must run in every process that gets the server's "
            "arguments, this one did not load the plugin; start all processes in one environment, "
            "with one SGLANG_PLUGINS"
        )
    return Attached(config)


def attach_config(server_args: "ServerArgs", config: RaasConfig) -> None:
    """Stores the settings on SGLang's arguments, which travel to every process.

    `ServerArgs` is read-only once resolved.
    """
    object.__setattr__(server_args, _ATTRIBUTE, Attached(config))


def config_of(server_args: "ServerArgs") -> RaasConfig | None:
    """Returns the settings, or None if the server was started without ``--kv-policy``."""
    attached: Attached | None = getattr(server_args, _ATTRIBUTE, None)
    return None if attached is None else attached.config


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


def attach_pool_tokens(tokenizer_manager: "TokenizerManager", tokens: int) -> None:
    """Stores how many tokens the pool of a scheduler holds, once it is ready."""
    setattr(tokenizer_manager, _POOL, tokens)


def pool_tokens_of(tokenizer_manager: "TokenizerManager") -> int:
    """Returns how many tokens the pool of a scheduler holds."""
    tokens: int = getattr(tokenizer_manager, _POOL)
    return tokens
