"""Settings of SGLang that RaaS does not work with, each refused by name."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from sglang.srt.arg_groups.overrides import attention_backends_of, resolving_view
from sglang.srt.environ import EnvBool, envs
from sglang.srt.model_executor.cuda_graph_config import Backend

from raas_sglang.config import DECODE_BACKENDS

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs


FP8 = "fp8_e4m3"
PADDED = "decode batches are padded beyond the requests that there is state for"
HOST_ALONE = "--enable-hierarchical-cache is supported with the host's memory alone"


class Refusal(NamedTuple):
    """A setting that excludes RaaS.

    Attributes:
        flag: What the user set.
        applies: Whether it is set, in a view of the resolved arguments.
        advice: What to do.
    """

    flag: str
    applies: Callable[[Any], bool]
    advice: str


def _is_set(name: str) -> Callable[[Any], bool]:
    return lambda chosen: bool(getattr(chosen, name))


def _is_on(variable: EnvBool) -> Callable[[Any], bool]:
    return lambda _: bool(variable.get())


def _above_one(name: str) -> Callable[[Any], bool]:
    return lambda chosen: int(getattr(chosen, name)) > 1


REFUSALS = (
    Refusal("--speculative-algorithm", _is_set("speculative_algorithm"), "remove it"),
    Refusal(
        "--disaggregation-mode",
        lambda chosen: chosen.disaggregation_mode != "null",
        "use --disaggregation-mode null",
    ),
    Refusal(
        "--kv-cache-dtype",
        lambda chosen: chosen.kv_cache_dtype not in ("auto", "bf16", "bfloat16", FP8),
        "use --kv-cache-dtype auto: of quantised types only fp8_e4m3 is stored and scored",
    ),
    Refusal(
        "--kv-cache-dtype",
        lambda chosen: chosen.kv_cache_dtype == FP8 and chosen.device == "cpu",
        "use --kv-cache-dtype auto: on the CPU SGLang has fp8_e4m3 for intel_amx attention alone",
    ),
    Refusal(
        "--quantization-param-path",
        lambda chosen: chosen.kv_cache_dtype == FP8 and bool(chosen.quantization_param_path),
        "remove it: SGLang's attention does not multiply by the scales that its store divides by",
    ),
    Refusal("--enable-page-major-kv-layout", _is_set("enable_page_major_kv_layout"), "remove it"),
    Refusal(
        "--mamba-radix-cache-strategy",
        lambda chosen: chosen.mamba_radix_cache_strategy == "extra_buffer_lazy",
        "use extra_buffer or no_buffer",
    ),
    Refusal("--enable-int8-mamba-checkpoint", _is_set("enable_int8_mamba_checkpoint"), "remove it"),
    Refusal("--enable-linear-replayssm", _is_set("enable_linear_replayssm"), "remove it"),
    Refusal("--enable-unified-memory", _is_set("enable_unified_memory"), "remove it"),
    Refusal(
        "--enable-mixed-chunk",
        _is_set("enable_mixed_chunk"),
        "remove it: it puts decode rows into prefill batches",
    ),
    Refusal(
        "--prefill-decode-interval",
        _is_set("prefill_decode_interval"),
        "set it to 0 (for some models SGLang's default is another): between two chunks of a prompt "
        "dense requests would grow into what is reserved",
    ),
    Refusal("--enable-streaming-session", _is_set("enable_streaming_session"), "remove it"),
    Refusal("--enable-session-radix-cache", _is_set("enable_session_radix_cache"), "remove it"),
    Refusal("--strip-thinking-cache", _is_set("strip_thinking_cache"), "remove it"),
    Refusal(
        "--enable-hierarchical-cache",
        lambda chosen: chosen.enable_hierarchical_cache and chosen.device == "cpu",
        "remove it: it copies between a GPU and its host",
    ),
    Refusal(
        "--hicache-write-policy",
        lambda chosen: (
            chosen.enable_hierarchical_cache
            and chosen.hicache_write_policy == "write_through_selective"
        ),
        "use write_through or write_back",
    ),
    Refusal(
        "--hicache-storage-backend",
        _is_set("hicache_storage_backend"),
        f"remove it: {HOST_ALONE}",
    ),
    Refusal("--enable-kv-cache-sharding", _is_set("enable_kv_cache_sharding"), "remove it"),
    Refusal(
        "--enable-unified-cache-external-linker",
        _is_set("enable_unified_cache_external_linker"),
        "remove it",
    ),
    Refusal("--enable-hisparse", _is_set("enable_hisparse"), "remove it"),
    Refusal("--enable-lmcache", _is_set("enable_lmcache"), "remove it"),
    Refusal("--enable-flexkv", _is_set("enable_flexkv"), "remove it"),
    Refusal("--radix-cache-backend", _is_set("radix_cache_backend"), "remove it"),
    Refusal(
        "--moe-a2a-backend",
        lambda chosen: chosen.tp_size > 1 and chosen.moe_a2a_backend != "none",
        f"remove it: {PADDED}",
    ),
    Refusal(
        "--moe-dense-tp-size",
        lambda chosen: chosen.tp_size > 1 and chosen.moe_dense_tp_size is not None,
        f"remove it: {PADDED}",
    ),
    Refusal("--enable-two-batch-overlap", _is_set("enable_two_batch_overlap"), "remove it"),
    Refusal("--enable-pdmux", _is_set("enable_pdmux"), "remove it"),
    Refusal("--attn-dp-size", _above_one("attn_dp_size"), "use --dp-size alone"),
    Refusal("--attn-cp-size", _above_one("attn_cp_size"), "use --tp-size instead"),
    Refusal("--pp-size", _above_one("pp_size"), "use --tp-size instead"),
    Refusal("--dcp-size", _above_one("dcp_size"), "use --dcp-size 1"),
    Refusal("--enable-pd-role-switch", _is_set("enable_pd_role_switch"), "remove it"),
    Refusal(
        "--enable-encoder-swa-bounded-replay",
        _is_set("enable_encoder_swa_bounded_replay"),
        "remove it",
    ),
    Refusal(
        "--enable-decoder-swa-bounded-replay",
        _is_set("enable_decoder_swa_bounded_replay"),
        "remove it",
    ),
    Refusal(
        "--enable-nvidia-megakernel",
        _is_set("enable_nvidia_megakernel"),
        "remove it: it runs decode steps past the attention backend",
    ),
    Refusal(
        "--enable-amd-monokernel",
        _is_set("enable_amd_monokernel"),
        "remove it: it runs decode steps past the attention backend",
    ),
    Refusal(
        "--debug-cuda-graph",
        _is_set("debug_cuda_graph"),
        "remove it: it runs each step with the rows of the graph that was captured last",
    ),
    Refusal(
        "--cuda-graph-backend-decode",
        lambda chosen: (
            chosen.cuda_graph_config is not None
            and chosen.cuda_graph_config.decode.backend == Backend.BREAKABLE
        ),
        "use full or disabled: a broken graph ends while slots are still being claimed",
    ),
    Refusal(
        "--enable-return-aux-hidden-states", _is_set("enable_return_aux_hidden_states"), "remove it"
    ),
    Refusal(
        "--enable-torch-compile",
        _is_set("enable_torch_compile"),
        "remove it: decode is not compiled, CUDA graphs are its fast path",
    ),
    Refusal(
        "--enable-return-routed-experts",
        _is_set("enable_return_routed_experts"),
        "remove it: it keeps the experts of a token by its slot, which is reused in place",
    ),
    Refusal("--nnodes", _above_one("nnodes"), "use the GPUs of one node"),
    Refusal("--tokenizer-worker-num", _above_one("tokenizer_worker_num"), "use 1"),
    Refusal("--dllm-algorithm", _is_set("dllm_algorithm"), "remove it"),
    Refusal("--is-embedding", _is_set("is_embedding"), "remove --kv-policy: nothing is generated"),
    Refusal(
        "--prefill-only-disable-kv-cache", _is_set("prefill_only_disable_kv_cache"), "remove it"
    ),
    Refusal("--encoder-only", _is_set("encoder_only"), "remove --kv-policy"),
    Refusal(
        "--kv-canary",
        lambda chosen: chosen.kv_canary != "none",
        "use --kv-canary none: it would take a slot that is reused in place for a corrupted one",
    ),
    Refusal("--use-ray", _is_set("use_ray"), "remove it"),
    Refusal("--smg-grpc-mode", _is_set("smg_grpc_mode"), "use the HTTP server"),
    Refusal("--grpc-port", _is_set("grpc_port"), "use the HTTP server"),
    *(
        Refusal(variable.name, _is_on(variable), "unset it")
        for variable in (
            envs.SGLANG_RUST_SERVER,
            envs.SGLANG_USE_HND_KVCACHE,
            envs.SGLANG_ENABLE_POST_CAPTURE_KV_SIZING,
            envs.SGLANG_ENABLE_METADATA_GLUE_GRAPH,
        )
    ),
    Refusal(
        "--attention-backend",
        lambda chosen: (
            chosen.device == "cpu" and set(attention_backends_of(chosen)) != {"torch_native"}
        ),
        "use --attention-backend torch_native on the CPU",
    ),
    Refusal(
        "--decode-attention-backend",
        lambda chosen: chosen.device == "cuda" and attention_backends_of(chosen)[1] != "flashinfer",
        "use --decode-attention-backend flashinfer; the prefill backend is yours to choose",
    ),
    Refusal(
        "--device",
        lambda chosen: chosen.device not in DECODE_BACKENDS,
        "use --device cuda or --device cpu",
    ),
)


def refused_settings(server_args: "ServerArgs") -> list[str]:
    """Returns one sentence for each setting that excludes RaaS.

    Args:
        server_args: SGLang's resolved arguments.
    """
    chosen = resolving_view(server_args)
    return [
        f"--kv-policy does not work together with {refusal.flag}; {refusal.advice}"
        for refusal in REFUSALS
        if refusal.applies(chosen)
    ]
