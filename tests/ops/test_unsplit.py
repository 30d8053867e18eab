"""Decode attention in a CUDA graph whose plan splits no row, against plain torch."""

from functools import partial

import pytest
import torch

DIM, HEADS = 128, 2
TYPES = {"q_data_type": torch.bfloat16, "kv_data_type": torch.bfloat16}


def attend(q, keys, values, indices, lens):
    """Plain torch in float32: [rows, query heads, DIM]."""
    outputs = []
    for row, slots in enumerate(indices.long().split(lens)):
        key = keys[slots].float().repeat_interleave(q.shape[1] // HEADS, dim=1)
        value = values[slots].float().repeat_interleave(q.shape[1] // HEADS, dim=1)
        weights = (torch.einsum("hd,thd->ht", q[row].float(), key) * DIM**-0.5).softmax(-1)
        outputs.append(torch.einsum("ht,thd->hd", weights, value))
    return torch.stack(outputs)


def decode_wrapper(workspace_bytes, **graph):
    from flashinfer.decode import BatchDecodeWithPagedKVCacheWrapper

    workspace = torch.empty(workspace_bytes, dtype=torch.uint8, device="cuda")
    return BatchDecodeWithPagedKVCacheWrapper(
        workspace, "NHD", backend="fa2", use_tensor_cores=True, **graph
    )


@pytest.mark.gpu
@pytest.mark.parametrize("group", [4, 7, 8])
def test_a_graph_without_spare_blocks_follows_a_new_plan(group):
    from flashinfer.decode import fast_decode_plan

    from raas_sglang.attention.unsplit import drop_spare_blocks, rows_without_split

    rows = rows_without_split(HEADS, "cuda") + 3
    generator = torch.Generator().manual_seed(group)

    def normal(*shape):
        return torch.randn(shape, generator=generator).to("cuda", torch.bfloat16)

    # One row is long enough that it would be split if any were.
    lens = torch.randint(1, 300, (rows,), generator=generator).tolist()
    lens[5] = 9000
    total = sum(lens)
    q = normal(rows, HEADS * (group + 2), DIM)[:, : HEADS * group]  # as the model hands it over
    keys, values = (normal(total, HEADS, DIM) for _ in "kv")
    indptr = torch.tensor([0, *lens]).cumsum(0).int()
    indices = torch.randperm(total, generator=generator).int().cuda()
    ones = torch.ones(rows, dtype=torch.int32, device="cuda")
    wrapper = decode_wrapper(
        1 << 20,
        use_cuda_graph=True,
        paged_kv_indptr_buffer=torch.arange(rows + 1, dtype=torch.int32, device="cuda"),
        paged_kv_indices_buffer=torch.zeros_like(indices),
        paged_kv_last_page_len_buffer=ones,
    )
    # What a spare block would take for its row.
    wrapper._pin_memory_int_workspace_buffer.fill_(0x77)
    shape = (ones, HEADS * group, HEADS, DIM, 1)
    first = torch.arange(rows + 1, dtype=torch.int32)
    wrapper.begin_forward(first.cuda(), indices[:rows], *shape, **TYPES, disable_split_kv=True)
    drop_spare_blocks(wrapper, rows)
    wrapper.run(q, (keys, values))
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = wrapper.run(q, (keys, values))
    wrapper._paged_kv_indptr_buf.copy_(indptr)
    wrapper._paged_kv_indices_buf.copy_(indices)
    wrapper.begin_forward = partial(fast_decode_plan, wrapper)
    wrapper.begin_forward(
        *(indptr.cuda(), indices, *shape),
        **TYPES,
        disable_split_kv=True,
        global_override_indptr_cpu=indptr,
    )
    graph.replay()
    expected = attend(q, keys, values, indices, lens)
    torch.testing.assert_close(out.float(), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.gpu
def test_flashinfer_splits_no_row_of_so_many():
    """What `rows_without_split` says of FlashInfer's planner, asked of the planner itself."""
    from raas_sglang.attention.unsplit import rows_without_split

    enough = rows_without_split(HEADS, "cuda")
    for rows, splits in ((enough, False), (enough - 1, True)):
        lens = torch.full((rows,), 200)
        lens[0] = 100_000
        indptr = torch.cat([torch.zeros(1), lens.cumsum(0)]).int()
        ones = torch.ones(rows, dtype=torch.int32, device="cuda")
        wrapper = decode_wrapper(256 << 20)
        wrapper.plan(
            *(indptr.cuda(), torch.zeros(int(indptr[-1]), dtype=torch.int32, device="cuda"), ones),
            *(HEADS * 4, HEADS, DIM, 1),
            **TYPES,
        )
        assert bool(wrapper._plan_info[-1]) is splits
