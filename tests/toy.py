"""A task small enough for tests: a two-second residual net on generated pictures. Nothing here is downloaded."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ranksearch.tasks import Task
from ranksearch.tasks.classification import cross_entropy, distillation
from ranksearch.tasks.metrics import accuracy
from ranksearch.tasks.split import ArraySplit

NUM_CLASSES = 4


class ToyNet(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.head = nn.Linear(width, NUM_CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(images)))
        x = x + F.relu(self.norm1(self.conv1(x)))
        return self.head(F.relu(self.conv2(x)).mean((2, 3)))


def pictures(num: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noisy stripes in four directions, (num, 1, 12, 12), and which direction, (num,)."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(NUM_CLASSES, (num,), generator=generator)
    angles = targets * torch.pi / NUM_CLASSES
    rows, columns = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
    phase = torch.rand(num, generator=generator) * 6
    waves = rows * angles.sin()[:, None, None] + columns * angles.cos()[:, None, None] + phase[:, None, None]
    noise = torch.randn(num, 12, 12, generator=generator)
    return (waves.sin() + 1.2 * noise)[:, None], targets


def split(num: int, seed: int) -> ArraySplit:
    return ArraySplit(*pictures(num, seed), [0.0], [1.0])


def trained_net(steps: int = 60) -> ToyNet:
    torch.manual_seed(0)
    net = ToyNet()
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for step in range(steps):
        images, targets = pictures(64, 1000 + step)
        loss = F.cross_entropy(net(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


def toy_task(model: nn.Module | None = None) -> Task:
    return Task(
        model=model or trained_net(),
        train=split(512, 1),
        calibration=split(128, 2),
        validation=split(300, 3),
        test=split(200, 4),
        loss=cross_entropy,
        metric=accuracy,
        metric_name="accuracy",
        example_input=torch.zeros(1, 1, 12, 12),
        distillation=distillation,
        model_name="toy",
        data_name="stripes",
    )
