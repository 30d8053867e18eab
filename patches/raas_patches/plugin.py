"""Entry point of SGLang's plugin group ``sglang.srt.plugins``."""

from raas_patches import installation


def register() -> None:
    """Called by SGLang in the server's process and in each scheduler, before anything else."""
    installation.install_always()
