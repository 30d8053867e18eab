"""SGLang's frontend language with a policy and a budget for each ``gen`` call.

    import sglang as sgl
    from raas_sglang import lang as raas

    @sgl.function
    def solve(s, prompt):
        s += prompt + raas.gen("thought", stop=" answer", kv_policy="raas", kv_budget=1024)
        s += " answer" + raas.gen("answer", max_tokens=2, kv_policy="dense")

Importing this module is enough: it prepares the client process, where no plugin is loaded, and
lets ``sgl.Runtime`` take the settings of ``RaasConfig`` (``kv_policy="raas"``) as arguments.
"""

from typing import Any

import sglang as sgl
from sglang.lang.ir import SglExpr, SglGen

from raas_sglang.life.options import BUDGET_KEY, POLICY_KEY
from raas_sglang.patches import patches


def gen(
    name: str | None = None,
    *args: Any,
    kv_policy: str | None = None,
    kv_budget: int | None = None,
    **kwargs: Any,
) -> SglExpr:
    """Calls the model as ``sgl.gen`` does, with a policy and a budget of this call's own.

    Values are checked by the server: a program that runs on a thread has its refusal in
    ``state.error()``, one that runs with ``use_thread=False`` raises it.

    Args:
        name: Name of the variable that takes the text.
        *args: As of ``sgl.gen``.
        kv_policy: Policy of this call; None for the server's ``--kv-policy``.
        kv_budget: Generated tokens that this call keeps; None for the server's ``--kv-budget``.
        **kwargs: As of ``sgl.gen``.

    Returns:
        The expression to add to a program's state.

    Raises:
        ValueError: a policy or a budget was given together with ``choices``.
        RuntimeError: SGLang's code is not what RaaS was tested with, so they would be lost.
    """
    expr = sgl.gen(name, *args, **kwargs)
    asked = {POLICY_KEY: kv_policy, BUDGET_KEY: kv_budget}
    choice = {key: value for key, value in asked.items() if value is not None}
    if not choice:
        return expr
    if not isinstance(expr, SglGen):
        raise ValueError(
            f"{' and '.join(choice)} must be used with generated text, got gen({name!r}, "
            "choices=...), which scores its choices and generates nothing; leave them out"
        )
    hooks = patches("lang")
    hooks.require()
    hooks.attach_choice(expr.sampling_params, choice)
    return expr


# `sgl.Runtime` needs the hooks before any `gen` is called.
patches("lang").install()
