"""From messages of the trace stream to what changed: which heads gave which token up, and when."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from raas_sglang.trace import RequestTrace, TokenTable, TokenTrace, TraceBatch, token_table
from raas_sglang.trace.message import TOKEN_DTYPE
from raas_sglang.view.record import Change, Sample, TableChange
from raas_sglang.view.uses import noted_uses

# Requests whose progress is compared; more than run and end at any time.
MOST_KNOWN = 4096
# Prefix of the requests that SGLang sends itself to check its health; no client sent them.
_HEALTH_CHECK = "HEALTH_CHECK"
# A step in flight when a request is retracted is lost, so it may come back a few tokens shorter.
_IN_FLIGHT = 8
_NONE = np.zeros((2, 0), TOKEN_DTYPE)


class Known(NamedTuple):
    """What was told of a request last.

    Attributes:
        key: The page's name of it.
        told: Its lengths and its text.
    """

    key: int
    told: RequestTrace


class Tracker:
    """Compares each message with those before it.

    Args:
        next_key: Name of the next new request.
        known: Requests of an earlier run that may go on, by replica and SGLang's name.
        servers: `TraceBatch.server` of that run, by replica.
    """

    def __init__(
        self,
        next_key: int,
        known: dict[tuple[int, str], Known] | None = None,
        servers: dict[int, int] | None = None,
    ) -> None:
        self._next_key = next_key
        self._known = dict(known or {})
        self._tables: dict[tuple[int, int], tuple[int, TokenTable]] = {}
        self._servers = dict(servers or {})

    def take(self, batch: TraceBatch) -> Sample:
        """Returns what a message says that those before it did not.

        Args:
            batch: The message.
        """
        replica, rank, is_restart = batch.attn_dp_rank, batch.tp_rank, False
        if rank == 0:
            is_restart = self._servers.get(replica, batch.server) != batch.server
            self._servers[replica] = batch.server
        if is_restart:
            self._forget(replica)
        texts = {
            text.rid: self._follow(replica, text)
            for text in batch.requests
            if not text.rid.startswith(_HEALTH_CHECK)
        }
        events = {event.rid: event for event in batch.events}
        changes = []
        for rid in texts | events:
            # Only rank 0 sends new requests and their texts.
            found = self._known.get((replica, rid))
            if found is not None:
                table = self._table(found.key, rank, events[rid]) if rid in events else None
                changes.append(_change(found, texts.get(rid), table))
        is_step = rank == 0 and not any(text.finished for text in batch.requests)
        return Sample(batch.ts, replica, rank, changes, is_step, is_restart, batch.server)

    def _forget(self, replica: int) -> None:
        for place in [place for place in self._known if place[0] == replica]:
            self._drop_tables(self._known.pop(place).key)

    def _drop_tables(self, key: int) -> None:
        self._tables = {at: kept for at, kept in self._tables.items() if at[0] != key}

    def _follow(self, replica: int, told: RequestTrace) -> int:
        """Notes what is told of a request; returns where its text is not what it was."""
        before = self._known.pop((replica, told.rid), None)
        same = _common(before.told.token_ids, told.token_ids) if before is not None else 0
        if before is None or not _goes_on(before.told, told, same):
            before, same = Known(self._next_key, told), 0
            self._next_key += 1
        self._known[replica, told.rid] = Known(before.key, told)
        if told.finished:
            self._drop_tables(before.key)
        if len(self._known) > MOST_KNOWN:
            oldest = next(iter(self._known))
            self._drop_tables(self._known.pop(oldest).key)
        return same

    def _table(self, key: int, rank: int, event: TokenTrace) -> TableChange:
        last_step, before = self._tables.get((key, rank), (-1, None))
        table = token_table(event)
        layers, heads, _ = event.shape
        births = table.births.reshape(layers * heads, -1)
        old = None if before is None else before.births.reshape(layers * heads, -1)
        gone, back = _differences(old, births, last_step, event.step)
        used = np.zeros(0, TOKEN_DTYPE)
        rule = noted_uses(event.policy)
        if rule is not None:
            uses, flat = rule(table, before, last_step).ravel(), births.ravel()
            count = np.bincount(flat[uses], minlength=event.step + 1)
            holders = np.bincount(flat, minlength=event.step + 1)
            used = np.flatnonzero((count > 0) & (4 * count >= holders)).astype(TOKEN_DTYPE)
        self._tables[key, rank] = (event.step, table)
        parts = (gone.tobytes(), back.tobytes(), used.tobytes())
        return TableChange(event.step, layers, heads, *parts)


def _change(found: Known, text_from: int | None, table: TableChange | None) -> Change:
    told = found.told
    lens = told.prompt_len, told.logical_len, told.resident_len
    more = b"" if text_from is None else told.token_ids[text_from * TOKEN_DTYPE.itemsize :]
    named = found.key, told.rid, told.policy, told.budget
    return Change(*named, *lens, text_from, more, table, told.finished)


def _common(before: bytes, after: bytes) -> int:
    """Tokens that two texts begin with in common."""
    if after.startswith(before):
        return len(before) // TOKEN_DTYPE.itemsize
    a, b = np.frombuffer(before, TOKEN_DTYPE), np.frombuffer(after, TOKEN_DTYPE)
    shorter = min(len(a), len(b))
    differ = np.flatnonzero(a[:shorter] != b[:shorter])
    return int(differ[0]) if len(differ) else shorter


def _goes_on(before: RequestTrace, after: RequestTrace, same: int) -> bool:
    """Whether it is the same request: a client may use a name again."""
    ids = min(len(before.token_ids), len(after.token_ids)) // TOKEN_DTYPE.itemsize
    return (
        before.finished is None
        and (before.policy, before.budget) == (after.policy, after.budget)
        and before.prompt_len == after.prompt_len
        and after.logical_len + _IN_FLIGHT >= before.logical_len
        and same + _IN_FLIGHT >= ids
    )


def _differences(
    before: NDArray[np.int32] | None, after: NDArray[np.int32], last_step: int, step: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Which tokens each head gave up between two samples, and which came back.

    Args:
        before: [heads, K] births of the earlier sample; None if there is none.
        after: [heads, K] births of the later one.
        last_step: Step of the earlier sample, -1 if there is none.
        step: Step of the later one.

    Returns:
        Head and token of each that was given up, and of each that came back: [2, *] both.
    """
    changed = np.ones(after.shape, bool)
    if before is not None:
        changed[:, : before.shape[1]] = after[:, : before.shape[1]] != before
    heads, places = np.divmod(np.flatnonzero(changed), after.shape[1])
    births = after[heads, places]
    # Whoever was born since the earlier sample and is not there was given up as well.
    fresh = births > last_step
    missing = np.ones((len(after), max(0, step - last_step)), bool)
    missing[heads[fresh], births[fresh] - last_step - 1] = False
    gone_heads, gone_tokens = np.nonzero(missing)
    gone = np.stack([gone_heads, gone_tokens + last_step + 1])
    if before is None:
        return gone.astype(TOKEN_DTYPE), _NONE
    was_there = places < before.shape[1]
    old_heads, old_places = heads[was_there], places[was_there]
    replaced = np.stack([old_heads, before[old_heads, old_places]])
    back = np.stack([heads[~fresh], births[~fresh]])
    if back.shape[1]:
        # A retracted request holds its newest tokens again, in other places.
        back, replaced = _without(back, replaced), _without(replaced, back)
    gone = np.concatenate([replaced, gone], axis=1)
    return gone.astype(TOKEN_DTYPE), back.astype(TOKEN_DTYPE)


def _without(pairs: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.int64]:
    """The pairs that are not among the others."""
    codes = [(part[0].astype(np.int64) << 32) | part[1] for part in (pairs, others)]
    return pairs[:, ~np.isin(*codes)]
