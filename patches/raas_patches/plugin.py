"""Entry point of SGLang's plugin group ``sglang.srt.plugins``."""

import logging
import sys

from raas_patches import installation
from raas_patches.seam import version_problem

logger = logging.getLogger(__name__)


def register() -> None:
    """Called by SGLang in the server's process and in each scheduler, before anything else.

    On another SGLang nothing is hooked, so that it runs as without the plugin.

    Raises:
        SystemExit: the command line asks for a policy there, which SGLang would only not know.
    """
    wrong_version = version_problem()
    if wrong_version:
        if any(arg.partition("=")[0] == "--kv-policy" for arg in sys.argv):
            sys.exit(f"error: --kv-policy refused: {wrong_version}")
        logger.warning("--kv-policy is not available: %s", wrong_version)
        return
    installation.install_always()
    from raas_patches.server_args import declare_settings  # of an SGLang that was tested

    declare_settings()
