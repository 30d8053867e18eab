"""Which tokens a step may attend, when nothing is ever overwritten.

``select`` chooses pages anew at each step and gives none up: with bounds it is Quest, with exact
scores it knows the attention that it is about to spare. ``window``, ``random``, ``h2o``, ``top-r``,
``alpha``, ``decay`` and ``lrfu`` do what the engine does under the same names; ``random`` draws
other numbers. What is left are candidates for it. As in the engine, each token of a new page takes
the place of one token of a page that is given up, which is attended until then.
"""

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn.functional import pad

from accuracy.grid import Method

RULES = ("select", "window", "random", "h2o", "top-r", "alpha", "decay", "lrfu", "recurrence")
SCORES = ("bound", "exact")
POOLS = ("head", "layer", "request")
PROMPTS = ("pinned", "paged")


@dataclass(frozen=True)
class Rule:
    """What decides over pages; the fields are settings of a method: ``offline:rule=select``.

    Attributes:
        rule: One of `RULES`. ``lrfu`` sums up decayed probabilities, of bounds their softmax;
            ``recurrence`` measures age by the longest time between two uses.
        score: ``bound`` (Quest's) or ``exact``.
        page: Tokens of a page.
        ratio: Share of the budget's pages that top-r stamps.
        alpha: Probability from which a page counts as used, for ``alpha`` and ``recurrence``.
        decay: Steps in which importance falls by a factor of e.
        floor: Newest tokens that are never given up, at most half of the budget.
        lag: The same, and their use does not count.
        late: Steps whose use ``lrfu`` notes at once, after the last of them.
        birth: Steps that a page is dated back while it is filled.
        pool: Who shares a budget: each ``head`` has its own, or those of a ``layer`` or of all
            layers of a ``request`` give up their least important page together.
        layers: Weights of the layers' budgets, such as ``1-1-16-1-1``; equal if empty.
        prompt: ``pinned``, besides the budget, or ``paged``: within it, and given up as generated
            tokens are, as the paper's released code does. No importance is gathered in prefill.
    """

    rule: str = "decay"
    score: str = "exact"
    page: int = 16
    ratio: float = 0.5
    alpha: float = 1e-4
    decay: float = 64.0
    floor: int = 0
    lag: int = 0
    late: int = 1
    birth: float = 0.0
    pool: str = "head"
    layers: str = ""
    prompt: str = "pinned"

    @classmethod
    def of(cls, method: Method) -> "Rule":
        """Reads the settings of a method."""
        kinds = {field.name: type(field.default) for field in fields(cls)}
        rule = cls(**{name: kinds[name](value) for name, value in method.settings})
        for name, known in (
            *(("rule", RULES), ("pool", POOLS), ("score", SCORES)),
            ("prompt", PROMPTS),
        ):
            if getattr(rule, name) not in known:
                raise ValueError(
                    f"{name} of a rule must be one of {', '.join(known)}, "
                    f"got {getattr(rule, name)!r}"
                )
        return rule

    @property
    def has_stamps(self) -> bool:
        """Whether importance is a step, not a mass."""
        return self.rule not in ("h2o", "lrfu")

    @property
    def has_bounds(self) -> bool:
        """Whether minimum and maximum of each page's keys are needed."""
        return self.score == "bound" and self.rule not in ("window", "random", "h2o")


class Retention:
    """State of all pages; shapes are [layers, rows, KV heads, pages].

    Args:
        rule: What decides.
        budgets: [rows] tokens of each layer and head.
        shape: Layers, KV heads, head size.
        prompt_len: Tokens before the first one with a page, whose keys come first.
        steps: Most tokens with a page. Those of a prompt that is paged are the first steps.
    """

    def __init__(
        self,
        rule: Rule,
        budgets: Tensor,
        shape: tuple[int, int, int],
        prompt_len: int,
        steps: int,
    ) -> None:
        layers, heads, size = shape
        self.rule, self.device, self.prompt_len = rule, budgets.device, prompt_len
        count = math.ceil(steps / rule.page)
        full = (layers, len(budgets), heads, count)
        weights = [float(x) for x in rule.layers.split("-")] if rule.layers else [1.0] * layers
        scale = torch.tensor(weights, device=self.device) * layers / sum(weights)
        limits = scale[:, None] * budgets / rule.page
        self.limits = limits.round().clamp(min=1)[:, :, None].expand(full[:3])
        self.numbers = torch.arange(count, device=self.device)
        self.resident = torch.zeros(full, dtype=torch.bool, device=self.device)
        self.leaving = torch.zeros_like(self.resident)  # its tokens make room one by one
        self.stamps = torch.zeros(full, device=self.device)
        # What came since importance was noted last.
        self.waiting = torch.zeros(full if rule.rule == "lrfu" else (0,), device=self.device)
        self.gaps = torch.zeros(full if rule.rule == "recurrence" else (0,), device=self.device)
        bounds = (*full, size) if rule.has_bounds else (layers, 0)
        self.low = torch.zeros(bounds, device=self.device)
        self.high = torch.zeros(bounds, device=self.device)

    def add_prompt(self, keys: Tensor) -> None:
        """Gives pages to a prompt, each stamped when it was born, as a new page is.

        Args:
            keys: [layers, rows, KV heads, tokens, head size].
        """
        page, count = self.rule.page, keys.shape[3]
        born = self.numbers * page < count
        self.resident |= born
        self.stamps.copy_(torch.where(born & self.rule.has_stamps, self.numbers * page, 0))
        if self.rule.has_bounds:
            for bound, beyond in ((self.low, math.inf), (self.high, -math.inf)):
                room = born.sum() * page - count
                paged = pad(keys.float(), (0, 0, 0, room), value=beyond).unflatten(3, (-1, page))
                bound[:, :, :, born] = paged.amin(4) if beyond > 0 else paged.amax(4)

    def begin_page(self, step: Tensor) -> None:
        """At the first token of a page: the page is born, others are given up for it."""
        current = step // self.rule.page
        self.resident |= self.numbers == current
        if self.rule.rule == "select":
            return
        floor = self._half().clamp(max=max(self.rule.floor, self.rule.lag))
        recent = self.numbers * self.rule.page >= step - floor[..., None]
        importance = torch.where(recent, math.inf, self._importance(step))
        layers, rows, heads, count = importance.shape
        pooled = {"head": (layers, heads), "layer": (layers, 1), "request": (1, 1)}[self.rule.pool]

        def gather(x: Tensor) -> Tensor:
            """[rows, groups, what shares a budget]."""
            x = x.view(pooled[0], layers // pooled[0], rows, pooled[1], heads // pooled[1], -1)
            return x.permute(2, 0, 3, 1, 4, 5).reshape(rows, pooled[0] * pooled[1], -1)

        resident = gather(self.resident)
        excess = resident.sum(-1) - gather(self.limits).sum(-1)
        order = torch.where(resident, gather(importance), math.inf).argsort(dim=-1, stable=True)
        gone = torch.zeros_like(resident)
        places = torch.arange(resident.shape[-1], device=self.device)
        gone.scatter_(-1, order, places < excess[..., None])
        gone = gone.view(rows, pooled[0], pooled[1], layers // pooled[0], heads // pooled[1], count)
        gone = gone.permute(1, 3, 0, 2, 4, 5).reshape(self.resident.shape)
        self.leaving.copy_(gone)
        self.resident &= ~gone

    def visible(self, layer: int, q: Tensor, logits: Tensor, step: Tensor) -> Tensor:
        """Returns what a layer may attend: bool [rows, KV heads, generated tokens].

        Args:
            layer: Index of the layer.
            q: [rows, KV heads, queries of each, head size].
            logits: [rows, KV heads, queries of each, keys], of all keys so far.
            step: Index of the generated token.
        """
        resident, page = self.resident[layer], self.rule.page
        if self.rule.rule != "select":
            staying = torch.arange(page, device=self.device) > step % page
            return (resident[..., None] | self.leaving[layer][..., None] & staying).flatten(-2)
        scores = self._scores(layer, q, logits.softmax(-1)).masked_fill(~resident, -math.inf)
        scores = scores.masked_fill(self.numbers == step // page, math.inf)
        return (_best(scores, self.limits[layer]) & resident).repeat_interleave(page, dim=-1)

    def add_key(self, layer: int, k: Tensor, step: Tensor) -> None:
        """Widens the bounds of the page being filled; ``k`` is [rows, KV heads, head size]."""
        if not self.rule.has_bounds:
            return
        key, page = k.float()[:, :, None], (step // self.rule.page).view(1)
        fresh = step % self.rule.page == 0
        for bound, wider in ((self.low[layer], torch.minimum), (self.high[layer], torch.maximum)):
            wide = wider(bound.index_select(2, page), key)
            bound.index_copy_(2, page, torch.where(fresh, key, wide))

    def observe(self, layer: int, q: Tensor, probabilities: Tensor, step: Tensor) -> None:
        """Updates importance by what a step attended.

        Args:
            layer: Index of the layer.
            q: As in `visible`.
            probabilities: [rows, KV heads, queries of each, keys].
            step: Index of the generated token.
        """
        rule, now = self.rule, step.float()
        if rule.rule in ("select", "window", "random"):
            return
        stamps, resident = self.stamps[layer], self.resident[layer]
        current = self.numbers == step // rule.page
        if rule.rule == "h2o":
            stamps.add_(self._by_page(probabilities.mean(2)).sum(-1))
            return
        if rule.rule != "lrfu":
            stamps.copy_(torch.where(current, now - rule.birth, stamps))
        others = resident & ~current
        others &= (self.numbers + 1) * rule.page <= step + 1 - rule.lag
        scores = self._scores(layer, q, probabilities)
        if rule.rule == "top-r":
            count = (rule.ratio * self.limits[layer]).floor().clamp(min=1)
            used = _best(scores.masked_fill(~others, -math.inf), count) & others
            stamps.copy_(torch.where(used, now, stamps))
        elif rule.rule == "decay":
            dated = now + (rule.decay * scores.clamp(min=1e-30).log()).floor()
            stamps.copy_(torch.where(others, torch.maximum(stamps, dated), stamps))
        elif rule.rule == "lrfu":
            gained = torch.where(others, scores, -math.inf)
            if rule.score == "bound":
                gained = (gained / math.sqrt(q.shape[-1])).softmax(-1)
            fade, waiting = math.exp(-1 / rule.decay), self.waiting[layer]
            waiting.copy_(waiting * fade + torch.where(others, gained, 0.0))
            is_due = (step + 1) % rule.late == 0
            stamps.copy_(torch.where(is_due, stamps * fade**rule.late + waiting, stamps))
            waiting.mul_(~is_due)
        else:
            used = others & (scores > rule.alpha)
            if rule.rule == "recurrence":
                gap = torch.where(used, torch.maximum(self.gaps[layer], now - stamps), 0.0)
                self.gaps[layer].copy_(torch.maximum(self.gaps[layer], gap))
            stamps.copy_(torch.where(used, now, stamps))

    def _half(self) -> Tensor:
        """Tokens of half of each budget."""
        return self.limits * self.rule.page // 2

    def _importance(self, step: Tensor) -> Tensor:
        if self.rule.rule == "window":
            return self.numbers.float().expand(self.stamps.shape)
        if self.rule.rule == "random":
            return self._drawn(step)
        if self.rule.rule == "h2o":
            recent = self.numbers * self.rule.page > step - self._half()[..., None]
            return torch.where(recent, math.inf, self.stamps)
        if self.rule.rule == "recurrence":
            return (self.stamps - step) / (self.gaps + self.rule.decay)
        return self.stamps

    def _scores(self, layer: int, q: Tensor, probabilities: Tensor) -> Tensor:
        """Largest score of a head's queries: [rows, KV heads, pages]."""
        if self.rule.score == "bound":
            q = q.float()
            high = q.clamp(min=0) @ self.high[layer].transpose(2, 3)
            return (high + q.clamp(max=0) @ self.low[layer].transpose(2, 3)).amax(2)
        return self._by_page(probabilities.amax(2)).amax(-1)

    def _by_page(self, of_keys: Tensor) -> Tensor:
        """Sorts values [rows, KV heads, keys] by page: [rows, KV heads, pages, page]."""
        generated = of_keys[..., self.prompt_len :]
        missing = len(self.numbers) * self.rule.page - generated.shape[-1]
        return pad(generated, (0, missing)).unflatten(-1, (-1, self.rule.page))

    def _drawn(self, step: Tensor) -> Tensor:
        """A number for each layer, KV head and page at a step, the same for all rows."""
        layers, _, heads, pages = self.stamps.shape
        index = torch.arange(layers * heads * pages, device=self.device)
        x = index.view(layers, 1, heads, pages) * 0x85EBCA77 + step * 0x9E3779B1 & 0xFFFFFFFF
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
            x = (x ^ x >> shift) * factor & 0xFFFFFFFF
        return (x ^ x >> 16).float().expand(self.stamps.shape)


def _best(scores: Tensor, count: Tensor) -> Tensor:
    """Marks the largest ``count`` [rows, heads] of ``scores`` [rows, heads, pages]."""
    order = scores.argsort(dim=-1, descending=True, stable=True)
    places = torch.arange(scores.shape[-1], device=scores.device)
    marked = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    return marked.scatter_(-1, order, places < count[..., None])
