"""What an empty server can give one request, and which requests could never have it.

One that can never be admitted would wait for ever, and block the queue for everybody.
"""

import logging
from typing import NamedTuple

from raas_sglang.life.options import RequestOptions

logger = logging.getLogger(__name__)


def ceil_align(tokens: int, page_size: int) -> int:
    """Tokens in whole pages."""
    return -(-tokens // page_size) * page_size


class Room(NamedTuple):
    """Sizes of a server, in tokens.

    Attributes:
        pool: What the KV cache holds.
        page_size: Of the KV cache.
        context_len: Of the model.
    """

    pool: int
    page_size: int
    context_len: int

    @property
    def usable(self) -> int:
        """Tokens of the pool, in whole pages, that one request can be given.

        SGLang's allocator asks for a page more than it takes, and for less than the pool.
        """
        return (self.pool - self.page_size - 1) // self.page_size * self.page_size

    def new_tokens(self, asked: int | None, input_len: int) -> int:
        """Tokens that a bounded request may generate, which the pool does not limit.

        As SGLang counts: one token of the context stays free, and one of the longest request.
        """
        most = max(0, self.context_len - input_len - 2)
        return most if asked is None else min(asked, most)

    def refusal(self, options: RequestOptions, input_len: int, new_tokens: int) -> str | None:
        """Says why a request could never be admitted, or None.

        Args:
            options: What it asked for.
            input_len: Tokens of its input.
            new_tokens: Tokens that it may generate.
        """
        prompt_len = input_len
        if options.is_bounded:
            prompt_len, kept = options.most_tokens(input_len, new_tokens)
            needed = ceil_align(prompt_len + kept, self.page_size)
            what = f"kept tokens ({kept}, the smaller of max_new_tokens and kv_budget)"
            advice = "send a shorter prompt or a smaller kv_budget"
        else:  # SGLang lets it generate what the pool has room for
            first = min(new_tokens, 1)
            needed = ceil_align(prompt_len, self.page_size) + first
            what, advice = f"generated tokens (at least {first})", "send a shorter prompt"
        if needed + self.page_size < self.pool:
            return None
        return (
            f"prompt ({prompt_len} tokens) and {what} must fit into the KV cache with a page to "
            f"spare ({self.usable} tokens); {advice}"
        )


def fit_prompt(
    room: Room,
    options: RequestOptions,
    input_ids: list[int] | None,
    length: int,
    asked: int | None,
    cut_from: int | None,
) -> None:
    """Refuses a prompt that could never be served, or cuts it with ``--allow-auto-truncate``.

    A refusal by the scheduler comes when a stream has begun; and SGLang cuts a prompt after the
    length of its answer was derived from the whole of it, so that nothing is left to generate.

    Args:
        room: Of the server.
        options: What the request asked for.
        input_ids: Its prompt, cut in place; None if it came as embeddings.
        length: Tokens of its prompt.
        asked: Tokens that it wants to generate; None for no limit.
        cut_from: Length from which on SGLang cuts a prompt; None if it cuts none.

    Raises:
        ValueError: the prompt is too long.
    """
    problem = room.refusal(options, length, room.new_tokens(asked, length))
    if input_ids and cut_from is not None and options.prompt_len is None:
        # Every policy cuts at the same token, so that the cut prompt does not depend on it.
        kept = options.budget if asked is None else min(asked, options.budget)
        most = min(room.usable, room.context_len - 2) - kept
        if most > 0 and (problem or length >= cut_from):
            logger.warning("The prompt (%d tokens) is cut to %d tokens.", length, most)
            del input_ids[most:]
            return
    if problem:
        raise ValueError(problem)
