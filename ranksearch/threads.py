"""How many threads torch works with on a CPU, for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["threads"]


@contextmanager
def threads(num_threads: int) -> Iterator[None]:
    """That many, and as many as before after it. One makes the same sums in the same order whatever the number of
    cores; and on a busy machine small layers on several threads wait for each other far longer than one takes."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
