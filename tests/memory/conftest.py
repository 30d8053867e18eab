"""The hooks that all simulations of this process share."""

from collections.abc import Iterator

import pytest
import torch
from sglang.srt.server_args import ServerArgs

from memory_hooks import MODEL, PAGE_SIZE, install_hooks


@pytest.fixture(scope="session")
def server_args() -> Iterator[ServerArgs]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the tensors are tiny
    yield install_hooks(MODEL, PAGE_SIZE)
    torch.set_num_threads(threads)
