"""What is freed goes back to the system."""

import platform
from pathlib import Path

import pytest
import torch

from ranksearch import memory

PIECES, LENGTH = 8_000, 8_192  # of 32 kB, below what the allocator maps by itself: 256 MB


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator has no such call")
def test_what_lies_between_pieces_in_use_is_given_back() -> None:
    pieces = [torch.ones(LENGTH) for _ in range(PIECES)]
    kept = pieces[::100]
    del pieces
    before = resident()

    memory.trim()

    assert before - resident() > 0.8 * PIECES * LENGTH * 4
    assert all(float(piece.sum()) == LENGTH for piece in kept)
