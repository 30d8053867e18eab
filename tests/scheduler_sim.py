"""Plays SGLang's scheduler: its real objects, the real pool, and a made-up forward pass.

Batches, admission, retraction, results, radix tree and allocator are SGLang's own code with our
hooks installed. Only the loop around them is written here, and a forward pass that stores tokens
which can be told apart. After each operation a `MemoryModel` checks the whole pool.
"""

from array import array
from collections import Counter
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import torch
from sglang.srt.managers import schedule_policy, scheduler
from sglang.srt.managers.io_struct import AbortReq, PauseGenerationReqInput
from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
from sglang.srt.managers.utils import GenerationBatchResult
from sglang.srt.mem_cache.allocator import PagedTokenToKVPoolAllocator, TokenToKVPoolAllocator
from sglang.srt.mem_cache.base_prefix_cache import EvictParams
from sglang.srt.mem_cache.cache_init_params import CacheInitParams
from sglang.srt.mem_cache.memory_pool import ReqToTokenPool
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType
from sglang.srt.runtime_context import process_model_config
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.srt.server_args import ServerArgs

import memory_model as reference
from admission_rules import check_refusal, watched_retraction
from memory_model import DIM, GROUP, HEADS, hashes, require
from raas_kernels import DecodeBatch, torch_ops
from raas_patches.probe.loop import SchedulerLoop
from raas_sglang.config import RaasConfig
from raas_sglang.pool import RaasTokenToKVPool
from raas_sglang.state import StateShape
from watched_tree import WatchedTree

EOS, CONTEXT, PREFILL = 1, 1280, 512


class Settings(NamedTuple):
    """How a simulation is built."""

    page_size: int = 1
    slots: int = 320
    requests: int = 6
    overlap: bool = True
    reserve: int = 24  # tokens that admission expects of a request: too few, so memory runs out
    radix: bool = True
    preempt: bool = False  # priority scheduling: who is more urgent retracts others
    triton: bool = False  # our kernels, interpreted: slow, and with tests of their own


_LAYER = SimpleNamespace(
    layer_id=0, tp_q_head_num=HEADS * GROUP, tp_k_head_num=HEADS, scaling=0.25, k_scale=None
)


class Simulation:
    """The objects of one scheduler, and the model that watches them."""

    def __init__(self, settings: Settings, server_args: ServerArgs) -> None:
        self.settings, self.server_args = settings, server_args
        self.requests: dict[int, Req] = {}
        self.aborted: set[int] = set()
        self.counts = Counter[str]()
        self.texts: dict[int, list[int]] = {}
        self.stops, self.relay, self.plan = {}, {}, ((), ())
        self.scheduler = self._build(RaasConfig("raas", 64))
        self.model = reference.MemoryModel(self.pool.k_buffer[0], self.pool.v_buffer[0])

    def _build(self, config: RaasConfig) -> scheduler.Scheduler:
        page_size, slots, requests = self.settings[:3]
        self.rows = ReqToTokenPool(requests, CONTEXT, "cpu", False)
        self.pool = RaasTokenToKVPool(
            slots, page_size, torch.float32, HEADS, DIM, 1, "cpu", False, enable_alt_stream=False
        )
        shape = StateShape(1, HEADS, HEADS * GROUP, DIM, torch.float32, torch.float32)
        self.pool.attach(config, self.rows, shape, 0, torch.cpu.Stream())
        if not self.settings.triton:
            self.pool.ops = torch_ops
        end = torch.float32, "cpu", self.pool, False
        if page_size == 1:
            self.allocator = TokenToKVPoolAllocator(slots, *end)
        else:
            self.allocator = PagedTokenToKVPoolAllocator(slots, page_size, *end)
        params = CacheInitParams(not self.settings.radix, self.rows, self.allocator, page_size)
        params.tree_components = (ComponentType.FULL,)
        self.tree = WatchedTree(params)
        return SchedulerLoop(
            server_args=self.server_args,
            req_to_token_pool=self.rows,
            token_to_kv_pool_allocator=self.allocator,
            tree_cache=self.tree,
            page_size=page_size,
            enable_overlap=self.settings.overlap,
            enable_skip_finishing_decode=self.settings.overlap,
            enable_priority_scheduling=self.settings.preempt,
            enable_priority_preemption=self.settings.preempt,
            model_config=process_model_config(),
            max_total_num_tokens=slots,
            max_req_len=min(CONTEXT, slots) - 1,
            max_prefill_tokens=PREFILL,
            max_running_requests=requests,
        )

    def apply(self, name: str, **arguments: Any) -> None:
        """Runs an operation, a public method, and checks everything afterwards.

        Raises:
            ViolationError: an invariant does not hold.
        """
        getattr(self, name)(**arguments)
        self._forget_gone()
        self.model.check(self._snapshot(), self.pool.k_buffer[0], self.pool.v_buffer[0])
        if self.scheduler.last_batch is not None:
            self.scheduler.invariant_checker.self_check_during_busy()
            self.scheduler.invariant_checker._check_kv_page_invariants()
        if not self.requests:
            idle = len(self.rows.free_slots) == self.rows.size and self.tree.protected_size() == 0
            require(idle, "conservation", "idle, but a request slot or a tree node is held")

    def arrive(
        self,
        number: int,
        policy: str,
        budget: int,
        max_new: int,
        stop_at: int,
        family: int = 0,
        shared: int = 0,
        private: int = 1,
        follows: int = -1,
        priority: int = 0,
        ignore_eos: bool = False,
    ) -> None:
        """A request arrives; its model ends the text with ``stop_at`` generated tokens.

        Its prompt begins with ``shared`` tokens of its family's text, or of the text of the request
        that it ``follows``, generated tokens included; ``private`` more come after.
        """
        head = self.texts.get(follows) or [2 + (i * 7 + family) % 40 for i in range(99)]
        prompt = head[:shared] + [2 + (i * private) % 40 for i in range(private)]
        choice = {"kv_policy": policy, "kv_budget": budget}
        named = {"max_new_tokens": max_new, "ignore_eos": ignore_eos, "custom_params": choice}
        params = SamplingParams(**named)
        params.normalize(None)
        named = {"eos_token_ids": {EOS}, "vocab_size": 1280, "priority": priority}
        req = Req(f"{number:09d}", "", array("q", prompt), params, **named)
        known = req.to_finish is None
        self.scheduler.init_req_max_new_tokens(req)
        if known:
            size, slots = self.settings[:2]
            asked = (max_new, None if policy == "dense" else budget)
            refused = check_refusal(req, len(prompt), asked, size, slots)
            self.counts["refused"] += refused
        self.scheduler._add_request_to_queue(req)
        prompt = list(req.origin_input_ids)  # one token if the request was refused
        evicts = policy != "dense" and budget < max_new and req.to_finish is None
        self.requests[number], self.stops[number], self.texts[number] = req, stop_at, prompt
        self.model.requests[number] = reference.ModelRequest(
            number, policy, budget, evicts, len(prompt), hashes(prompt)
        )

    def step(self, admit: bool = True, chunk: int = 0, retract: bool = False) -> None:
        """One round of `Scheduler.event_loop_overlap`, or `event_loop_normal` without overlap.

        ``admit`` shows it the waiting requests, ``chunk`` is the size of a prefill chunk, or 0, and
        with ``retract`` SGLang thinks that memory ran out.
        """
        loop, hidden = self.scheduler, []
        if not admit:
            hidden, loop.waiting_queue = loop.waiting_queue, []
        if loop.chunked_req is None:
            loop.chunked_prefill_size = chunk or None
        watched = watched_retraction(self.model.requests, self.aborted, self.counts, retract)
        with (
            mock.patch.multiple(scheduler, TEST_RETRACT=retract, TEST_RETRACT_INTERVAL=1),
            mock.patch.object(schedule_policy, "CLIP_MAX_NEW_TOKENS", self.settings.reserve),
            mock.patch.object(ScheduleBatch, "retract_decode", watched),
        ):
            plan = loop.get_next_batch_to_run(loop.running_batch, loop.last_batch)
        loop.waiting_queue = hidden + loop.waiting_queue
        loop.running_batch, batch = plan.running_batch, plan.batch_to_run
        if loop.is_disable_overlap_for_batch(batch, loop.last_batch) and loop.result_queue:
            self._process_result()
        if batch:
            loop.result_queue.append((batch.copy(), self._forward(batch)))
        while len(loop.result_queue) > (1 if self.settings.overlap and batch else 0):
            self._process_result()
        loop.last_batch = batch

    def finish(self, number: int) -> None:
        """The next token to be sampled ends the request."""
        if number in self.requests:
            request = self.model.requests[number]
            self.stops[number] = len(request.names) - request.prompt_len + 1

    def abort(self, number: int) -> None:
        self.aborted.add(number)
        self.scheduler.abort_request(AbortReq(rid=f"{number:09d}"))

    def retract(self, number: int) -> None:
        """A round in which SGLang finds no memory and gives up this request, if others run."""

        def order(reqs: list[Req]) -> list[int]:
            return sorted(range(len(reqs)), key=lambda i: int(reqs[i].rid) == number)

        with mock.patch.object(ScheduleBatch, "_get_decode_retraction_order", staticmethod(order)):
            self.step(admit=False, retract=True)

    def pause(self, flush: bool = False) -> None:
        """As for a weight update: what runs is retracted, and the tree may be forgotten then."""
        self.scheduler.pause_generation(PauseGenerationReqInput(mode="retract"))
        self.counts["flushed"] += flush and self.scheduler.flush_cache(empty_cache=False)
        self.scheduler._engine_paused = False

    def flush(self) -> None:
        if self.scheduler.is_fully_idle():
            self.scheduler.flush_cache(empty_cache=False)

    def drain(self) -> None:
        """Whatever waits or runs ends, and nobody stands still."""
        for number, req in list(self.requests.items()):
            self.abort(number) if req.sampling_params.ignore_eos else self.finish(number)
        for _ in range(20 * len(self.requests)):
            self.step()
            self._forget_gone()
        left = sorted(self.requests)
        require(not left, "progress", f"{left} wait, {self.scheduler.running_batch.reqs} run")

    def evict(self, tokens: int) -> None:
        self.tree.evict(EvictParams(num_tokens=tokens))

    def _process_result(self) -> None:
        batch, result = self.scheduler.result_queue.popleft()
        self.scheduler.process_batch_result(batch, result)

    def _forward(self, batch: ScheduleBatch) -> GenerationBatchResult:
        """Stores the tokens of a batch as a model would, and samples the next ones."""
        numbers = [int(req.rid) for req in batch.reqs]
        (self._prefill if batch.forward_mode.is_extend() else self._decode)(batch, numbers)
        sampled = [self._sample(n, req) for n, req in zip(numbers, batch.reqs, strict=True)]
        return GenerationBatchResult(next_token_ids=torch.tensor(sampled))

    def _sample(self, number: int, req: Req) -> int:
        """Like greedy decoding: the text decides the next token, unless it is time to stop."""
        request, text = self.model.requests[number], self.texts[number]
        if request.logical == len(text):
            ends = len(text) - request.prompt_len + 1 >= self.stops[number]
            text.append(EOS if ends else 2 + request.names[-1] % 40)
            request.names.extend(hashes(text[-1:], request.names[-1]))
        self.relay[req.kv.req_pool_idx] = text[request.logical]
        return text[request.logical]

    def _prefill(self, batch: ScheduleBatch, numbers: list[int]) -> None:
        parts, fed = [], batch.prefill_input_ids_cpu.tolist()
        tree = set(self.tree.texts())
        for number, start, end in zip(
            numbers, batch.prefix_lens, batch.seq_lens.tolist(), strict=True
        ):
            here, fed = fed[: end - start], fed[end - start :]
            count = len(self.requests[number].output_ids)
            positions = self.model.requests[number].kept(count)[start:end]
            wanted = [self.texts[number][position] for position in positions]
            require(here == wanted, "fed_text", f"{number} got {here}, not {wanted}")
            self.model.prefilled(number, positions, self._row(number), tree)
            parts.append(self.model.requests[number].contents(positions))
        keys, values = (torch.cat(buffers) for buffers in zip(*parts, strict=True))
        self.pool.set_kv_buffer(_LAYER, batch.out_cache_loc, keys, values)

    def _decode(self, batch: ScheduleBatch, numbers: list[int]) -> None:
        parts, places = [], (batch.seq_lens - 1).tolist()
        require(torch.equal(batch.orig_seq_lens, batch.seq_lens.int()), "lengths", "of the text")
        for number, slot, place in zip(
            numbers, batch.req_pool_indices.tolist(), places, strict=True
        ):
            request, token = self.model.requests[number], self.texts[number][place]
            right = request.logical == place and self.relay[slot] == token
            require(right, "fed_text", f"{number} decodes at {place}")
            parts.append(request.contents([place]))
        keys, values = (torch.cat(buffers) for buffers in zip(*parts, strict=True))
        names = keys[:, 0, 0].long() * 7919 + keys[:, 0, 1].long()
        queries = torch.zeros(len(numbers), HEADS * GROUP, DIM)
        shifts = torch.arange(HEADS * GROUP * 4).reshape(HEADS * GROUP, 4)
        queries[:, :, 4:] = ((names[:, None, None] >> shifts) % 8 - 3).float()
        rows, resident = self._place(batch)
        self.pool.claim_slots(rows)
        self.pool.store_decode(_LAYER, queries, keys, values, rows)
        self.pool.score_tokens(_LAYER, rows)
        keys, values = self.pool.k_buffer[0], self.pool.v_buffer[0]
        for number, count in zip(numbers, resident, strict=True):
            self.model.decoded(number, self._row(number), keys, values)
            wanted = self.model.requests[number].slots
            require(count == wanted, "lengths", f"{number}: {count} resident, not {wanted}")

    def _place(self, batch: ScheduleBatch) -> tuple[DecodeBatch, list[int]]:
        """Slots of the rows, and how many there are; checks when a CUDA graph may keep its own."""
        state, table = self.pool.state, self.rows.req_to_token
        requests = batch.req_pool_indices_cpu
        lens = state.step_lens(batch.seq_lens_cpu)
        on_device = state.resident_lens(batch.req_pool_indices, batch.seq_lens)
        require(torch.equal(lens, on_device), "lengths", f"{lens.tolist()} on the host")
        resident = lens.tolist()
        tables = state.rows(requests)
        slots = [table[r, :n].tolist() for r, n in zip(requests.tolist(), resident, strict=True)]
        asked = [column.tolist() for column in tables.tensors().values()]
        plan, held = (state.epoch, resident), (slots, asked)
        same = plan != self.plan[0] or held == self.plan[1]
        require(same, "stale_plan", f"{held}, not {self.plan[1]}")
        self.plan = plan, held
        rows = DecodeBatch(
            req_pool_indices=requests,
            positions=batch.seq_lens - 1,
            out_cache_loc=batch.out_cache_loc,
            kv_indptr=requests * table.shape[1],
            kv_indices=table.view(-1),
            requests=tables,
        )
        return rows, resident

    def _row(self, number: int) -> list[int]:
        req = self.requests[number]
        return self.rows.req_to_token[req.kv.req_pool_idx, : req.kv.kv_allocated_len].tolist()

    def _snapshot(self) -> reference.Snapshot:
        size, held = self.settings.page_size, [n for n, r in self.requests.items() if r.kv.holds_kv]
        return reference.Snapshot(
            size,
            self.settings.slots // size,
            self.allocator.get_all_free_pages().tolist(),
            self.tree.texts(),
            {number: self._row(number) for number in held},
            {number: self.requests[number].kv.cache_protected_len for number in held},
            {number: self.requests[number].raas.report() for number in held},
        )

    def _forget_gone(self) -> None:
        loop = self.scheduler
        batches = filter(None, (loop.running_batch, loop.last_batch))
        alive = {*loop.waiting_queue, loop.chunked_req, *(r for b in batches for r in b.reqs)}
        for number, req in list(self.requests.items()):
            if not req.kv.holds_kv and (req.finished() or req not in alive):
                ended = req.finished() or number in self.aborted
                require(ended, "nothing_lost", f"{number} is neither finished nor aborted")
                longest = len(req.output_ids) / self.settings.slots
                self.counts["beyond"] += longest > 1
                del self.requests[number], self.model.requests[number], self.stops[number]
        for number in sorted(set(self.texts) - set(self.requests))[:-8]:
            del self.texts[number]
