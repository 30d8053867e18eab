"""`sglang.srt.mem_cache.kv_cache_configurator`: our pool, and the memory of its eviction state.

Why: the pool owns what the slots hold, and the state of the request slots must fit beside it. How:
SGLang picks the pool's class itself; we put a subclass in its place, and take the state off the
budget from which it sizes the pool. Remove when: the class can be chosen, and can say what it needs
for each request.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sglang.srt.mem_cache.memory_pool import KVCache, MHATokenToKVPool
from sglang.srt.plugins.hook_registry import HookType
from sglang.srt.runtime_context import get_parallel, get_schedule

from raas_patches.active import attach_request_slots, request_slots_of, required_config
from raas_patches.seam import Seam
from raas_sglang.pool import RaasTokenToKVPool, require_pool
from raas_sglang.request_slots import reserve_slots
from raas_sglang.state import EvictionState, StateShape
from raas_sglang.support.models import kv_scales, require_model

if TYPE_CHECKING:
    from sglang.srt.mem_cache.kv_cache_configurator import KVCacheConfigurator
    from sglang.srt.model_executor.pool_configurator import MemoryPoolConfig


def config_from_budget(
    original: Callable[..., "MemoryPoolConfig"],
    self: "KVCacheConfigurator",
    budget_bytes: int,
    *,
    cap_tokens: int | None = None,
) -> "MemoryPoolConfig":
    """Around `config_from_budget`: the eviction state comes off the memory of the pool."""
    config, shape = required_config(self.server_args), _shape(self)
    budget_bytes -= EvictionState.scratch_bytes(config, shape, self.device)
    slots = reserve_slots(config, shape, budget_bytes, _max_num_reqs(self), _most_with_states(self))
    attach_request_slots(self.server_args, slots.requests)
    return original(self, budget_bytes - slots.state_bytes, cap_tokens=cap_tokens)


def resolve_max_num_reqs(
    max_num_reqs: int, self: "KVCacheConfigurator", token_capacity: int
) -> int:
    """After `resolve_max_num_reqs`: no more requests than there is eviction state for."""
    return min(max_num_reqs, request_slots_of(self.server_args))


def resolve_kv_pool_class(resolved: type, self: "KVCacheConfigurator", **_: Any) -> type:
    """After `_resolve_kv_pool_class`: the plain pool becomes ours, any other stays.

    It may be a part of another, as where a model has linear attention too.
    """
    return RaasTokenToKVPool if resolved is MHATokenToKVPool else resolved


def build_token_to_kv_pool(
    pool: KVCache, self: "KVCacheConfigurator", *, req_to_token_pool: Any, **_: Any
) -> KVCache:
    """After `_build_token_to_kv_pool`: gives the pool its eviction state, or ends the process."""
    require_model(self.model, pool)
    ours, shape = require_pool(pool), _shape(self)
    # Ranks may share a KV head, where there are more of them.
    ranks, heads = get_parallel(), self.model_config.get_total_num_kv_heads()
    head_offset = ranks.attn_tp_rank * heads // ranks.attn_tp_size
    config, scales = required_config(self.server_args), kv_scales(self.model, ours)
    ours.attach(config, req_to_token_pool, shape, head_offset, self.forward_stream, scales)
    return pool


def _shape(self: "KVCacheConfigurator") -> StateShape:
    ranks, layers = get_parallel().attn_tp_size, self.layer_info.num_effective_layers
    if self.mambaish_config is not None:
        layers = len(self.mambaish_config.full_attention_layer_ids)
    if not layers:
        raise RuntimeError(
            "--kv-policy must run on a model with keys and values, got "
            f"{type(self.model).__name__} without any; remove --kv-policy for this model"
        )
    return StateShape(
        layers=layers,
        heads=self.model_config.get_num_kv_heads(ranks),
        query_heads=self.model_config.get_num_attention_heads(ranks),
        head_dim=self.model_config.head_dim,
        dtype=self.kv_cache_dtype,
        query_dtype=self.model_config.dtype,
    )


def _max_num_reqs(self: "KVCacheConfigurator") -> int | None:
    """What the user asked for on this rank, or None."""
    asked = get_schedule().max_running_requests
    return None if asked is None else max(1, asked // self.attn_dp_size)


def _most_with_states(self: "KVCacheConfigurator") -> int | None:
    """For how many there are states of linear attention, which SGLang has sized before."""
    if self.mambaish_config is None:
        return None
    states: int = get_schedule().max_mamba_cache_size
    for_each: int = self._calculate_mamba_ratio()
    return states // for_each


_PATH = "sglang.srt.mem_cache.kv_cache_configurator.KVCacheConfigurator."
_SIZES = "SGLang lets a pool say what it needs for each request"
SEAMS = (
    Seam(
        _PATH + "config_from_budget",
        HookType.AROUND,
        config_from_budget,
        ("self", "budget_bytes", "cap_tokens"),
        "counts the eviction state in the sizing of the pool",
        _SIZES,
        "tests/server/test_budget.py::test_resident_length_stops_at_the_budget",
    ),
    Seam(
        _PATH + "resolve_max_num_reqs",
        HookType.AFTER,
        resolve_max_num_reqs,
        ("self", "token_capacity"),
        "bounds the request slots, and with them the eviction state",
        _SIZES,
        "tests/unit/test_request_slots.py::test_what_was_asked_for_is_sized_for_or_refused",
    ),
    Seam(
        _PATH + "_resolve_kv_pool_class",
        HookType.AFTER,
        resolve_kv_pool_class,
        ("self", "kind", "default"),
        "puts our subclass where SGLang picks the class of its KV pool",
        "SGLang lets the pool's class be chosen",
        "tests/server/test_budget.py::test_resident_length_stops_at_the_budget",
    ),
    Seam(
        _PATH + "_build_token_to_kv_pool",
        HookType.AFTER,
        build_token_to_kv_pool,
        ("self", "sizes", "is_dsa_model", "is_dsv4_model", "req_to_token_pool"),
        "allocates the eviction state for the request slots",
        "SGLang lets the pool's class be chosen",
        "tests/server/test_budget.py::test_resident_length_stops_at_the_budget",
    ),
)
