"""The kernels compile for the GPUs that RaaS runs on: Triton takes less than its interpreter."""

import os
import re

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from raas_kernels import (
    claim_slots,
    due_rows,
    exact_scores,
    score_pages,
    stamp_decode,
    store_decode,
)

HOPPER = GPUTarget("cuda", 90, 32)
POINTERS = {
    **dict.fromkeys(("queries", "key_cache", "value_cache", "q", "k", "v"), "*bf16"),
    **dict.fromkeys(("scores", "page_scores", "page_mass", "mass", "logits", "lse"), "*fp32"),
    **dict.fromkeys(("pointers", "positions", "req_pool_indices", "out_cache_loc"), "*i64"),
}
SCALARS = dict.fromkeys(("alpha", "fade", "fade_log2", "scaling_log2"), "fp32")
HEADS = {"HEADS": 4, "GROUP": 7, "HEAD_DIM": 128, "BLOCK_DIM": 128}
PAGES = {"HEADS": 4, "BLOCK_PAGES": 512, "PAGE_SIZE": 2}
STEPS = {"SCORED_STEPS": 8}
SHARED = {"SHARED_STEPS": 4}
TILES = {"BLOCK_GROUP": 8, "BLOCK_STEPS": 8, "TILE_PAGES": 64, "WIDE": False, "FADES": True}
PAPER = {"BLOCK_PAGES": 64, "PAGE_SIZE": 16, "SCORED_STEPS": 16, "FADES": False}
BOUNDS = {"BOUND_SCORES": True}
KERNELS = {
    "claim_slots": (
        claim_slots._claim_slots_kernel,
        PAGES | STEPS | BOUNDS | {"FADES": True, "FLOOR": 96},
    ),
    "list_due_rows": (due_rows._list_due_rows_kernel, STEPS | {"BLOCK_ROWS": 1024}),
    "store_decode": (
        store_decode._store_decode_kernel,
        HEADS | BOUNDS | {"BLOCK_QUERIES": 1024, "OVERLAPS": True},
    ),
    "score_pages": (score_pages._score_pages_kernel, PAGES | STEPS | SHARED | HEADS | TILES),
    "score_pages of the paper": (
        score_pages._score_pages_kernel,
        PAGES | SHARED | HEADS | TILES | PAPER,
    ),
    "stamp_decode": (stamp_decode._stamp_decode_kernel, PAGES | {"FADES": True, "ALPHA": False}),
    "stamp_decode of the paper": (
        stamp_decode._stamp_decode_kernel,
        PAGES | {"FADES": False, "ALPHA": False},
    ),
    "stamp_decode of alpha": (
        stamp_decode._stamp_decode_kernel,
        PAGES | {"FADES": False, "ALPHA": True},
    ),
    "score_logits": (
        exact_scores._score_logits,
        {"GROUP": 7, "PAGE_SIZE": 2, "BLOCK_PAGES": 64},
    ),
}


def type_of(name):
    """A pointer to what its name says, to int32 where nothing is said; other numbers are int32."""
    bare = name.removesuffix("_ptr")
    if bare in POINTERS:
        return POINTERS[bare]
    named = {"policies", "prompt_lens", "budgets", "current", "positions"}
    return "*i32" if name.endswith("_ptr") or name in named else SCALARS.get(name, "i32")


def compiled(name):
    """Compiles a kernel as for tensors and strides of a model, which are multiples of 16."""
    assert os.environ.get("TRITON_INTERPRET") != "1", "the interpreter has no compiler"
    kernel, constants = KERNELS[name]
    assert set(constants) == {p.name for p in kernel.params if p.is_constexpr}
    types = {arg: "constexpr" if arg in constants else type_of(arg) for arg in kernel.arg_names}
    places = {(kernel.arg_names.index(arg),): value for arg, value in constants.items()}
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, arg in enumerate(kernel.arg_names)
        if arg.endswith("_ptr") or arg.startswith("stride_")
    }
    source = ASTSource(kernel, signature=types, constexprs=places, attrs=aligned)
    return triton.compile(source, target=HOPPER).asm["ptx"]


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_compiles_for_hopper(name):
    assert ".target sm_90" in compiled(name)


@pytest.mark.parametrize("name", ["score_pages", "score_pages of the paper"])
def test_keys_are_read_in_whole_vectors(name):
    """One number at a time took four times as long; the compiler does so if it must."""
    assert not re.search(r"ld\.global\S*\.[bu]16\b", compiled(name))
