"""The catalogue of hooks, docs/patches.md, made out of the seams."""

from importlib import import_module
from inspect import cleandoc

from raas_patches.installation import ALWAYS, WITH_POLICY, WITH_TRACE
from raas_patches.watched import WATCHED, WITH_FLASHINFER
from uses import Use

_HEAD = """\
# What is changed in SGLang

<!-- Made by tools/generate.py out of the seams in patches/raas_patches; do not edit. -->

Every place where SGLang behaves differently while the plugin is at work, and what it relies on without changing it. Functions are recorded as they were tested: form and parameters of each, and the source of those that are hooked, overridden or taken for granted. A server with `--kv-policy` refuses to start where one of them differs. `python -m raas_sglang check` looks for attributes as well; [development.md](development.md#move-to-another-sglang) says what to do for another SGLang.
"""
_WHEN = {
    **dict.fromkeys(ALWAYS, "In every process, with a policy or without one."),
    **dict.fromkeys(WITH_POLICY, "Only where `--kv-policy` was given."),
    **dict.fromkeys(WITH_TRACE, "Only where `--kv-trace-endpoint` was given."),
}
_OVERRIDDEN = "Methods that a subclass of ours has instead."
_USED = (
    "Functions that are called, and attributes that are read or written, as far as annotations say "
    "whose they are."
)
_ELSEWHERE = "Only in programs that import `raas_sglang.lang`."


def patches_page(modules: tuple[str, ...], used: dict[str, set[Use]]) -> str:
    """The page about the hooks of some modules of `raas_patches`, and about what is relied on."""
    parts = [_HEAD, "## Hooked\n", *map(_section, modules)]
    parts += ["## Overridden\n", _names(used, _OVERRIDDEN, ("overrides",))]
    parts += ["## Used\n", _names(used, _USED, ("calls", "reads"))]
    parts += ["## Taken for granted\n", _watched()]
    return "\n".join(parts)


def _section(name: str) -> str:
    module = import_module(f"raas_patches.{name}")
    text = cleandoc(module.__doc__ or "").replace("``", "`")
    title, _, rest = text.partition("\n\n")
    link = f"[`{name}.py`](../patches/raas_patches/{name}.py)"
    lines = [f"### {link}\n", f"{_joined(title)}\n"]
    lines += [f"{_joined(part)}\n" for part in rest.split("\n\n") if part]
    lines += [f"{_WHEN.get(name, _ELSEWHERE)}\n"]
    if not module.SEAMS:
        return "\n".join(lines)
    lines += ["| hooked | how | what for | until | test |", "| --- | --- | --- | --- | --- |"]
    for seam in module.SEAMS:
        cells = (f"`{seam.name}`", seam.kind.value, seam.why, seam.remove_when, _test(seam.test))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _test(test: str) -> str:
    path, _, name = test.partition("::")
    return f"[`{name}`](../{path})"


def _names(used: dict[str, set[Use]], title: str, hows: tuple[str, ...]) -> str:
    """A row for each module of ours with what it uses in one of these ways."""
    lines = [f"{title}\n", "| in | names |", "| --- | --- |"]
    for module, uses in used.items():
        names = sorted(use.target.removeprefix("sglang.srt.") for use in uses if use.how in hows)
        if names:
            lines.append(f"| `{module}` | {', '.join(f'`{name}`' for name in names)} |")
    return "\n".join(lines) + "\n"


def _watched() -> str:
    lines = ["| function | what is taken for granted |", "| --- | --- |"]
    lines += [f"| `{each.name}` | {each.why} |" for each in WATCHED + WITH_FLASHINFER]
    return "\n".join(lines) + "\n"


def _joined(text: str) -> str:
    return " ".join(text.split())
