"""FlashInfer decode attention that also leaves the logits of the budget's tokens behind.

The probabilities that ``--kv-score exact`` needs exist only inside the attention kernel, so a
FlashInfer attention variant writes q·k of every generated token next to the output; with the
log-sum-exp of the row `raas_kernels.exact_scores` turns them into page scores. The variant is
compiled on first use into FlashInfer's own cache (``FLASHINFER_WORKSPACE_BASE``, the home
directory by default), under a file lock, so that several ranks build it once.
"""

import functools
import hashlib
from typing import Any, NamedTuple

import torch
from flashinfer.decode import (
    BatchDecodeWithPagedKVCacheWrapper,
    get_batch_decode_jit_module,
    get_batch_prefill_jit_module,
)
from flashinfer.jit import gen_customize_batch_decode_module, gen_customize_batch_prefill_module

from raas_kernels import RequestTables
from raas_kernels.exact_scores import AttentionLogits

_TENSORS = {"logits": "float", "policies": "int32_t", "prompt_lens": "int32_t"}
_SCALARS = {"budget_tokens": "int64_t", "sm_scale": "double"}

# On CUDA cores all threads of a head hold the same logit and one of them writes it; on tensor cores
# each thread holds its own, some of which belong to no query: the rows that pad a group to 16.
_WRITER = {False: "threadIdx.x == 0", True: "qo_idx < qo_len"}

# A tile may reach beyond its chunk of a split row. What it holds there is not the key that the
# index names, so only tokens before `chunk_end` are written: each by the one chunk that owns it.
_VARIANT = r"""
struct BudgetLogits : AttentionVariantBase {
  static constexpr bool use_softmax = true;

  uint32_t qo_len, kv_len, window_left, first_token, num_tokens;
  float sm_scale_log2;
  float* row;

  template <typename Params>
  __device__ BudgetLogits(const Params& params, uint32_t batch_idx, uint8_t* smem_ptr) {
    qo_len = params.get_qo_len(batch_idx);
    kv_len = params.get_kv_len(batch_idx);
    window_left = kv_len;
    sm_scale_log2 = params.sm_scale * math::log2e;
    uint32_t chunk_end = kv_len;
    if (params.partition_kv) {
      const uint32_t chunks = params.kv_tile_indices[blockIdx.x] + 1;
      chunk_end = min(chunks * uint32_t(*params.kv_chunk_size_ptr), kv_len);
    }
    first_token = params.prompt_lens[batch_idx];
    num_tokens = 0;
    if (params.policies[batch_idx] != 0 && first_token < chunk_end) {
      num_tokens = min(chunk_end - first_token, uint32_t(params.budget_tokens));
    }
    row = params.logits + size_t(batch_idx) * params.num_qo_heads * params.budget_tokens;
  }

  REGISTER_LOGITS_TRANSFORM(params, logits, batch_idx, qo_idx, kv_idx, qo_head_idx, kv_head_idx, {
    if (kv_idx - first_token < num_tokens && WRITER) {
      row[size_t(qo_head_idx) * params.budget_tokens + (kv_idx - first_token)] = logits;
    }
    return logits;
  })
};
"""


class LogitsModule(NamedTuple):
    """The compiled variant for one head size and dtype.

    Attributes:
        use_tensor_cores: Which of FlashInfer's two decode kernels it is built from.
        functions: FlashInfer's ``plan`` and ``run`` of the module.
    """

    use_tensor_cores: bool
    functions: Any


@functools.cache
def compile_logits_module(
    dtype: torch.dtype, head_dim: int, use_tensor_cores: bool
) -> LogitsModule:
    """Compiles the variant, or loads it if this machine has compiled it before.

    Takes about a minute the first time. Call it once per process, before CUDA graphs are captured.

    Args:
        dtype: Of queries, keys, values and output: bfloat16 or float16.
        head_dim: D, 64, 128 or 256.
        use_tensor_cores: As of ``BatchDecodeWithPagedKVCacheWrapper``.

    Raises:
        RuntimeError: the compiler is missing or fails.
    """
    variant = _VARIANT.replace("WRITER", _WRITER[use_tensor_cores])
    digest = hashlib.sha256(variant.encode()).hexdigest()[:8]
    cores = "tensor" if use_tensor_cores else "cuda"
    name = f"raas_{cores}_{str(dtype).removeprefix('torch.')}_d{head_dim}_{digest}"
    jit_args = (
        name,
        *(dtype, dtype, dtype, torch.int32),
        *(head_dim, head_dim),
        *(list(_TENSORS), list(_TENSORS.values())),
        *(list(_SCALARS), list(_SCALARS.values())),
        *("BudgetLogits", variant),
    )
    try:
        if use_tensor_cores:
            built = gen_customize_batch_prefill_module("fa2", *jit_args).build_and_load()
            return LogitsModule(True, get_batch_prefill_jit_module(name, built))
        built = gen_customize_batch_decode_module(*jit_args).build_and_load()
        return LogitsModule(False, get_batch_decode_jit_module(name, built))
    except (RuntimeError, OSError) as error:
        raise RuntimeError(
            "--kv-score exact must compile FlashInfer's attention with nvcc, ninja and a C++ "
            f"compiler, got {str(error).splitlines()[0]!r} (more above); install the CUDA toolkit "
            "that PyTorch was built with and set CUDA_HOME, or use --kv-score bound"
        ) from error


class LogitsDecodeWrapper(BatchDecodeWithPagedKVCacheWrapper):
    """FlashInfer's paged decode whose kernel is a `LogitsModule`; planned as any other.

    The module is handed over, not built: ``jit_args`` would ask the compiler again for each of the
    wrappers that SGLang makes, one per CUDA graph.

    Args:
        workspace: FlashInfer's workspace buffer.
        module: From `compile_logits_module`.
        **kwargs: CUDA-graph buffers and the like, as of the base class.
    """

    def __init__(self, workspace: torch.Tensor, module: LogitsModule, **kwargs: Any) -> None:
        super().__init__(
            workspace, "NHD", backend="fa2", use_tensor_cores=module.use_tensor_cores, **kwargs
        )
        self._jit_module = module.functions
        self._jit_additional_tensor_names = list(_TENSORS)

    def run_with_logits(
        self,
        q: torch.Tensor,
        kv_cache: tuple[torch.Tensor, torch.Tensor],
        scaling: float,
        requests: RequestTables,
        logits: AttentionLogits,
    ) -> torch.Tensor:
        """Runs the attention of one layer and fills ``logits``; CUDA-graph safe.

        Args:
            q: [B, Hq, D] queries after RoPE, contiguous in the last dimension.
            kv_cache: Keys and values, each [S, H, D] or [S, 1, H, D].
            scaling: Factor on q·k before the softmax.
            requests: Tables of the rows, [B] int32.
            logits: Written for evicting rows; of other rows only the log-sum-exp is.

        Returns:
            [B, Hq, D].
        """
        out: torch.Tensor
        out, _ = self.run(
            q,
            kv_cache,
            logits.logits,
            requests.policies,
            requests.prompt_lens,
            logits.logits.shape[2],
            scaling,
            return_lse=True,
            lse=logits.lse[: q.shape[0]],
        )
        return out
