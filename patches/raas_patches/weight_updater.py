"""`sglang.srt.model_executor.model_runner_components.weight_updater`: other scales of a KV cache.

Why: keys and values are divided by the scales that the server was started with, also in decode
graphs. How: an update that brings others is answered as one that failed. Remove when: SGLang
refuses it, whose own graphs keep the old ones as well.
"""

from typing import TYPE_CHECKING, Any

from sglang.srt.plugins.hook_registry import HookType

from raas_patches.seam import Seam
from raas_sglang.pool import require_pool
from raas_sglang.support.models import kv_scales

if TYPE_CHECKING:
    from sglang.srt.model_executor.model_runner_components.weight_updater import WeightUpdater


def update_weights_from_disk(
    result: tuple[bool, str], self: "WeightUpdater", *args: Any, **kwargs: Any
) -> tuple[bool, str]:
    """After it: says so if decode would go on with the old scales."""
    if not result[0]:
        return result
    pool = require_pool(self.get_model_runner().token_to_kv_pool)
    try:
        scales = kv_scales(self.get_model(), pool)
    except RuntimeError as error:
        return False, f"The weights are loaded, but {error}"
    if scales == pool.scales:
        return result
    return False, (
        "The weights are loaded, but their KV cache must have the scales that the server was "
        "started with, got others, and answers are wrong from now on; start the server with the "
        "new weights"
    )


SEAMS = (
    Seam(
        "sglang.srt.model_executor.model_runner_components.weight_updater.WeightUpdater."
        "update_weights_from_disk",
        HookType.AFTER,
        update_weights_from_disk,
        ("self", "model_path", "load_format", "weight_name_filter", "recapture_cuda_graph"),
        "says so if new weights have other scales of the KV cache",
        "SGLang refuses such an update",
        "tests/unit/test_model_support.py::test_weights_with_other_scales_are_an_update_that_failed",
    ),
)
