"""What ``python -m raas_sglang check`` says of this SGLang: of hooks, and of what is relied on."""

from collections.abc import Iterator

from raas_patches.installation import ALWAYS, ELSEWHERE, WITH_POLICY, WITH_TRACE, verify
from raas_patches.tested import use_problems, uses
from raas_patches.watched import WATCHED, WITH_FLASHINFER

Row = tuple[str, str, str]


def rows() -> Iterator[Row]:
    """One row for each hook and each watched function, and one for each module of ours.

    A module that another SGLang does not let us import is one row.
    """
    for module in ALWAYS + WITH_POLICY + WITH_TRACE + ELSEWHERE:
        try:
            verdicts = verify((module,))
        except (ImportError, AttributeError) as error:
            yield f"raas_patches.{module}", "WRONG", f"cannot be imported ({error})"
            continue
        for verdict in verdicts:
            yield _row(verdict.seam.name, verdict.problem, verdict.seam.why)
    for reliance in WATCHED + WITH_FLASHINFER:
        yield _row(reliance.name, reliance.problem(), f"relied on: {reliance.why}")
    for module, targets in uses().items():
        problems = use_problems(module)
        for target, problem in problems.items():
            yield _row(target, problem, "")
        yield module, "ok", f"names that it uses: {len(targets) - len(problems)}, as tested"


def played() -> Iterator[Row]:
    """One row for each scenario that SGLang's scheduler was played through."""
    try:
        from raas_patches.probe.process import become_scheduler
        from raas_patches.probe.scenarios import play

        server_args = become_scheduler()
    except Exception as error:  # noqa: BLE001 - another SGLang raises what it likes
        yield "played", "WRONG", f"cannot be played ({type(error).__name__}: {error})"
        return
    for name, problem, asked in play(server_args):
        yield _row(f"played: {name.replace('_', ' ')}", problem, asked)


def _row(name: str, problem: str | None, why: str) -> Row:
    return name, "WRONG" if problem else "ok", problem or why
