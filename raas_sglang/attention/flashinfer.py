"""The GPU's decode backend, over FlashInfer's `BatchDecodeWithPagedKVCacheWrapper`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.layers.attention.flashinfer_backend import FlashInferAttnBackend
from sglang.srt.runtime_context import get_buffer, get_exec, get_parallel
from sglang.srt.utils import get_cuda_graph_max_batch_size

from raas_kernels import DecodeBatch, RequestTables
from raas_sglang.attention.in_place import InPlaceDecode
from raas_sglang.attention.side_stream import SideStream

_TILE_ROWS = 16
_BLOCKS_PER_MULTIPROCESSOR = 2  # FlashInfer's number, of decode on tensor cores
_WORKSPACE_MARGIN = 16 * 2**20  # bytes

if TYPE_CHECKING:
    from flashinfer.decode import BatchDecodeWithPagedKVCacheWrapper as Wrapper
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch
    from sglang.srt.model_executor.model_runner import ModelRunner


class RaasFlashInferAttnBackend(InPlaceDecode, FlashInferAttnBackend):
    """SGLang's FlashInfer attention whose decode stores in place and reads resident slots only.

    A replayed CUDA graph runs while the scheduler already writes to `req_to_token` and to the
    request tables for the next step, so slots are claimed in copies: FlashInfer's page table, and
    the tables of the rows beside it. Where no row changed since the last step, as when all are
    saturated, both copies and FlashInfer's plan are still right and nothing is done.

    Args:
        model_runner: SGLang's model runner.
        **kwargs: As of `FlashInferAttnBackend`.
    """

    decode_wrappers: list["Wrapper"]

    def __init__(self, model_runner: "ModelRunner", **kwargs: Any) -> None:
        is_deterministic = get_exec().deterministic.enable_deterministic_inference
        if kwargs.get("skip_prefill") and not is_deterministic:
            get_buffer("flashinfer_workspace", lambda: _decode_workspace(model_runner))
        super().__init__(model_runner, **kwargs)
        self._planned: tuple[int, int, list[int]] | None = None
        self._rows_without_split = _rows_without_split(self.pool.head_num, model_runner.device)
        self._plan_read = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self.side = SideStream(model_runner.device)
        model_runner.capture_tail_hooks.append(lambda *_: self.side.join())

    def init_forward_metadata(self, forward_batch: "ForwardBatch") -> None:
        """Plans a forward pass that runs without a CUDA graph."""
        self._planned = None  # it overwrites the buffers of the graphs
        is_decode, seen = forward_batch.forward_mode.is_decode(), forward_batch
        if is_decode:
            seen = self.with_resident_lens(forward_batch, self.resident_lens(forward_batch))
        with self._plan():
            super().init_forward_metadata(seen)
        if is_decode:
            requests = self.pool.state.rows(forward_batch.req_pool_indices)
            self.rows = self._rows(forward_batch, self.decode_wrappers[0], requests)
            self.claim_slots()

    def init_cuda_graph_state(self, max_bs: int, *args: Any, **kwargs: Any) -> None:
        """Allocates what the graphs of all batch sizes share."""
        super().init_cuda_graph_state(max_bs, *args, **kwargs)
        size = len(RequestTables.declared()) * max_bs
        self._graph_tables = torch.zeros(size, dtype=torch.int32, device=self.pool.device)

    def init_forward_metadata_out_graph(
        self, forward_batch: "ForwardBatch", in_capture: bool = False
    ) -> None:
        """Plans a step that is captured or replayed, unless the last plan of decode still holds."""
        if not forward_batch.forward_mode.is_decode_or_idle():
            self._planned = None
            super().init_forward_metadata_out_graph(forward_batch, in_capture=in_capture)
            return
        batch_size, lens = forward_batch.batch_size, self.resident_lens(forward_batch)
        plan = (batch_size, self.pool.state.epoch, lens.tolist())
        if plan == self._planned and not in_capture:
            return
        self._planned = plan
        # SGLang passes this attribute on to FlashInfer when it plans for a graph.
        self.disable_cuda_graph_kv_split = self._is_unsplit(batch_size)
        seen = self.with_resident_lens(forward_batch, lens)
        with self._plan():
            super().init_forward_metadata_out_graph(seen, in_capture=in_capture)
        fields = len(RequestTables.declared())
        tables = self._graph_tables[: fields * batch_size].view(fields, batch_size)
        requests = self.pool.state.rows(forward_batch.req_pool_indices[:batch_size], out=tables)
        if in_capture:
            wrapper = self.decode_cuda_graph_metadata[batch_size][0]
            self.rows = self._rows(forward_batch, wrapper, requests)

    def init_forward_metadata_in_graph(self, forward_batch: "ForwardBatch") -> None:
        """Begins a decode step within the graph, beside the embedding and the first projections."""
        super().init_forward_metadata_in_graph(forward_batch)
        self.claim_slots()

    def _attend(
        self, q: torch.Tensor, layer: "RadixAttention", forward_batch: "ForwardBatch", **kwargs: Any
    ) -> torch.Tensor:
        """SGLang's decode attention without its copy of the queries.

        FlashInfer reads them where the projection left them. The copy would not only take its time
        but stand between the store and attention, which else is launched while the store ends.
        """
        out = self._run(q.view(-1, layer.tp_q_head_num, layer.head_dim), layer, **kwargs)
        return out.view(-1, layer.tp_q_head_num * layer.head_dim)

    def _run(self, q: torch.Tensor, layer: "RadixAttention", **kwargs: Any) -> torch.Tensor:
        """FlashInfer's attention of one layer; queries and output are [B, Hq, D]."""
        out: torch.Tensor = self.forward_metadata.decode_wrappers[0].forward(
            q,
            self.token_to_kv_pool.get_kv_buffer(layer.layer_id),
            sm_scale=layer.scaling,
            logits_soft_cap=layer.logit_cap,
            k_scale=layer.k_scale_float,
            v_scale=layer.v_scale_float,
            **kwargs,
        )
        return out

    def _is_unsplit(self, batch_size: int) -> bool:
        """Whether graphs of a batch size split no row: where none would be, or none may be.

        A plan for a graph always goes through FlashInfer's split of rows, since later plans may
        need it: partial outputs in float32, and a merge after each layer. From so many rows on that
        the GPU is full without it, it splits no row whatever the lengths, and all that is left of
        it is its cost.
        """
        enough = self.enable_deterministic or batch_size >= self._rows_without_split
        return bool(self.decode_use_tensor_cores and enough)

    @contextmanager
    def _plan(self) -> Iterator[None]:
        """Lets FlashInfer write a plan only once the GPU has read the one before.

        It is copied from pinned memory while the host goes on. A GPU that others use as well may
        not have come to the copy of one step when the host plans the next, of other rows.
        """
        if not self._plan_read.query():  # type: ignore[no-untyped-call]
            self._plan_read.synchronize()
        yield
        self._plan_read.record()

    def _create_decode_wrappers(self, bs: int, num_tokens: int) -> list["Wrapper"]:
        """Wrappers of one batch size; all plan into one buffer, since one plan is in use at a time.

        FlashInfer would take 8 MiB for each of them.
        """
        return [self._share_plan(w) for w in super()._create_decode_wrappers(bs, num_tokens)]

    def _share_plan(self, wrapper: "Wrapper") -> "Wrapper":
        shared = self.decode_wrappers[0]._int_workspace_buffer
        wrapper.reset_workspace_buffer(self.workspace_buffer, shared)
        return wrapper

    def _rows(
        self, forward_batch: "ForwardBatch", wrapper: "Wrapper", requests: RequestTables
    ) -> DecodeBatch:
        return DecodeBatch(
            req_pool_indices=forward_batch.req_pool_indices,
            positions=forward_batch.positions,
            out_cache_loc=forward_batch.out_cache_loc,
            kv_indptr=self.kv_indptr[0],
            kv_indices=wrapper._paged_kv_indices_buf,
            requests=requests,
        )


def _rows_without_split(kv_heads: int, device: torch.device | str) -> int:
    """Rows of a batch from which on FlashInfer splits none, on tensor cores.

    Args:
        kv_heads: KV heads on this rank; each row has a block for each.
        device: A GPU.
    """
    multiprocessors: int = torch.cuda.get_device_properties(device).multi_processor_count
    return _BLOCKS_PER_MULTIPROCESSOR * multiprocessors // kv_heads


def _decode_workspace(model_runner: "ModelRunner") -> torch.Tensor:
    """FlashInfer's workspace, as large as decode needs it; SGLang's size is for prefill.

    Split KV keeps a float32 output of at most 16 query rows for each query head and planned block,
    of which there are two for each multiprocessor, or in a CUDA graph more than one for each row.
    FlashInfer refuses to plan in less than it needs.
    """
    config, ranks = model_runner.model_config, get_parallel().attn_tp_size
    heads, kv_heads = config.get_num_attention_heads(ranks), config.get_num_kv_heads(ranks)
    properties = torch.cuda.get_device_properties(model_runner.device)
    rows = get_cuda_graph_max_batch_size(model_runner.req_to_token_pool.size)
    tiles = rows + -(-rows * (heads // kv_heads) // _TILE_ROWS)
    blocks = max(_BLOCKS_PER_MULTIPROCESSOR * properties.multi_processor_count // kv_heads, tiles)
    size = heads * blocks * _TILE_ROWS * (config.head_dim + 1) * torch.float32.itemsize
    return torch.empty(size + _WORKSPACE_MARGIN, dtype=torch.uint8, device=model_runner.device)
