"""What memory must hold: a reference that knows requests and slots, and no product code.

Every token's key and value name the text that ends with it, so that a slot shows what it holds. The
model is told what was launched, predicts which slots may have changed and into what, and compares
the whole pool with its prediction, bit for bit.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

HEADS, GROUP, DIM = 2, 2, 8
_HASH_BITS, _HALF = 48, 24
_LENGTHS = "logical_tokens", "resident_tokens"
_SHIFTS = 3 * torch.arange(HEADS * (DIM - 4)).reshape(HEADS, DIM - 4)


class ViolationError(AssertionError):
    """An invariant does not hold.

    Attributes:
        invariant: Its name.
    """

    def __init__(self, invariant: str, detail: str) -> None:
        super().__init__(f"{invariant}: {detail}")
        self.invariant = invariant


def require(holds: bool, invariant: str, detail: str) -> None:
    if not holds:
        raise ViolationError(invariant, detail)


def hashes(tokens: Iterable[int], before: int = 1) -> list[int]:
    """Names each prefix of a text: one number for all tokens up to and including each."""
    names = []
    for token in tokens:
        before = (before * 0x5DEECE66D + token * 0x9E3779B1 + 11) % (2**_HASH_BITS - 59)
        names.append(before)
    return names


def contents(
    names: torch.Tensor, positions: torch.Tensor, number: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values [n, head, dim] of tokens: prefix name, position, request, and noise.

    Args:
        names: [n] int64 from `hashes`.
        positions: [n] int64 places in the text.
        number: The request that computes them.
    """
    rows = torch.zeros(len(names), HEADS, DIM)
    rows[:, :, 0] = (names % 2**_HALF)[:, None].float()
    rows[:, :, 1] = (names >> _HALF)[:, None].float()
    rows[:, :, 2] = positions[:, None].float()
    rows[:, :, 3] = number
    # The scored channels differ between heads, so that heads give up different tokens.
    rows[:, :, 4:] = ((names[:, None, None] >> _SHIFTS) % 8 - 3).float()
    return rows, rows + 0.5


def same(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Compares bit for bit, so that NaN equals itself: bool, without the last dimension."""
    return (left.view(torch.int32) == right.view(torch.int32)).all(-1)


@dataclass
class ModelRequest:
    """A request as the model knows it.

    Attributes:
        names: Prefix names of prompt and generated tokens.
        logical: Tokens whose keys and values were computed.
        owed: Generated tokens were prefilled and none was decoded since.
        skipped: Generated tokens that were left out then.
        resident: For each head, positions of the generated tokens it has.
    """

    number: int
    policy: str
    budget: int
    evicts: bool
    prompt_len: int
    names: list[int]
    logical: int = 0
    owed: bool = False
    skipped: int = 0
    resident: list[set[int]] = field(default_factory=lambda: [set() for _ in range(HEADS)])

    @property
    def generated(self) -> int:
        return max(0, self.logical - self.prompt_len)

    @property
    def slots(self) -> int:
        """Slots that it must hold."""
        held = self.logical - self.skipped
        return min(held, self.prompt_len + self.budget) if self.evicts else held

    @property
    def shown(self) -> list[int]:
        """Names that its slots show in this order, as far as the order is known."""
        first, last = self.prompt_len + self.skipped, self.logical
        if self.evicts and not self.owed and self.generated > self.budget:
            last = first
        return self.names[: min(self.prompt_len, last)] + self.names[first:last]

    def kept(self, count: int) -> list[int]:
        """Positions of prompt and budget, when it is retracted after ``count`` tokens."""
        skipped = max(0, count - self.budget) if self.evicts else 0
        start, end = self.prompt_len + skipped, self.prompt_len + count
        return [*range(self.prompt_len), *range(start, end)]

    def contents(self, positions: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        names = torch.tensor([self.names[p] for p in positions])
        return contents(names, torch.tensor(positions), self.number)


@dataclass
class Snapshot:
    """What the real objects say.

    Attributes:
        pages: Pages of the pool; page 0 is padding and not among them.
        free: Free pages.
        tree: Slots of the radix tree, and the name of the prefix that each stands for.
        rows: Slots of each request that holds any, in the order of its text.
        protected: How many of them the tree owns.
        reports: What the response would say about it.
    """

    page_size: int
    pages: int
    free: list[int]
    tree: dict[int, int]
    rows: dict[int, list[int]]
    protected: dict[int, int]
    reports: dict[int, dict[str, Any]]


class MemoryModel:
    """The prediction.

    Args:
        keys: [slot, head, dim] keys of the real pool, as it starts.
        values: Values alike.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.keys, self.values = keys.clone(), values.clone()
        self.requests: dict[int, ModelRequest] = {}
        self.overwrites = self.resumptions = 0

    def prefilled(self, number: int, positions: list[int], row: list[int], tree: set[int]) -> None:
        """These positions of the text were computed, into the last slots of ``row``."""
        request = self.requests[number]
        request.logical = positions[-1] + 1
        request.skipped = request.logical - len(row)
        request.owed = request.logical > request.prompt_len
        written = row[-len(positions) :]
        require(not tree & set(written), "prompt_untouched", f"{number} prefills into the tree")
        keys, values = request.contents(positions)
        self.keys[written], self.values[written] = keys, values

    def decoded(
        self, number: int, row: list[int], keys: torch.Tensor, values: torch.Tensor
    ) -> None:
        """One more token was computed; ``keys`` and ``values`` are the pool after it."""
        request = self.requests[number]
        position, owed = request.logical, request.owed
        request.logical, request.owed, request.skipped = position + 1, False, 0
        require(len(row) == request.slots, "budget_bound", f"{number} has {len(row)} slots")
        full = request.generated > request.budget
        if request.evicts and (owed or full):
            self._decoded_in_place(request, position, owed, row, keys, values)
            return
        self.keys[row[-1]], self.values[row[-1]] = (c[0] for c in request.contents([position]))
        for tokens in request.resident:
            tokens.add(position)

    def _decoded_in_place(
        self,
        request: ModelRequest,
        position: int,
        owed: bool,
        row: list[int],
        keys: torch.Tensor,
        values: torch.Tensor,
    ) -> None:
        """Checks which tokens each head has now, and adopts their places."""
        self.overwrites += request.generated > request.budget
        self.resumptions += owed
        who, budget = f"{request.number} at {position}", row[request.prompt_len :]
        held = keys[budget, :, 2].nan_to_num(-1).long()
        for head in range(HEADS):
            places = held[:, head].tolist()
            tokens, before = set(places), request.resident[head]
            if owed:
                first = max(request.prompt_len, position - request.budget)
                before = set(range(first, position))
            count = min(request.generated, request.budget)
            require(len(tokens) == count, "resident_set", f"{who}: {sorted(places)}")
            lost = sorted(tokens - before - {position})
            require(not lost, "resident_set", f"{who}: {lost} came back")
            require(position in tokens, "resident_set", f"{who}: its own token is missing")
            if request.policy == "window":
                newest = set(range(request.logical - count, request.logical))
                require(tokens == newest, "window", f"{who}: {sorted(tokens)}")
            expected = request.contents(places)
            for real, wanted in zip((keys, values), expected, strict=True):
                right = same(real[budget][:, head], wanted[:, head])
                require(bool(right.all()), "resident_set", f"{who}: wrong contents")
            request.resident[head] = tokens
        old = self.keys[budget], self.values[budget]
        changed = ~(same(keys[budget], old[0]) & same(values[budget], old[1]))
        once = bool((changed.sum(0) == 1).all())
        require(owed or once, "in_place", f"{who}: {changed.sum(0).tolist()} slots changed")
        self.keys[budget], self.values[budget] = keys[budget], values[budget]

    def check(self, seen: Snapshot, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Checks all invariants, then forgets what free slots held."""
        free = self._check_conservation(seen)
        self._check_budgets(seen)
        self._check_pool(seen, keys, values)
        self._check_tree(seen, keys)
        self._check_rows(seen, keys)
        # Poison: whatever is read from a slot that was given back shows.
        for buffer in (keys, values, self.keys, self.values):
            buffer[free] = float("nan")

    def _check_conservation(self, seen: Snapshot) -> list[int]:
        """Checks that free + tree + owned = pool, nothing in two places; returns the free slots."""
        require(len(set(seen.free)) == len(seen.free), "conservation", "a page is free twice")
        owned = {"free": set(seen.free), "tree": {slot // seen.page_size for slot in seen.tree}}
        for number, row in seen.rows.items():
            shared, own = row[: seen.protected[number]], row[seen.protected[number] :]
            require(set(shared) <= set(seen.tree), "conservation", f"{number} lost its prefix")
            require(len(set(row)) == len(row), "conservation", f"{number} has a slot twice")
            owned[f"request {number}"] = {slot // seen.page_size for slot in own}
        pool, every = set(range(1, seen.pages + 1)), set().union(*owned.values())
        require(pool == every, "conservation", f"pages {sorted(pool ^ every)} are nowhere or wrong")
        if sum(map(len, owned.values())) != len(pool):
            twice = {p: [o for o in owned if p in owned[o]] for p in pool}
            twice = {p: owners for p, owners in twice.items() if len(owners) > 1}
            require(False, "conservation", f"pages in two places: {twice}")
        return [page * seen.page_size + i for page in seen.free for i in range(seen.page_size)]

    def _check_budgets(self, seen: Snapshot) -> None:
        for number, row in seen.rows.items():
            request = self.requests[number]
            wanted = request.slots
            require(len(row) == wanted, "budget_bound", f"{number}: {len(row)} slots, not {wanted}")
            lengths = tuple(seen.reports[number][name] for name in _LENGTHS)
            right = lengths == (request.logical, wanted)
            require(right, "lengths", f"{number}: {lengths}, not {request.logical}, {wanted}")
            if request.evicts:
                bound = seen.protected[number] <= request.prompt_len
                require(bound, "tree_purity", f"{number} overwrites what the tree owns")

    def _check_pool(self, seen: Snapshot, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Nothing changed that the model did not predict; padding slots may."""
        wrong = ~(same(keys, self.keys) & same(values, self.values)).all(1)
        wrong[: seen.page_size] = False
        if not bool(wrong.any()):
            return
        slots = set(wrong.nonzero().flatten().tolist())
        shared = set(seen.tree)
        for number, row in seen.rows.items():
            shared.update(row[: self.requests[number].prompt_len])
        kind = "prompt_untouched" if slots & shared else "stray_write"
        require(False, kind, f"slots {sorted(slots)} changed")

    def _check_tree(self, seen: Snapshot, keys: torch.Tensor) -> None:
        """Every slot of the tree holds the token of its key, after exactly the text before it."""
        wrong = _misnamed(keys, list(seen.tree), list(seen.tree.values()))
        require(not wrong, "tree_purity", f"slots {wrong} do not hold the text of their key")

    def _check_rows(self, seen: Snapshot, keys: torch.Tensor) -> None:
        """Rows show their text as far as it is not overwritten."""
        slots, names = [], []
        for number, row in seen.rows.items():
            shown = self.requests[number].shown
            slots += row[: len(shown)]
            names += shown
        wrong = _misnamed(keys, slots, names)
        require(not wrong, "row_contents", f"slots {wrong} show other text")


def _misnamed(keys: torch.Tensor, slots: list[int], names: list[int]) -> list[int]:
    """Slots whose keys are not those of the given prefixes."""
    if not slots:
        return []
    found, wanted = keys[slots, :, :2], torch.tensor(names)
    halves = torch.stack((wanted % 2**_HALF, wanted >> _HALF), 1).float()
    right = (found == halves[:, None]).all(2).all(1)
    return [slot for slot, holds in zip(slots, right.tolist(), strict=True) if not holds]
