"""The GPU's decode backend for `--kv-score exact`: FlashInfer also gives the probabilities."""

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from raas_sglang.attention.flashinfer import RaasFlashInferAttnBackend
from raas_sglang.attention.logits import LogitsDecodeWrapper, compile_logits_module

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.model_executor.model_runner import ModelRunner


class RaasFlashInferExactAttnBackend(RaasFlashInferAttnBackend):
    """Decode whose attention kernel leaves its logits behind, from which the pages are scored.

    Args:
        model_runner: SGLang's model runner.
        **kwargs: As of `FlashInferAttnBackend`.

    Raises:
        RuntimeError: the attention kernel cannot be compiled.
    """

    def __init__(self, model_runner: "ModelRunner", **kwargs: Any) -> None:
        super().__init__(model_runner, **kwargs)
        self._module = compile_logits_module(
            model_runner.dtype, self.pool.head_dim, self.decode_use_tensor_cores
        )
        self.decode_wrappers = [LogitsDecodeWrapper(self.workspace_buffer, self._module)]

    def _create_decode_wrappers(self, bs: int, num_tokens: int) -> list[Any]:
        wrapper = LogitsDecodeWrapper(
            self.workspace_buffer,
            self._module,
            use_cuda_graph=True,
            paged_kv_indptr_buffer=self.kv_indptr[0][: num_tokens + 1],
            paged_kv_indices_buffer=self.cuda_graph_kv_indices[0],
            paged_kv_last_page_len_buffer=self.kv_last_page_len[:num_tokens],
        )
        return [self._share_plan(wrapper)]

    def _run(self, q: torch.Tensor, layer: "RadixAttention", **kwargs: Any) -> torch.Tensor:
        if layer.logit_cap:
            raise RuntimeError(
                f"--kv-score exact must have uncapped logits, got logit_cap {layer.logit_cap}; "
                "use --kv-score bound for this model"
            )
        logits = self.pool.state.logits
        assert logits is not None, "allocated with --kv-score exact"
        wrapper = self.forward_metadata.decode_wrappers[0]
        out: torch.Tensor = wrapper.run_with_logits(
            q,
            self.pool.get_kv_buffer(layer.layer_id),
            layer.scaling,
            self.rows.requests,
            logits,
        )
        # Beside the projections that follow; the next layer's attention overwrites the logits.
        self.side.run(partial(self.pool.score_logits, layer, self.rows))
        return out
