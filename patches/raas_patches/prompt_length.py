"""`sglang.srt.managers.tokenizer_manager`: prompts that the pool can never hold.

Why: a refusal by the scheduler comes when a stream has begun, and `--allow-auto-truncate` cuts a
prompt after the length of its answer was derived from the whole of it, so that nothing is left to
generate. How: with the rule of admission, in the process that tokenizes. Remove when: SGLang checks
prompts against the pool there.
"""

import logging
from typing import TYPE_CHECKING

from sglang.srt.managers.io_struct import GenerateReqInput

from raas_patches.active import pool_tokens_of
from raas_sglang.life.options import RequestOptions
from raas_sglang.life.reservation import refusal, usable

if TYPE_CHECKING:
    from sglang.srt.managers.tokenizer_manager import TokenizerManager

logger = logging.getLogger(__name__)


def fit_prompt(
    manager: "TokenizerManager",
    obj: GenerateReqInput,
    input_ids: list[int] | None,
    options: RequestOptions,
    new_tokens: int,
) -> None:
    """Refuses a prompt that could never be served, or cuts it with ``--allow-auto-truncate``.

    Args:
        manager: Knows the sizes.
        obj: The request.
        input_ids: Its prompt, cut in place; None if it came as embeddings.
        options: What it asked for.
        new_tokens: Tokens that it may generate.

    Raises:
        ValueError: the prompt is too long.
    """
    pool, page_size = pool_tokens_of(manager), manager.server_args.page_size
    length = len(obj.input_embeds or ()) if input_ids is None else len(input_ids)
    most_new = max(0, min(new_tokens, manager.context_len - length - 2))
    problem = refusal(options, length, most_new, page_size, pool)
    if input_ids and manager.allow_auto_truncate and options.prompt_len is None:
        # The same of every policy, so that a cut prompt does not depend on it.
        room = min(new_tokens, options.budget)
        most = min(usable(page_size, pool), manager.context_len - 2) - room
        if most > 0 and (problem or length >= manager.max_req_input_len):
            logger.warning("The prompt (%d tokens) is cut to %d tokens.", length, most)
            del input_ids[most:]
            return
    if problem:
        raise ValueError(problem)
