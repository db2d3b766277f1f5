"""A toy whose `conv1` does what its rank says: raise, exit, hang, or give NaN. Other ranks behave."""

import os
import time

import torch
from torch import Tensor

from ranksearch.tasks import Task
from tests.toy import ToyNet, toy_task, trained_net

RAISES, EXITS, HANGS, NANS, HOLDS_THE_INTERPRETER = 3, 5, 7, 9, 11


class TreacherousNet(ToyNet):
    def forward(self, images: Tensor) -> Tensor:
        if isinstance(self.conv1, torch.nn.Sequential):
            misbehave(self.conv1[0].out_channels)
            if self.conv1[0].out_channels == NANS:
                return super().forward(images) * float("nan")
        return super().forward(images)


def misbehave(rank: int) -> None:
    if rank == RAISES:
        raise RuntimeError("treachery")
    if rank == EXITS:
        os._exit(9)
    while rank == HANGS:
        time.sleep(0.05)
    if rank == HOLDS_THE_INTERPRETER:
        import re

        re.match(r"(a+)+$", "a" * 64 + "b")  # one native call that takes longer than the universe has


def treacherous_task() -> Task:
    net = TreacherousNet()
    net.load_state_dict(trained_net().state_dict())
    return toy_task(net)
