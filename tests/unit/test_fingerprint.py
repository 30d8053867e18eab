"""What is recorded of SGLang notices what names and parameters do not say."""

import functools
import sys
from dataclasses import dataclass, field
from types import ModuleType
from uuid import uuid4

import msgspec
import pytest
from sglang.srt.managers import schedule_policy

import uses
from raas_patches import installation, tested
from raas_patches.attributes import names_of
from raas_patches.fingerprint import fingerprint
from raas_sglang.life.admission import ReservingPrefillAdder

BODY = """
def f(self, a, *, b=1):
    return a + b
"""


@pytest.fixture
def of(tmp_path, monkeypatch):
    """The fingerprint of the function or method ``f`` of a module with some source."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def look(source: str, name: str = "f"):
        path = tmp_path / f"made_up_{uuid4().hex}.py"
        path.write_text(source)
        return fingerprint(f"{path.stem}.{name}")

    return look


def test_comments_docstrings_and_line_breaks_do_not_count(of):
    other = BODY.replace("return a + b", '"""Adds."""\n    # at last\n    return (a +\n        b)')
    assert of(BODY).difference(of(other)) is None


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("a + b", "a - b", "another source"),
        ("b=1", "b=2", "another source"),
        ("*, b", "b", "parameters are (self, a, b), tested were (self, a, *, b)"),
        ("return", "yield", "it is a generator, tested was a function"),
        ("def", "async def", "it is a coroutine, tested was a function"),
    ],
)
def test_what_else_changes_is_noticed(of, before, after, said):
    assert said in of(BODY.replace(before, after)).difference(of(BODY))


def test_a_property_is_another_form_than_a_method(of):
    methods = "class C:\n    @property\n    def f(self): ...\n    @classmethod\n    def g(cls): ..."
    assert of(methods, "C.f").form == "property, function"
    assert of(methods, "C.g").form == "class method, function"


def test_a_wrapper_is_looked_through(monkeypatch):
    module = ModuleType("made_up")
    monkeypatch.setitem(sys.modules, "made_up", module)
    module.f = uses._given
    bare = fingerprint("made_up.f")
    module.f = functools.wraps(module.f)(lambda *args: None)
    assert fingerprint("made_up.f") == bare


def test_a_subclass_of_ours_is_looked_through(monkeypatch):
    target = "sglang.srt.managers.schedule_policy.PrefillAdder.add_one_req"
    monkeypatch.setattr(schedule_policy, "PrefillAdder", ReservingPrefillAdder)
    assert fingerprint(target).difference(tested.functions()[target]) is None


class Assigned:
    shared = 1

    def __init__(self):
        self.first, self.second = 1, 2

    def later(self):
        self.third: int = 3


class Derived(Assigned):
    @property
    def fourth(self): ...


@dataclass
class Fields:
    one: int
    many: list = field(default_factory=list)


class Struct(msgspec.Struct):
    inside: int


@pytest.mark.parametrize(
    ("cls", "names"),
    [
        (Derived, {"shared", "first", "second", "third", "later", "fourth"}),
        (Fields, {"one", "many"}),
        (Struct, {"inside"}),
    ],
)
def test_attributes_are_found_without_an_instance(cls, names):
    assert names <= names_of(cls)
    assert "absent" not in names_of(cls)


def test_what_our_hooks_use_is_found_through_annotations():
    found = {use for targets in uses.uses().values() for use in targets}
    batch = "sglang.srt.managers.schedule_batch."
    adder = "sglang.srt.managers.schedule_policy.PrefillAdder."
    assert uses.Use(batch + "ReqKvInfo.kv_allocated_len", "reads") in found, "of each req of a list"
    assert uses.Use(batch + "Req.set_finish_with_abort", "calls") in found
    assert uses.Use(adder + "add_one_req", "overrides") in found


def test_an_attribute_that_is_gone_is_named(monkeypatch):
    gone = "sglang.srt.managers.schedule_batch.Req.prefix_indices"
    monkeypatch.setitem(tested.uses(), "raas_patches.allocation", [gone])
    assert tested.use_problems("raas_patches.allocation") == {
        gone: "missing (no attribute 'prefix_indices')"
    }


@pytest.mark.parametrize(
    "target",
    [
        "sglang.srt.mem_cache.allocation.alloc_for_decode",  # hooked
        "sglang.srt.mem_cache.common.release_kv_cache",  # watched
        "sglang.srt.managers.schedule_policy.PrefillAdder.add_one_req",  # overridden
    ],
)
def test_a_server_refuses_to_start_on_another_source(target, monkeypatch):
    changed = tested.functions()[target]._replace(source="another")
    monkeypatch.setitem(tested.functions(), target, changed)
    with pytest.raises(RuntimeError, match=rf"{target.rpartition('.')[2]} is changed.*pip install"):
        installation.require_seams()
