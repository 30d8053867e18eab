"""What the documents name exists: links, flags, targets, modules, parameters, metrics."""

import argparse
import importlib.util
import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from sglang.srt.server_args import ServerArgs

from raas_sglang import SUPPORTED_SGLANG, __version__
from raas_sglang.config import POLICY_NAMES, RaasConfig, add_flags
from raas_sglang.life.options import parse_options
from raas_sglang.life.request import REPORT_FIELDS
from raas_sglang.metrics import METRIC_NAMES
from raas_sglang.support.settings import REFUSALS

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "benchmarks/*.md", "reasoner/*.md")
    for path in ROOT.glob(pattern)
)
# A changelog names what is gone, and the study names rules of engines that are gone.
HISTORY = {"CHANGELOG.md", "docs/accuracy.md"}
TODAY = [page for page in PAGES if page not in HISTORY]
GENERATED = re.compile(r"<!-- report: .*?<!-- end of report -->", re.DOTALL)
BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]+")
OF_GITHUB = ("../../actions", "../../security")  # pages that GitHub makes
OF_OTHER_TOOLS = {
    "--error-exitcode",
    "--report-api-errors",
    "--tool",
    "--editable",
    "--worker-urls",
}


def text_of(page: str) -> str:
    """A page without what `benchmarks.report` writes, which it checks itself."""
    return GENERATED.sub("", (ROOT / page).read_text())


def blocks(page: str, *languages: str) -> list[str]:
    return [code for language, code in BLOCK.findall(text_of(page)) if language in languages]


def slugs(page: Path) -> set[str]:
    """The anchors that GitHub gives to headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    for link in LINK.findall((ROOT / page).read_text()):
        if link.startswith(("http://", "https://", *OF_GITHUB)):
            continue
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), link
        if anchor:
            assert anchor in slugs(target), link


def test_every_page_can_be_reached_from_the_front_page():
    seen, queue = set(), ["README.md"]
    while queue:
        page = queue.pop()
        if page in seen or page not in PAGES:
            continue
        seen.add(page)
        for link in LINK.findall((ROOT / page).read_text()):
            if not link.startswith("http"):
                target = ((ROOT / page).parent / link.partition("#")[0]).resolve()
                if target.is_relative_to(ROOT):
                    queue.append(target.relative_to(ROOT).as_posix())
    assert set(PAGES) <= seen


@pytest.fixture(scope="module")
def flags() -> set[str]:
    """Flags of SGLang, of the plugin, and of every script here."""
    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    if "--kv-policy" not in parser._option_string_actions:  # hooked where plugins are loaded
        add_flags(parser)
    scripts = [ROOT / "raas_sglang" / "__main__.py", *(ROOT / "tests").glob("*.py")]
    for folder in ("benchmarks", "examples", "reasoner"):
        scripts += (ROOT / folder).rglob("*.py")
    own = {flag for path in scripts for flag in re.findall(r'"(--[a-z0-9-]+)"', path.read_text())}
    return set(parser._option_string_actions) | own | OF_OTHER_TOOLS | {"--help"}


@pytest.mark.parametrize("page", TODAY)
def test_every_flag_exists(page, flags):
    named = set(FLAG.findall(re.sub(r"<!--.*?-->", "", text_of(page), flags=re.DOTALL)))
    assert named <= flags, named - flags


def test_every_flag_of_ours_and_every_refusal_is_described():
    page = text_of("docs/serving.md")
    ours = {"--" + name.replace("_", "-") for name in RaasConfig.__dataclass_fields__}
    missing = [name for name in ours | {r.flag for r in REFUSALS} if f"`{name}`" not in page]
    assert not missing


def test_every_policy_is_described_and_no_other():
    for page in ("README.md", "docs/policies.md"):
        (table,) = re.findall(r"^\| `kv_policy` \|.*?(?=\n\n)", text_of(page), re.M | re.S)
        first = "".join(line.split("|")[1] for line in table.splitlines()[2:])
        assert sorted(re.findall(r"`([\w-]+)`", first)) == sorted(POLICY_NAMES), page


def test_every_metric_is_described_and_no_other():
    named = re.findall(r"sglang:kv_\w+", text_of("docs/observability.md"))
    assert set(named) == set(METRIC_NAMES)


def test_the_report_is_shown_with_its_fields():
    (report,) = [json.loads(code) for code in blocks("README.md", "json")]
    assert tuple(report) == REPORT_FIELDS


@pytest.mark.parametrize("page", ["README.md", "docs/serving.md"])
def test_every_choice_that_is_shown_is_accepted(page):
    config = RaasConfig(kv_policy="raas", kv_budget=1024)
    shown = re.findall(r'"custom_params": (\{[^{}]*\})', text_of(page))
    assert shown
    for choice in shown:
        assert parse_options(json.loads(choice), config, 32768, 16000, 1000) is not None, choice


def test_every_make_target_exists():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    workflows = [path.read_text() for path in (ROOT / ".github").rglob("*") if path.is_file()]
    code = "\n".join(block for page in TODAY for block in blocks(page, "bash"))
    named = set(re.findall(r"^make ([\w-]+)", code, re.MULTILINE))
    named |= set(re.findall(r"`make ([\w-]+)", "\n".join(map(text_of, TODAY))))
    named |= set(re.findall(r"run: make ([\w-]+)", "\n".join(workflows)))
    assert named <= targets, named - targets


@pytest.mark.parametrize("page", TODAY)
def test_every_module_and_script_exists(page):
    text = text_of(page)
    for module in set(re.findall(r"python3? -m ([a-z_.0-9]+)", text)):
        ours = module.startswith(("benchmarks.", "examples.", "reasoner."))
        assert importlib.util.find_spec(module if ours else module.partition(".")[0]), module
    for script in set(re.findall(r"python3? ((?:benchmarks|tests|examples)/[\w/]+\.py)", text)):
        assert (ROOT / script).exists(), script


@pytest.mark.parametrize("page", TODAY)
def test_every_block_of_code_can_be_read(page):
    for code in blocks(page, "python"):
        compile(code, page, "exec")
        # SGLang's processes import the file that starts them.
        assert "sgl.Engine(" not in code or 'if __name__ == "__main__":' in code
    for code in blocks(page, "json"):
        json.loads(code)
    for code in blocks(page, "bash"):
        done = subprocess.run(["bash", "-n"], input=code, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr
    assert not blocks(page, ""), "a block of code must say its language"


def test_the_front_page_is_short():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    assert len(lines[2].split()) <= 25, "one sentence says what this is"


def test_versions_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    assert f"SGLang-{SUPPORTED_SGLANG}-" in text_of("README.md"), "the badge"
    for path in (ROOT / ".github").rglob("*.yml"):
        assert yaml.safe_load(path.read_text()), path
