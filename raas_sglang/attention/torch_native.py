"""The CPU engine's decode backend."""

from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend

from raas_kernels import DecodeBatch
from raas_sglang.attention.in_place import InPlaceDecode
from raas_sglang.attention.side_stream import SideStream

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch
    from sglang.srt.model_executor.model_runner import ModelRunner


class RaasTorchNativeAttnBackend(InPlaceDecode, TorchNativeAttnBackend):
    """SGLang's torch attention whose decode stores in place and reads resident slots only.

    Prefill is SGLang's.

    Args:
        model_runner: SGLang's model runner.
    """

    def __init__(self, model_runner: "ModelRunner") -> None:
        super().__init__(model_runner)
        self.side = SideStream(model_runner.device)

    def init_forward_metadata(self, forward_batch: "ForwardBatch") -> None:
        """Finds the slots of the rows in SGLang's own table."""
        super().init_forward_metadata(forward_batch)
        if not forward_batch.forward_mode.is_decode():
            return
        table = self.req_to_token_pool.req_to_token
        requests = forward_batch.req_pool_indices
        self.rows = DecodeBatch(
            req_pool_indices=requests,
            positions=forward_batch.positions,
            out_cache_loc=forward_batch.out_cache_loc,
            kv_indptr=requests.long() * table.shape[1],
            kv_indices=table.view(-1),
            requests=self.pool.state.rows(requests),
        )
        self._seen = self.with_resident_lens(forward_batch, self.resident_lens(forward_batch))
        self.claim_slots()

    def _attend(
        self, q: torch.Tensor, layer: "RadixAttention", forward_batch: "ForwardBatch", **kwargs: Any
    ) -> torch.Tensor:
        """SGLang's attention, which takes the lengths from the batch of each layer."""
        return super()._attend(q, layer, self._seen, **kwargs)
