"""Installs the seams, and refuses to run on an SGLang where one of them is not as tested.

SGLang's own loader fails open: it logs an exception of a plugin or a missing target and goes on.
So whoever asked for ``--kv-policy`` gets every seam verified in the parent and in each scheduler
process, after the hooks are in.
"""

import logging
import sys
from importlib import import_module
from typing import NamedTuple

from sglang.srt.plugins.hook_registry import HookRegistry

from raas_patches.seam import Reliance, Seam, version_problem
from raas_patches.tested import use_problems, uses
from raas_patches.watched import WATCHED, WITH_FLASHINFER
from raas_sglang import SUPPORTED_SGLANG

logger = logging.getLogger(__name__)

# Installed in the server's process and in every scheduler, with a policy or without.
ALWAYS = ("server_args", "scheduler_always", "tokenizer_manager_always")
# Installed only where a policy was asked for, so that without one nothing of SGLang changes.
WITH_POLICY = (
    "engine",
    "http_server",
    "tokenizer_manager",
    "output_streamer",
    "scheduler",
    "managers_utils",
    "new_token_ratio_tracker",
    "schedule_batch",
    "allocation",
    "unified_radix_cache",
    "kv_cache_configurator",
    "forward_batch_info",
    "model_runner",
    "weight_updater",
    "models_utils",
    "metrics_reporter",
    "metrics_collector",
)
# Installed only with `--kv-trace-endpoint`, so that they cost nothing without it.
WITH_TRACE = ("tp_worker",)
# Frontend programs install these in the client; `--kv-policy` does not need them.
ELSEWHERE = ("lang",)


class Verdict(NamedTuple):
    """What verification found about one seam."""

    seam: Seam
    problem: str | None


def seams(modules: tuple[str, ...]) -> list[Seam]:
    """Returns the seams that the named modules of this package declare."""
    return [seam for name in modules for seam in import_module(f"raas_patches.{name}").SEAMS]


def install_always() -> None:
    """Registers the hooks that every process has; `load_plugins` applies them afterwards.

    A seam that is not as tested is left alone, so that SGLang without a policy runs as it would
    without the plugin; with a policy `require_seams` refuses.
    """
    for verdict in verify(ALWAYS):
        if verdict.problem:
            name = verdict.seam.name
            logger.warning("--kv-policy will be refused: %s is %s", name, verdict.problem)
        else:
            verdict.seam.install()


def verify(modules: tuple[str, ...] = ALWAYS + WITH_POLICY + WITH_TRACE) -> list[Verdict]:
    """Compares the seams with the installed SGLang, without changing anything."""
    return [Verdict(seam, seam.problem()) for seam in seams(modules)]


def require_seams(traced: bool = False) -> None:
    """Installs the seams that a policy needs and checks that all of them are in.

    Args:
        traced: Whether a trace stream was asked for as well.

    Raises:
        RuntimeError: SGLang's version, a seam or a function that we rely on is not as tested, or a
            hook is not in.
    """
    wrong_version = version_problem()
    if wrong_version:
        raise RuntimeError(f"--kv-policy refused: {wrong_version}")
    _refuse([f"{v.seam.name} is {v.problem}" for v in verify() if v.problem])
    _require_relied_on(WATCHED, [module for module in uses() if module in sys.modules])
    every = seams(ALWAYS + WITH_POLICY + (WITH_TRACE if traced else ()))
    for seam in every:
        seam.install()
    HookRegistry.apply_hooks()
    _refuse([f"{seam.name} is not hooked" for seam in every if not seam.is_installed()])


def require_flashinfer() -> None:
    """Checks what the decode backend of a GPU relies on, once FlashInfer is imported.

    Raises:
        RuntimeError: something of it is not as tested.
    """
    _require_relied_on(WITH_FLASHINFER, ["raas_sglang.attention.flashinfer"])


def _require_relied_on(reliances: tuple[Reliance, ...], modules: list[str]) -> None:
    """Refuses functions that are not as tested; attributes take seconds, which `check` has."""
    problems = {reliance.name: reliance.problem() for reliance in reliances}
    for module in modules:
        problems |= use_problems(module, attributes=False)
    _refuse([f"{name} is {problem}" for name, problem in problems.items() if problem])


def _refuse(problems: list[str]) -> None:
    if problems:
        raise RuntimeError(
            f"--kv-policy refused: {'; '.join(problems)}. Install what RaaS was tested with, "
            f"unchanged: pip install --force-reinstall sglang=={SUPPORTED_SGLANG}. What else "
            "differs: python -m raas_sglang check."
        )
