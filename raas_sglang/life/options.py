"""What one request asks for: a policy, a budget, and where its prompt ends.

Two processes read it, since nothing but the request's own parameters travels between them: the one
that tokenizes, so that a bad choice is a 400 before anything else sees it, and the scheduler's.
Both call `parse_options`, with the same arguments.
"""

from dataclasses import dataclass
from typing import Any

from raas_kernels import Policy
from raas_sglang.config import POLICY_NAMES, RaasConfig, check_budget
from raas_sglang.policies import POLICIES

POLICY_KEY, BUDGET_KEY, PROMPT_KEY = "kv_policy", "kv_budget", "kv_prompt_len"
TRACE_KEY = "kv_trace"
_KEYS = {POLICY_KEY, BUDGET_KEY, PROMPT_KEY, TRACE_KEY}
_RESERVED_PREFIX = "kv_"


@dataclass(frozen=True)
class RequestOptions:
    """Policy and budget of one request.

    Attributes:
        policy: Its policy; the server's where the request named none.
        budget: L in tokens; the server's where the request named none.
        evicts: Whether it can ever give up a token. False for dense requests and where all that
            it may generate fits into the budget.
        prompt_len: P in tokens where the request named it, since the rest of its input was
            generated before; None where all of its input is prompt.
        traced: Whether a trace stream may show it.
    """

    policy: Policy
    budget: int
    evicts: bool
    prompt_len: int | None = None
    traced: bool = True

    def prompt_of(self, input_len: int) -> int:
        """P of an input of so many tokens."""
        return input_len if self.prompt_len is None else min(self.prompt_len, input_len)

    def most_tokens(self, input_len: int, new_tokens: int) -> tuple[int, int]:
        """Tokens of its prompt, and generated ones that a bounded request keeps at most.

        Args:
            input_len: Tokens of its input.
            new_tokens: Tokens that it may generate.
        """
        prompt_len = self.prompt_of(input_len)
        return prompt_len, min(input_len - prompt_len + new_tokens, self.budget)

    @property
    def is_bounded(self) -> bool:
        """Whether it can never hold more than P + L slots; true of every policy but dense."""
        return self.policy is not Policy.DENSE


def parse_options(
    custom_params: Any,
    config: RaasConfig | None,
    context_len: int,
    max_new_tokens: int | None,
    input_len: int | None = None,
    beam_width: int | None = None,
) -> RequestOptions | None:
    """Reads ``sampling_params.custom_params`` of a request.

    ``kv_policy`` and ``kv_budget`` choose what is kept. ``kv_prompt_len`` is for an answer that was
    aborted and is sent again, its prompt before it, as input: only the first ``kv_prompt_len``
    tokens are the prompt, the others count as generated. So the request goes on within its budget
    as if it had been retracted, not aborted; only its prompt and its last L tokens are computed
    again. To everything but the KV cache the others are input: ``max_new_tokens``, penalties, stop
    conditions, usage. ``kv_trace`` false keeps the request out of the trace stream.

    Args:
        custom_params: As the client sent it; keys other than ``kv_*`` are left to others.
        config: The server's settings, or None if it was started without ``--kv-policy``.
        context_len: The model's context length in tokens.
        max_new_tokens: As the client sent it; None for no limit.
        input_len: Tokens of its input; None where they are not known yet.
        beam_width: As the client sent it; above 1 asks for a beam search.

    Returns:
        The options, or None if the plugin is off and the request asks for nothing.

    Raises:
        ValueError: anything is wrong with it; the text is meant for the client.
    """
    if config is None:
        _refuse_without_config(custom_params)
        return None
    if (beam_width or 1) > 1:
        raise ValueError(
            f"beam_width must be 1 on a server started with --kv-policy, got {beam_width}; leave "
            "it out, since the beams of a request have no budgets of their own"
        )
    asked = _asked(custom_params)
    policy = asked.get(POLICY_KEY, config.kv_policy)
    if not isinstance(policy, str) or policy not in POLICY_NAMES:
        raise ValueError(f"kv_policy must be one of {', '.join(POLICY_NAMES)}, got {policy!r}")
    prompt_len = asked.get(PROMPT_KEY)
    if PROMPT_KEY in asked:
        _check_prompt_len(prompt_len, input_len)
    generated = 0 if prompt_len is None or input_len is None else input_len - prompt_len
    limit = context_len
    if max_new_tokens is not None:
        limit = min(limit, generated + max_new_tokens)
    budget = asked.get(BUDGET_KEY, config.kv_budget)
    if BUDGET_KEY in asked:  # the server's may be larger: then nothing is given up
        _check_within_context(budget, context_len)
    _check_request_budget(budget, config, limit)
    traced = asked.get(TRACE_KEY, True)
    if not isinstance(traced, bool):
        raise ValueError(
            f"{TRACE_KEY} must be true or false, got {traced!r}; "
            "send false to keep the request out of the trace stream"
        )
    kind = POLICIES[policy].kind
    evicts = kind is not Policy.DENSE and budget < limit
    return RequestOptions(kind, budget, evicts, prompt_len, traced)


def admitted_options(
    params: Any, config: RaasConfig, context_len: int, input_len: int
) -> tuple[RequestOptions, str | None]:
    """Reads the sampling parameters of a request that the scheduler was given.

    The server's process has refused what is wrong already; this is for whoever sends past it.

    Args:
        params: SGLang's `SamplingParams`.
        config: The server's settings.
        context_len: The model's context length in tokens.
        input_len: Tokens of its input.

    Returns:
        The options and None, or those of a dense request and what is wrong.
    """
    dense = RequestOptions(Policy.DENSE, config.kv_budget, evicts=False)
    asked, limit, beams = params.custom_params, params.max_new_tokens, params.beam_width
    try:
        options = parse_options(asked, config, context_len, limit, input_len, beams)
    except ValueError as error:
        return dense, str(error)
    return options or dense, None


def names_choice(custom_params: Any) -> bool:
    """Whether `parse_options` would read something out of it, or refuse it."""
    return not isinstance(custom_params, dict) or any(map(is_ours, custom_params))


def _refuse_without_config(custom_params: Any) -> None:
    if not isinstance(custom_params, dict):
        return
    asked = sorted(_KEYS & set(custom_params))
    if asked:
        raise ValueError(
            f"custom_params {asked} must be sent to a server started with --kv-policy, "
            "got one without; restart it with --kv-policy dense or --kv-policy raas"
        )


def _asked(custom_params: Any) -> dict[str, Any]:
    if custom_params is None:
        return {}
    if not isinstance(custom_params, dict):
        kind = type(custom_params).__name__
        raise ValueError(
            f"custom_params must be an object, got {kind}; "
            'send {"kv_policy": "raas", "kv_budget": 1024}'
        )
    asked = {key: custom_params[key] for key in custom_params if is_ours(key)}
    unknown = sorted(set(asked) - _KEYS)
    if unknown:
        raise ValueError(
            f"custom_params must hold {POLICY_KEY}, {BUDGET_KEY}, {PROMPT_KEY} or {TRACE_KEY}, "
            f"got unknown {unknown}; check the spelling"
        )
    return asked


def is_ours(key: Any) -> bool:
    """Whether a key of ``custom_params`` is for us, known or not."""
    return isinstance(key, str) and key.startswith(_RESERVED_PREFIX)


def _check_prompt_len(prompt_len: Any, input_len: int | None) -> None:
    is_count = isinstance(prompt_len, int) and not isinstance(prompt_len, bool) and prompt_len > 0
    if not is_count or (input_len is not None and prompt_len > input_len):
        known = "" if input_len is None else f" ({input_len})"
        raise ValueError(
            f"{PROMPT_KEY} must be a number of tokens from 1 to the length of the input"
            f"{known}, got {prompt_len!r}; leave it out if all of the input is prompt"
        )


def _check_within_context(budget: Any, context_len: int) -> None:
    check_budget(BUDGET_KEY, budget)
    if budget > context_len:
        raise ValueError(
            f"kv_budget must be at most the context length ({context_len} tokens), got {budget}; "
            "ask for less, or send kv_policy dense and no budget"
        )


def _check_request_budget(budget: int, config: RaasConfig, limit: int) -> None:
    if limit > budget > config.max_budget:
        raise ValueError(
            f"kv_budget must be at most --kv-max-budget ({config.max_budget} tokens), "
            f"got {budget}; ask for less, or restart the server with --kv-max-budget {budget}"
        )
