"""One scheduler with its pool and its radix tree, and a forward pass that can be checked."""

from array import array
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from sglang.srt.managers import scheduler
from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
from sglang.srt.managers.utils import GenerationBatchResult
from sglang.srt.mem_cache.allocator import TokenToKVPoolAllocator
from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams
from sglang.srt.mem_cache.cache_init_params import CacheInitParams
from sglang.srt.mem_cache.memory_pool import ReqToTokenPool
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache
from sglang.srt.runtime_context import process_model_config
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.srt.server_args import ServerArgs

from raas_kernels import DecodeBatch, Policy, torch_ops
from raas_patches.probe.loop import SchedulerLoop
from raas_patches.probe.process import CONTEXT
from raas_sglang.config import RaasConfig
from raas_sglang.pool import RaasTokenToKVPool
from raas_sglang.state import StateShape

SLOTS, REQUESTS, DIM, EOS = 160, 4, 8, 1
_LAYER: Any = SimpleNamespace(
    layer_id=0, tp_q_head_num=2, tp_k_head_num=1, scaling=0.25, k_scale=None
)


class ProbeError(AssertionError):
    """What a probe asks for does not hold."""


def require(holds: bool, what: str) -> None:
    """Raises `ProbeError` with what does not hold."""
    if not holds:
        raise ProbeError(what)


class Machine:
    """Runs requests step by step, one step ahead of the results as the overlap scheduler does.

    Each token's key holds the token and its position in the text, so that whoever reads a slot can
    be told whether it is the right one. After each step `budget_bound` and `conservation` are
    checked.
    """

    def __init__(self, server_args: ServerArgs) -> None:
        self.rows = ReqToTokenPool(REQUESTS, CONTEXT, "cpu", False)
        self.pool = RaasTokenToKVPool(
            SLOTS, 1, torch.float32, 1, DIM, 1, "cpu", False, enable_alt_stream=False
        )
        shape = StateShape(1, 1, 2, DIM, torch.float32, torch.float32)
        self.pool.attach(RaasConfig("raas", 16), self.rows, shape, 0, torch.cpu.Stream())
        self.pool.ops = torch_ops
        self.allocator = TokenToKVPoolAllocator(SLOTS, torch.float32, "cpu", self.pool, False)
        params = CacheInitParams(False, self.rows, self.allocator, 1)
        params.tree_components = (ComponentType.FULL,)
        self.tree = UnifiedRadixCache(params)
        self.requests: dict[str, Req] = {}
        self.stops: dict[str, int] = {}
        self.loop = SchedulerLoop(
            server_args=server_args,
            req_to_token_pool=self.rows,
            token_to_kv_pool_allocator=self.allocator,
            tree_cache=self.tree,
            page_size=1,
            enable_overlap=True,
            enable_skip_finishing_decode=True,
            model_config=process_model_config(),
            max_total_num_tokens=SLOTS,
            max_req_len=SLOTS - 1,
            max_prefill_tokens=CONTEXT,
            max_running_requests=REQUESTS,
        )

    def arrive(
        self, name: str, prompt_len: int, max_new: int, stop_at: int = CONTEXT, **choice: Any
    ) -> Req:
        """Sends a request; its model ends the text with ``stop_at`` generated tokens."""
        params = SamplingParams(max_new_tokens=max_new, custom_params=choice)
        params.normalize(None)
        prompt = array("q", (_token(name, place) for place in range(prompt_len)))
        req = Req(name, "", prompt, params, eos_token_ids={EOS}, vocab_size=256)
        self.loop.init_req_max_new_tokens(req)
        self.loop._add_request_to_queue(req)
        self.requests[name] = req
        self.stops[name] = prompt_len + min(stop_at - 1, max_new)
        return req

    def step(self, retract: bool = False) -> None:
        """One round of `Scheduler.event_loop_overlap`; with ``retract`` as if memory ran out."""
        loop = self.loop
        with mock.patch.multiple(scheduler, TEST_RETRACT=retract, TEST_RETRACT_INTERVAL=1):
            plan = loop.get_next_batch_to_run(loop.running_batch, loop.last_batch)
        loop.running_batch, batch = plan.running_batch, plan.batch_to_run
        if batch:
            loop.result_queue.append((batch.copy(), self._forward(batch)))
        while len(loop.result_queue) > (1 if batch else 0):
            loop.process_batch_result(*loop.result_queue.popleft())
        loop.last_batch = batch
        self._check()

    def finish(self) -> None:
        """Steps until every request has ended with its whole text, and gave back what it held."""
        steps = 0
        while not all(req.finished() and not req.kv.holds_kv for req in self.requests.values()):
            require(steps < CONTEXT, f"requests never ended: {sorted(self.requests)}")
            self.step()
            steps += 1
        for name, req in self.requests.items():
            first, last = len(req.origin_input_ids), self.stops[name]
            text = [_token(name, place) for place in range(first, last)]
            require(list(req.output_ids[: len(text)]) == text, f"{name} is another text")

    def shared(self, name: str) -> int:
        """Tokens of a request's text that the radix tree offers, each of them the right one."""
        req = self.requests[name]
        key = RadixKey(req.origin_input_ids + req.output_ids, None)
        found = self.tree.match_prefix(MatchPrefixParams(key=key))
        slots = self.tree.path_device_indices(found.last_device_node)
        wanted = _contents([(name, place) for place in range(len(slots))])
        right = torch.equal(self.pool.k_buffer[0][slots], wanted)
        require(right, f"tree_purity: the tree offers slots that hold other tokens of {name}")
        return len(slots)

    def _check(self) -> None:
        for name, req in self.requests.items():
            state, held = req.raas, req.kv.kv_allocated_len if req.kv.holds_kv else 0
            require(held <= state.capacity, f"budget_bound: {name} holds {held} slots")
        free, tree = self.allocator.available_size(), len(self.tree.all_values_flatten())
        own = sum(
            req.kv.kv_allocated_len - req.kv.cache_protected_len
            for req in self.requests.values()
            if req.kv.holds_kv
        )
        require(free + tree + own == SLOTS, f"conservation: {free} + {tree} + {own} != {SLOTS}")

    def _forward(self, batch: ScheduleBatch) -> GenerationBatchResult:
        """Stores the tokens of a batch as a model would, and samples the next ones."""
        (self._prefill if batch.forward_mode.is_extend() else self._decode)(batch)
        sampled = [
            _token(req.rid, place) if place < self.stops[req.rid] else EOS
            for req, place in ((req, req.raas.logical_len) for req in batch.reqs)
        ]
        return GenerationBatchResult(next_token_ids=torch.tensor(sampled))

    def _prefill(self, batch: ScheduleBatch) -> None:
        places = [
            (req.rid, place + (req.raas.skipped_len if place >= req.raas.prompt_len else 0))
            for req, start, end in zip(
                batch.reqs, batch.prefix_lens, batch.seq_lens.tolist(), strict=True
            )
            for place in range(start, end)
        ]
        fed = batch.prefill_input_ids_cpu.tolist()
        require(fed == [_token(*place) for place in places], "other tokens are prefilled")
        keys = _contents(places)
        self.pool.set_kv_buffer(_LAYER, batch.out_cache_loc, keys, keys)

    def _decode(self, batch: ScheduleBatch) -> None:
        places = [(req.rid, req.raas.logical_len - 1) for req in batch.reqs]
        positions = batch.seq_lens - 1
        right = positions.tolist() == [place for _, place in places]
        require(right, f"positions {positions.tolist()} are not those of the text")
        table, requests = self.rows.req_to_token, batch.req_pool_indices_cpu
        keys = _contents(places)
        rows = DecodeBatch(
            req_pool_indices=requests,
            positions=positions,
            out_cache_loc=batch.out_cache_loc,
            kv_indptr=requests * table.shape[1],
            kv_indices=table.view(-1),
            requests=self.pool.state.rows(requests),
        )
        self.pool.claim_slots(rows)
        self.pool.store_decode(_LAYER, keys.expand(-1, 2, -1).contiguous(), keys, keys, rows)
        self.pool.score_tokens(_LAYER, rows)
        for req in batch.reqs:
            self._check_budget(req)

    def _check_budget(self, req: Req) -> None:
        """A budget holds that many tokens: the newest ones of a window, else a quarter of them."""
        state, row = req.raas, self.rows.req_to_token[req.kv.req_pool_idx]
        first, end = state.prompt_len, state.logical_len
        places = self.pool.k_buffer[0][row[first : state.resident_len], 0, 1].int().tolist()
        options = state.options
        spared = options.budget // (1 if options.policy is Policy.WINDOW else 4)
        newest = range(max(first, end - spared), end)
        right = len(set(places)) == len(places) and set(newest) <= set(places)
        require(right, f"{req.rid} holds {sorted(places)} of its {end} tokens")


def _token(name: str, place: int) -> int:
    """The token at a place in the text of a request; no two requests share one."""
    return 2 + ord(name[0]) % 16 * 15 + place % 15


def _contents(places: list[tuple[str, int]]) -> torch.Tensor:
    """Keys [n, 1, DIM] of tokens: the token and its position, once more for each channel."""
    named = [(float(_token(name, place)), float(place)) for name, place in places]
    return torch.tensor(named).reshape(-1, 1, 2).repeat(1, 1, DIM // 2)
