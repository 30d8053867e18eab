"""`sglang.srt.managers.tp_worker`: samples for `--kv-trace-endpoint`; not hooked without it.

Why: the eviction state is on the device, and only between two steps it is of one step. How: the
worker has the pool and is called on the stream of the forward pass; `output_streamer` tells the
ends of requests. Remove when: SGLang lets plugins see the end of a step.
"""

from typing import TYPE_CHECKING, Any

from sglang.srt.plugins.hook_registry import HookType
from sglang.srt.runtime_context import get_parallel

from raas_patches.active import required_config
from raas_patches.seam import Seam
from raas_sglang.pool import require_pool
from raas_sglang.trace.publisher import TracePublisher
from raas_sglang.trace.sampler import TokenSampler, TracedRequest

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import ScheduleBatch
    from sglang.srt.managers.tp_worker import TpModelWorker


def alloc_memory_pool(_: None, self: "TpModelWorker", *args: Any, **kwargs: Any) -> None:
    """After `alloc_memory_pool`: opens the stream, or ends the process.

    Every rank has KV heads of its own, so every rank publishes.
    """
    config = required_config(self.server_args)
    assert config.kv_trace_endpoint is not None, "hooked only where a trace was asked for"
    ranks = get_parallel()
    replica = ranks.dp_rank or 0
    offset = replica * ranks.tp_size + ranks.tp_rank
    pool = require_pool(self.model_runner.token_to_kv_pool)
    buffers = pool.state.buffers
    endpoint = endpoint_of_rank(config.kv_trace_endpoint, offset)
    publisher = TracePublisher(endpoint, buffers.births.nbytes + buffers.weights.nbytes)
    pool.token_sampler = TokenSampler(buffers, config, publisher, replica, ranks.tp_rank)


def endpoint_of_rank(endpoint: str, offset: int) -> str:
    """The endpoint with its port moved on by the number of ranks before this one."""
    address, _, port = endpoint.rpartition(":")
    return f"{address}:{int(port) + offset}"


def forward_batch_generation(
    _: Any, self: "TpModelWorker", batch: "ScheduleBatch | None", *args: Any, **kwargs: Any
) -> None:
    """After `forward_batch_generation`, on its stream: samples a decode step now and then."""
    sampler = require_pool(self.model_runner.token_to_kv_pool).token_sampler
    assert sampler is not None, "hooked only where a trace was asked for"
    if batch is not None and batch.forward_mode.is_decode() and sampler.is_due():
        requests = [
            TracedRequest(req.rid, req.raas, req.origin_input_ids, req.output_ids)
            for req in batch.reqs
        ]
        sampler.sample(batch.req_pool_indices, requests)


_PATH = "sglang.srt.managers.tp_worker.TpModelWorker."
_UNTIL = "SGLang lets plugins see the end of a step"
SEAMS = (
    Seam(
        _PATH + "alloc_memory_pool",
        HookType.AFTER,
        alloc_memory_pool,
        (
            "self",
            "memory_pool_config",
            "req_to_token_pool",
            "token_to_kv_pool_allocator",
            "draft_parallel_layout",
        ),
        "opens the trace stream where one was asked for",
        _UNTIL,
        "tests/server/test_observability.py::test_the_trace_shows_the_steps_that_the_answers_report",
    ),
    Seam(
        _PATH + "forward_batch_generation",
        HookType.AFTER,
        forward_batch_generation,
        (
            "self",
            "batch",
            "forward_batch",
            "pp_proxy_tensors",
            "is_verify",
            "skip_attn_backend_init",
            "capture_hidden_mode",
            "return_kv_loc_plan",
        ),
        "samples token tables where a trace was asked for",
        _UNTIL,
        "tests/server/test_observability.py::test_the_trace_shows_the_steps_that_the_answers_report",
    ),
)
