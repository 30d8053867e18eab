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


def _set(flag: str, advice: str = "remove it") -> Refusal:
    """Refuses any value that counts as true."""
    name = _attribute(flag)
    return Refusal(flag, lambda chosen: bool(getattr(chosen, name)), advice)


def _above_one(flag: str, advice: str) -> Refusal:
    name = _attribute(flag)
    return Refusal(flag, lambda chosen: int(getattr(chosen, name)) > 1, advice)


def _attribute(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _is_on(variable: EnvBool) -> Callable[[Any], bool]:
    return lambda _: bool(variable.get())


REFUSALS = (
    _set("--speculative-algorithm"),
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
    _set("--enable-page-major-kv-layout"),
    Refusal(
        "--mamba-radix-cache-strategy",
        lambda chosen: chosen.mamba_radix_cache_strategy == "extra_buffer_lazy",
        "use extra_buffer or no_buffer",
    ),
    _set("--enable-int8-mamba-checkpoint"),
    _set("--enable-linear-replayssm"),
    _set("--enable-unified-memory"),
    _set("--enable-mixed-chunk", "remove it: it puts decode rows into prefill batches"),
    _set(
        "--prefill-decode-interval",
        "set it to 0 (for some models SGLang's default is another): between two chunks of a prompt "
        "dense requests would grow into what is reserved",
    ),
    _set("--enable-streaming-session"),
    _set("--enable-session-radix-cache"),
    _set("--strip-thinking-cache"),
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
    _set("--hicache-storage-backend", f"remove it: {HOST_ALONE}"),
    _set("--enable-kv-cache-sharding"),
    _set("--enable-unified-cache-external-linker"),
    _set("--enable-hisparse"),
    _set("--enable-lmcache"),
    _set("--enable-flexkv"),
    _set("--radix-cache-backend"),
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
    _set("--enable-two-batch-overlap"),
    _set("--enable-pdmux"),
    _above_one("--attn-dp-size", "use --dp-size alone"),
    _above_one("--attn-cp-size", "use --tp-size instead"),
    _above_one("--pp-size", "use --tp-size instead"),
    _above_one("--dcp-size", "use --dcp-size 1"),
    _set("--enable-pd-role-switch"),
    _set("--enable-encoder-swa-bounded-replay"),
    _set("--enable-decoder-swa-bounded-replay"),
    _set(
        "--enable-nvidia-megakernel", "remove it: it runs decode steps past the attention backend"
    ),
    _set("--enable-amd-monokernel", "remove it: it runs decode steps past the attention backend"),
    _set(
        "--debug-cuda-graph",
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
    _set("--enable-return-aux-hidden-states"),
    _set(
        "--enable-torch-compile", "remove it: decode is not compiled, CUDA graphs are its fast path"
    ),
    _set(
        "--enable-return-routed-experts",
        "remove it: it keeps the experts of a token by its slot, which is reused in place",
    ),
    _above_one("--nnodes", "use the GPUs of one node"),
    _above_one("--tokenizer-worker-num", "use 1"),
    _set("--dllm-algorithm"),
    _set("--is-embedding", "remove --kv-policy: nothing is generated"),
    _set("--prefill-only-disable-kv-cache"),
    _set("--encoder-only", "remove --kv-policy"),
    Refusal(
        "--kv-canary",
        lambda chosen: chosen.kv_canary != "none",
        "use --kv-canary none: it would take a slot that is reused in place for a corrupted one",
    ),
    _set("--use-ray"),
    _set("--smg-grpc-mode", "use the HTTP server"),
    _set("--grpc-port", "use the HTTP server"),
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
