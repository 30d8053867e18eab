"""`sglang.lang`: the frontend sends a policy and a budget with each ``gen`` call.

Why: the frontend's sampling parameters have no ``custom_params``, it copies a fixed list of names
from a call onto the run's defaults, and ``sgl.Runtime`` builds `ServerArgs` before any plugin is
loaded. How: ``raas_sglang.lang.gen`` leaves the choice on its expression; these hooks carry it to
the request, and load the plugins where `Engine` does. They belong to the process that runs the
program, which never calls `load_plugins`; the server needs none of them. Remove when: SGLang's
``gen`` takes ``custom_params`` and its `Runtime` loads plugins first.
"""

from typing import TYPE_CHECKING, Any

from sglang.lang.backend.runtime_endpoint import RuntimeEndpoint
from sglang.srt.plugins import load_plugins
from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from raas_patches.seam import Seam, version_problem

if TYPE_CHECKING:
    from sglang.lang.backend.runtime_endpoint import Runtime
    from sglang.lang.interpreter import StreamExecutor
    from sglang.lang.ir import SglSamplingParams

# The name under which a request carries it, so that an SGLang that learns to send it agrees.
_ATTRIBUTE = "custom_params"


def attach_choice(params: "SglSamplingParams", choice: dict[str, Any]) -> None:
    """Leaves a call's choice of policy and budget on its sampling parameters."""
    setattr(params, _ATTRIBUTE, choice)


def resolve_sampling_params(
    resolved: "SglSamplingParams", self: "StreamExecutor", sampling_params: "SglSamplingParams"
) -> None:
    """After `_resolve_sampling_params`: the call's choice goes along with its other parameters.

    Raises:
        RuntimeError: the choice would be lost on the way.
    """
    choice = getattr(sampling_params, _ATTRIBUTE, None)
    if choice is None:
        return
    if not isinstance(self.backend, RuntimeEndpoint):
        raise RuntimeError(
            f"gen({_named(choice)}) must run on RuntimeEndpoint or sgl.Runtime, got "
            f"{type(self.backend).__name__}, which cannot send it; leave it out"
        )
    if self.num_api_spec_tokens is not None:
        raise RuntimeError(
            f"gen({_named(choice)}) must run in a program without num_api_spec_tokens, which lets "
            "one call generate the text of the next; leave num_api_spec_tokens out"
        )
    setattr(resolved, _ATTRIBUTE, dict(choice))


def to_srt_kwargs(kwargs: dict[str, Any], self: "SglSamplingParams") -> dict[str, Any]:
    """After `to_srt_kwargs`: the choice becomes a sampling parameter of the request."""
    choice = getattr(self, _ATTRIBUTE, None)
    return kwargs if choice is None else {**kwargs, _ATTRIBUTE: choice}


def before_runtime(self: "Runtime", *args: Any, **kwargs: Any) -> None:
    """Before `Runtime.__init__`: `ServerArgs` learns to take our settings."""
    load_plugins()


def install() -> None:
    """Installs the seams that are as tested; `require` refuses later if one was not."""
    if version_problem() is None:
        for seam in SEAMS:
            if seam.problem() is None:
                seam.install()
    HookRegistry.apply_hooks()


def require() -> None:
    """Checks that a choice reaches the server.

    Raises:
        RuntimeError: SGLang's version or a seam is not as tested, or a hook is not in.
    """
    states = {seam.name: seam.problem() or _not_hooked(seam) for seam in SEAMS}
    wrong = [f"{name} is {state}" for name, state in states.items() if state]
    version = version_problem()
    if version or wrong:
        raise RuntimeError(
            f"gen(kv_policy=..., kv_budget=...) refused: {version or '; '.join(wrong)}. "
            "Install the SGLang version that RaaS was tested with, unchanged, and look at "
            "`python -m raas_sglang check`."
        )


def _not_hooked(seam: Seam) -> str | None:
    return None if seam.is_installed() else "not hooked"


def _named(choice: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in choice.items())


_WHY = "sends a policy and a budget with each gen call"
_UNTIL = "sgl.gen takes custom_params"
SEAMS = (
    Seam(
        "sglang.lang.interpreter.StreamExecutor._resolve_sampling_params",
        HookType.AFTER,
        resolve_sampling_params,
        ("self", "sampling_params"),
        _WHY,
        _UNTIL,
        "tests/server/test_frontend.py::test_each_call_of_a_program_has_its_own_choice",
    ),
    Seam(
        "sglang.lang.ir.SglSamplingParams.to_srt_kwargs",
        HookType.AFTER,
        to_srt_kwargs,
        ("self",),
        _WHY,
        _UNTIL,
        "tests/server/test_frontend.py::test_each_call_of_a_program_has_its_own_choice",
    ),
    Seam(
        "sglang.lang.backend.runtime_endpoint.Runtime.__init__",
        HookType.BEFORE,
        before_runtime,
        ("self", "log_level", "launch_timeout", "args", "kwargs"),
        "lets sgl.Runtime take kv_policy",
        "sgl.Runtime loads plugins before it builds ServerArgs",
        "tests/server/test_frontend.py::test_example_on_its_own_runtime",
    ),
)
