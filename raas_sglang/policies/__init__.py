"""The policies, one file each; a new one is listed here and known to the kernels by a `Policy`."""

from raas_sglang.policies import dense, h2o, raas, raas_paper, random, window
from raas_sglang.policies.policy import NaiveHead, PolicyInfo

POLICIES: dict[str, PolicyInfo] = {
    info.name: info
    for info in (
        dense.POLICY,
        raas.POLICY,
        raas_paper.POLICY,
        window.POLICY,
        random.POLICY,
        h2o.POLICY,
    )
}

__all__ = ["POLICIES", "NaiveHead", "PolicyInfo"]
