"""`sglang.srt.managers.scheduler`: each scheduler process verifies the seams before it starts.

Why: the plugin is loaded anew in every process, and SGLang would go on without it. Remove when:
SGLang stops a process whose plugin failed.
"""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sglang.srt.plugins.hook_registry import HookType

from raas_patches import installation
from raas_patches.active import config_of
from raas_patches.backends import register_backends
from raas_patches.seam import Seam

if TYPE_CHECKING:
    from sglang.srt.managers.scheduler import Scheduler
    from sglang.srt.server_args import ServerArgs


def init(self: "Scheduler", server_args: "ServerArgs", *args: Any, **kwargs: Any) -> None:
    """Before `Scheduler.__init__`: installs what the policy needs, or ends the process."""
    config = config_of(server_args)
    if config is not None:
        installation.require_seams(config.traced)
        register_backends()


def get_init_info(result: dict[str, Any], self: "Scheduler") -> dict[str, Any]:
    """After `Scheduler.get_init_info`: tells the parent, and `/server_info`, what it runs with."""
    config = config_of(self.server_args)
    return result if config is None else {**result, **asdict(config)}


_PATH = "sglang.srt.managers.scheduler.Scheduler."
SEAMS = (
    Seam(
        _PATH + "__init__",
        HookType.BEFORE,
        init,
        ("self", "server_args", "port_args"),
        "verifies the seams in each scheduler process",
        "SGLang stops a process whose plugin failed",
        "tests/server/test_budget.py::test_resident_length_stops_at_the_budget",
    ),
    Seam(
        _PATH + "get_init_info",
        HookType.AFTER,
        get_init_info,
        ("self",),
        "tells the parent that the policy is on",
        "SGLang stops a process whose plugin failed",
        "tests/server/test_routes.py::test_server_info_tells_policy_and_budget",
    ),
)
