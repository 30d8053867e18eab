"""`sglang.srt.mem_cache.kv_cache_configurator`: our pool in place of `MHATokenToKVPool`.

Why: the pool owns what the slots hold. How: SGLang picks the pool's class itself; we pass a
subclass to the builder that it would have called anyway. Remove when: the class can be chosen.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sglang.srt.mem_cache.memory_pool import KVCache, MHATokenToKVPool
from sglang.srt.plugins.hook_registry import HookType
from sglang.srt.runtime_context import get_parallel

from raas_patches.active import config_of
from raas_patches.seam import Seam
from raas_sglang.pool import RaasTokenToKVPool

if TYPE_CHECKING:
    from sglang.srt.mem_cache.kv_cache_configurator import KVCacheConfigurator


def build_mha_kv_pool(
    original: Callable[..., KVCache],
    self: "KVCacheConfigurator",
    *,
    max_total_num_tokens: int,
    mha_pool_class: type,
    quant_method: Any = None,
) -> KVCache:
    """Around `_build_mha_kv_pool`: the plain pool becomes ours, any other stays."""
    if mha_pool_class is MHATokenToKVPool:
        mha_pool_class = RaasTokenToKVPool
    return original(
        self,
        max_total_num_tokens=max_total_num_tokens,
        mha_pool_class=mha_pool_class,
        quant_method=quant_method,
    )


def build_token_to_kv_pool(
    pool: KVCache, self: "KVCacheConfigurator", *, req_to_token_pool: Any, **_: Any
) -> KVCache:
    """After `_build_token_to_kv_pool`: gives the pool its eviction state, or ends the process."""
    config = config_of(self.server_args)
    assert config is not None, "hooked only where a policy was asked for"
    if type(pool) is not RaasTokenToKVPool:
        raise RuntimeError(
            f"--kv-policy must run on a plain MHA KV cache, got {type(pool).__name__}; "
            "MLA, sliding-window, linear-attention and quantised caches are not supported: "
            "remove --kv-policy for this model"
        )
    heads = self.model_config.get_num_kv_heads(get_parallel().attn_tp_size)
    pool.attach(config, req_to_token_pool, get_parallel().attn_tp_rank * heads)
    return pool


_PATH = "sglang.srt.mem_cache.kv_cache_configurator.KVCacheConfigurator."
SEAMS = (
    Seam(
        _PATH + "_build_mha_kv_pool",
        HookType.AROUND,
        build_mha_kv_pool,
        ("self", "max_total_num_tokens", "mha_pool_class", "quant_method"),
        "puts our subclass where SGLang builds its KV pool",
        "SGLang lets the pool's class be chosen",
    ),
    Seam(
        _PATH + "_build_token_to_kv_pool",
        HookType.AFTER,
        build_token_to_kv_pool,
        ("self", "sizes", "is_dsa_model", "is_dsv4_model", "req_to_token_pool"),
        "sizes the eviction state by the request slots",
        "SGLang lets the pool's class be chosen",
    ),
)
