"""The pools of a profile: both arms must fit on one GPU, however long the dense texts are."""

from benchmarks.harness.decode_run import Workload
from benchmarks.serving.profile import flags_of, parse_args
from reasoner import REASONER


def test_an_evicting_arm_needs_no_pool_for_the_length_of_dense_texts(monkeypatch):
    flags = ["profile_step.py", "--batches", "16", "--logical", "32768", "--out", "rows.jsonl"]
    monkeypatch.setattr("sys.argv", flags)
    args = parse_args()
    load = Workload(args.prompt, args.kv_budget, 32, args.interval, args.seed, REASONER)
    pools = {}
    for arm in ("default", "raas"):
        given = flags_of(args, load, arm)
        pools[arm] = int(given[given.index("--max-total-tokens") + 1])
    assert pools["default"] > 16 * 32768
    assert 16 * (256 + 1024) < pools["raas"] < pools["default"] / 10
