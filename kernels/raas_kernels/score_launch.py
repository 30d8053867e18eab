"""How `score_tokens` is launched: as many programs are to fit on a multiprocessor as there are."""

import torch

# Slots come two tiles ahead and their keys one; with fewer stages keys would be waited for.
STAGES = 5
# Stages of keys of which no more fit into shared memory, by the bytes of a key.
_LARGE_KEY, _LARGE_STAGES = 256, 4  # where a program has less than `_ROOMY`
_WIDE_KEY, _WIDE_STAGES = 512, 2
_ROOMY = 112 * 1024  # bytes of shared memory; GPUs for data centres have more, others 99 KiB
# Of a thread that multiplies float8. It would take more, and fewer programs than there are fit.
REGISTERS = 168
_MANY_TOKENS = 8192  # for which a program has more warps


def launch_options(cache: torch.Tensor, block_tokens: int) -> dict[str, int]:
    """Triton's options of a launch.

    Args:
        cache: [S, H, D] keys of a layer.
        block_tokens: Tokens of the largest budget, rounded up to a power of two.
    """
    warps = 4 if block_tokens <= _MANY_TOKENS else 8
    options = {"num_warps": warps, "num_stages": _stages(cache)}
    if cache.is_cuda and cache.element_size() == 1 and warps == 4:
        options["maxnreg"] = REGISTERS
    return options


def _stages(cache: torch.Tensor) -> int:
    key = cache.shape[2] * cache.element_size()
    if key > _WIDE_KEY:
        return _WIDE_STAGES
    if key > _LARGE_KEY and cache.is_cuda:
        properties = torch.cuda.get_device_properties(cache.device)
        if properties.shared_memory_per_block_optin < _ROOMY:  # type: ignore[attr-defined]
            return _LARGE_STAGES
    return STAGES
