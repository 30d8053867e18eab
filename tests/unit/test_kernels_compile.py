"""The kernels compile for the GPUs that RaaS runs on: Triton takes less than its interpreter."""

import os
import re
import subprocess
from types import SimpleNamespace

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from raas_kernels import (
    RequestTables,
    claim_slots,
    due_rows,
    score_launch,
    score_tokens,
    store_decode,
)
from raas_sglang.state import PROGRAMS_PER_PROCESSOR

HOPPER = GPUTarget("cuda", 90, 32)
REGISTERS, SHARED_MEMORY = 65536, 228 * 1024  # of a multiprocessor
WARP_REGISTERS = 256  # a warp gets a multiple of it
RESERVED = 1024  # bytes of shared memory, for each program
POINTERS = {
    **dict.fromkeys(("queries", "key_cache", "value_cache", "q", "k", "v"), "*bf16"),
    **dict.fromkeys(("logits", "scores", "weights", "value_norms"), "*fp32"),
    **dict.fromkeys(("query_means", "query_variances", "key_means", "key_variances"), "*fp32"),
    **dict.fromkeys(("pointers", "positions", "req_pool_indices", "out_cache_loc"), "*i64"),
}
SCALARS = dict.fromkeys(
    ("scaling", "curvature", "bonus", "least_spread", "largest_spread", "least_share"), "fp32"
)
# As they are launched; Triton's defaults would be another kernel.
LAUNCHED = {
    "list_due_rows": {},
    "score_tokens": {"num_warps": 4, "num_stages": score_launch.STAGES},
}
SCALES = ("k_scale", "v_scale", "key_scales_ptr")
QUANTISED = {
    **dict.fromkeys(("key_cache", "value_cache"), "*fp8e4nv"),
    **{"key_scales": "*fp32", "k_scale": "fp32", "v_scale": "fp32"},
}
HEADS = {"HEADS": 4, "GROUP": 7, "HEAD_DIM": 128, "BLOCK_DIM": 128}
KERNELS = {
    "claim_slots": (
        claim_slots._claim_slots_kernel,
        {"HEADS": 4, "BLOCK_HEADS": 4, "VICTIMS": 8},
    ),
    "list_due_rows": (due_rows._list_due_rows_kernel, {"BLOCK_ROWS": 1024}),
    "store_decode": (
        store_decode._store_decode_kernel,
        HEADS | {"BLOCK_QUERIES": 1024, "OVERLAPS": True},
    ),
    "score_tokens": (
        score_tokens._score_tokens_kernel,
        {
            **HEADS,
            **{"BLOCK_GROUP": 8, "COLUMNS": 16, "TILE_TOKENS": 64, "TOKENS": 256},
            **{"BLOCK_TOKENS": 1024, "VICTIMS": 8, "WIDE": False},
        },
    ),
}


def type_of(name, types):
    """A pointer to what its name says, to int32 where nothing is said; other numbers are int32."""
    bare = name.removesuffix("_ptr")
    if bare in types:
        return types[bare]
    return "*i32" if name.endswith("_ptr") else "i32"


def ptx(name, is_quantised=False):
    return compiled(name, is_quantised).asm["ptx"]


def compiled(name, is_quantised=False, target=HOPPER, sizes=None, options=None):
    """Compiles a kernel as for tensors and strides of a model, which are multiples of 16."""
    assert os.environ.get("TRITON_INTERPRET") != "1", "the interpreter has no compiler"
    kernel, constants = KERNELS[name]
    constants = constants | (sizes or {})
    assert set(constants) == {p.name for p in kernel.params if p.is_constexpr}
    known = {**POINTERS, **SCALARS, **(QUANTISED if is_quantised else {})}
    if not is_quantised:
        constants = constants | {arg: None for arg in SCALES if arg in kernel.arg_names}
    types = {
        arg: "constexpr" if arg in constants else type_of(arg, known) for arg in kernel.arg_names
    }
    places = {(kernel.arg_names.index(arg),): value for arg, value in constants.items()}
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, arg in enumerate(kernel.arg_names)
        if (types[arg] != "constexpr" and arg.endswith("_ptr")) or arg.startswith("stride_")
        if not kernel.params[place].do_not_specialize_on_alignment
    }
    source = ASTSource(kernel, signature=types, constexprs=places, attrs=aligned)
    options = options or LAUNCHED.get(name, {"num_warps": 1})
    if is_quantised and name == "score_tokens":
        options = options | {"maxnreg": score_launch.REGISTERS}
    return triton.compile(source, target=target, options=options)


@pytest.mark.parametrize("name", ["claim_slots", "store_decode", "score_tokens"])
def test_a_kernel_is_not_compiled_again_for_batches_of_another_size(name):
    """The tables of a batch are rows of one tensor, so they begin at other multiples of 4 bytes."""
    kernel, _ = KERNELS[name]
    aligned = {p.name for p in kernel.params if not p.do_not_specialize_on_alignment}
    assert not aligned & {f"{table}_ptr" for table in RequestTables.declared()}


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_compiles_for_hopper(name):
    assert ".target sm_90" in ptx(name)


def test_keys_are_read_in_whole_vectors():
    """One number at a time took four times as long; the compiler does so if it must."""
    assert not re.search(r"ld\.global\S*\.[bu]16\b", ptx("score_tokens"))


@pytest.mark.parametrize("is_quantised", [False, True])
def test_as_many_programs_fit_as_are_launched(is_quantised, tmp_path):
    """With more registers a multiprocessor runs two of the three, and scoring takes longer."""
    code, program = tmp_path / "score.ptx", tmp_path / "score.cubin"
    kernel = compiled("score_tokens", is_quantised)
    code.write_text(kernel.asm["ptx"])
    command = [get_ptxas(90).path, "-v", "--gpu-name=sm_90a", "-o", program, code]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    registers = int(re.search(r"Used (\d+) registers", said)[1])
    of_warp = -(-32 * registers // WARP_REGISTERS) * WARP_REGISTERS
    of_program = of_warp * LAUNCHED["score_tokens"]["num_warps"]
    assert of_program * PROGRAMS_PER_PROCESSOR <= REGISTERS, registers
    shared = kernel.metadata.shared + RESERVED
    assert shared * PROGRAMS_PER_PROCESSOR <= SHARED_MEMORY, shared
    assert " 0 bytes spill stores" in said


@pytest.mark.parametrize(("capability", "shared"), [(89, 99 * 1024), (90, 227 * 1024)])
def test_keys_of_large_heads_fit_into_the_shared_memory_of_a_gpu(capability, shared, monkeypatch):
    gpu = SimpleNamespace(shared_memory_per_block_optin=shared)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: gpu)
    keys = SimpleNamespace(shape=(1, 4, 256), element_size=lambda: 2, is_cuda=True, device="cuda")
    kernel = compiled(
        "score_tokens",
        target=GPUTarget("cuda", capability, 32),
        sizes={"HEAD_DIM": 256, "BLOCK_DIM": 256},
        options=score_launch.launch_options(keys, 1024),
    )
    assert kernel.metadata.shared <= shared


def test_keys_of_a_quantised_cache_are_read_in_whole_vectors():
    code = ptx("score_tokens", is_quantised=True)
    assert f".maxnreg {score_launch.REGISTERS}" in code
    assert not re.search(r"ld\.global\S*\.[bsu]8\b", code)


def test_keys_and_values_are_divided_and_stored_as_sglang_does():
    """Divided and rounded as IEEE says, to no more than the largest; undivided without a scale."""
    quantised, plain = ptx("store_decode", is_quantised=True), ptx("store_decode")
    assert "div.rn.f32" in quantised
    assert "cvt.rn.satfinite.e4m3x2.f32" in quantised
    assert "div.rn" not in plain
