"""Functions that RaaS relies on without calling them: what calls a hook, and when.

A hook may still fit its target when the code around it has changed its meaning. Here that happened
before, or would do the most harm, so each of these functions has a fingerprint.
"""

from raas_patches.seam import Reliance

_SCHEDULER = "sglang.srt.managers.scheduler.Scheduler."
_BATCH = "sglang.srt.managers.schedule_batch."
_COMMON = "sglang.srt.mem_cache.common."
_RESULTS = (
    "sglang.srt.managers.scheduler_components.batch_result_processor.SchedulerBatchResultProcessor."
)
_CONTROLLER = "sglang.srt.managers.cache_controller.HiCacheController."
_GRAPHS = "sglang.srt.model_executor.runner.decode_cuda_graph_runner.DecodeCudaGraphRunner."
_UPDATER = "sglang.srt.layers.attention.flashinfer_backend.FlashInferIndicesUpdaterDecode."
_FLASHINFER = "flashinfer.decode.BatchDecodeWithPagedKVCacheWrapper."

WATCHED = (
    Reliance(
        _COMMON + "release_kv_cache",
        "refreshes the fill ids of a request that ends, shows the tree its committed length, and "
        "frees the rest of its slots",
    ),
    Reliance(
        _COMMON + "_release_overallocated_kv_indices",
        "asserts that a request without a stop has allocated what it has committed",
    ),
    Reliance(
        _COMMON + "checkpoint_kv_cache", "shows the tree what a running request has prefilled"
    ),
    Reliance(_BATCH + "Req.owned_kv_len", "says how far a request that ends may be shared"),
    Reliance(
        _BATCH + "Req.init_next_round_input",
        "refreshes the fill ids, then matches them with the tree",
    ),
    Reliance(_BATCH + "ScheduleBatch.prepare_for_extend", "allocates before a batch is prefilled"),
    Reliance(_BATCH + "ScheduleBatch.retract_decode", "gives up the last of the order, and resets"),
    Reliance(_BATCH + "release_req", "releases a retracted request and keeps it from the tree"),
    Reliance(
        _BATCH + "ScheduleBatch.check_decode_mem", "asks how many tokens the next step requires"
    ),
    Reliance(
        _SCHEDULER + "_reqs_finishing_inflight",
        "gives a request that ends by length no step beyond its last token",
    ),
    Reliance(_SCHEDULER + "update_running_batch", "retracts, then prepares the next decode step"),
    Reliance(
        _SCHEDULER + "_get_new_batch_prefill_raw",
        "makes the adder, offers it the queue, and puts preempted requests back",
    ),
    Reliance(
        _RESULTS + "_handle_finish_state_updated_req",
        "announces a request that ended in a decode step, while it still has its slots",
    ),
    Reliance(
        _RESULTS + "_prepare_kv_cache_release",
        "calls `prepare_for_kv_cache_release` of a worker that has one",
    ),
    Reliance(
        _CONTROLLER + "start_loading",
        "loads into slots once a step in flight has left them, which overwrites any of its row",
    ),
    Reliance(
        _CONTROLLER + "start_writing", "copies slots of the tree once the step that fills them ran"
    ),
    Reliance(_SCHEDULER + "event_loop_overlap", "has one step in flight when a result is read"),
    Reliance(
        "sglang.srt.mem_cache.unified_radix_cache.UnifiedRadixCache.free_kv_row",
        "frees slots of a row by their positions",
    ),
    Reliance(
        "sglang.srt.layers.radix_attention.RadixAttention.forward",
        "hands keys and values to the backend",
    ),
    Reliance(
        "sglang.srt.mem_cache.memory_pool.MHATokenToKVPool.set_kv_buffer",
        "divides keys and values by a layer's scales if the cache has another type than they",
    ),
    Reliance(
        "sglang.srt.layers.quantization.kv_cache.BaseKVCacheMethod.process_weights_after_loading",
        "gives a layer the scales of its checkpoint, as tensors and as the same numbers",
    ),
)
# Checked only where FlashInfer runs: importing it takes seconds.
WITH_FLASHINFER = (
    Reliance(_GRAPHS + "capture_one_shape", "calls `capture_tail_hooks` inside the graph"),
    Reliance(_UPDATER + "update", "is `update_single_wrapper` where no layer has a window"),
    Reliance(
        _UPDATER + "update_single_wrapper", "takes the lengths of rows from the batch it is given"
    ),
    Reliance(
        _UPDATER + "call_begin_forward",
        "copies as many slots of each row as its length says, and plans for the host's lengths",
    ),
    Reliance(_FLASHINFER + "__init__", "allocates its plan, which we share between batch sizes"),
    Reliance(_FLASHINFER + "reset_workspace_buffer", "replaces the plan's buffers"),
    Reliance(_FLASHINFER + "plan", "hands all to `_plan_impl`"),
    Reliance(
        _FLASHINFER + "_plan_impl", "copies the slots of all rows into `_paged_kv_indices_buf`"
    ),
    Reliance(
        "flashinfer.decode.fast_decode_plan",
        "plans the next step of a graph into the same buffers",
    ),
    Reliance(_FLASHINFER + "forward", "runs what was planned"),
    Reliance(_FLASHINFER + "run", "multiplies by the scales of keys and values"),
)
