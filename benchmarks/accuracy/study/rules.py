"""All rules by the names that the command line uses; the engine's policies have their own."""

from dataclasses import fields

from benchmarks.accuracy.study.controls import Mass, Paper, Random, Window
from benchmarks.accuracy.study.expected import Expected, ExpectedAttention, ExpectedGap
from benchmarks.accuracy.study.gap import Gap
from benchmarks.accuracy.study.rivals import RKV, SnapKV, Tova
from benchmarks.accuracy.study.rule import Rule
from benchmarks.accuracy.study.tri_attention import TriAttention

RULES: dict[str, type[Rule]] = {
    "raas": Expected,
    "raas-gap": ExpectedGap,
    "gap": Gap,
    "raas-paper": Paper,
    "window": Window,
    "random": Random,
    "h2o": Mass,
    "tova": Tova,
    "snapkv": SnapKV,
    "r-kv": RKV,
    "expected-attention": ExpectedAttention,
    "tri-attention": TriAttention,
}


def make_rule(text: str) -> Rule:
    """Returns the rule of a method such as ``raas:spread=4,linear=0``.

    Raises:
        ValueError: there is no such rule, or it has no such setting.
    """
    name, _, rest = text.partition(":")
    if name not in RULES:
        raise ValueError(f"a method must be dense or one of {', '.join(RULES)}, got {text!r}")
    given = dict(item.partition("=")[::2] for item in rest.split(",") if item)
    known = {x.name: type(x.default) for x in fields(RULES[name]) if x.init}
    unknown = given.keys() - known.keys()
    if unknown:
        raise ValueError(
            f"settings of {name} must be among {', '.join(known)}, got {', '.join(unknown)}"
        )
    return RULES[name](**{key: known[key](value) for key, value in given.items()})
