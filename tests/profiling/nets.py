"""Small nets whose forward passes are written in the ways that nets are written in."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ranksearch.tasks import Task
from ranksearch.tasks.classification import cross_entropy, distillation
from ranksearch.tasks.metrics import accuracy

NUM_CLASSES = 5


class Residual(nn.Module):
    """Shared ReLU called twice, in place; the sum written into the output of a norm; grouped and strided layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
        self.conv1 = nn.Conv2d(16, 16, 3, padding=1, groups=2, bias=False)
        self.norm1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(16)
        down = nn.Conv2d(16, 24, 3, 2, 1, bias=False)
        self.down = nn.Sequential(down, nn.BatchNorm2d(24), nn.Dropout(0.5), nn.ReLU())
        self.head = nn.Linear(24, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        y += x
        return self.head(self.down(F.relu_(y)).mean((2, 3)))

    def example(self, batch: int) -> Tensor:
        return torch.randn(batch, 3, 8, 8)


class Plain(nn.Sequential):
    """A Sequential in a Sequential, and that in a class of its own."""

    def __init__(self) -> None:
        convs = [nn.Conv2d(inputs, 12, 3, padding=1) for inputs in (3, 12, 12)]
        parts = [part for conv in convs for part in (conv, nn.BatchNorm2d(12), nn.ReLU(inplace=True))]
        super().__init__(nn.Sequential(*parts), nn.AdaptiveMaxPool2d(1), nn.Flatten())
        self.head = nn.Linear(12, NUM_CLASSES)

    def example(self, batch: int) -> Tensor:
        return torch.randn(batch, 3, 8, 8)


class Reused(nn.Module):
    """A layer that runs twice, and a value that a later module overwrites."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.twice = nn.Conv2d(16, 16, 3, padding=1)
        self.after = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        y = self.relu(x)  # x is y from here on
        x = self.twice(x) + y
        x = self.norm(self.twice(x)) + x
        return self.head(self.after(x).amax((2, 3)))

    def example(self, batch: int) -> Tensor:
        return torch.randn(batch, 3, 8, 8)


class Transformer(nn.Module):
    """Attention by nn.MultiheadAttention in torch's own encoder layer, dict inputs, a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(12, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm = nn.BatchNorm1d(16)
        self.head = nn.Linear(16, NUM_CLASSES)

    def forward(self, tokens: Tensor, *, padded: Tensor) -> Tensor:
        x = self.encoder(self.embed(tokens), src_key_padding_mask=padded)
        return self.head(self.norm(x.mean(1)))

    def example(self, batch: int) -> dict[str, Tensor]:
        return {"tokens": torch.randn(batch, 6, 12), "padded": torch.arange(6).expand(batch, 6) >= 5}


class Pictures:
    """As many examples as asked for of what a net takes."""

    fixed = True

    def __init__(self, net: nn.Module, num: int) -> None:
        torch.manual_seed(num)
        self.inputs = net.example(num)
        self.targets = torch.arange(num) % NUM_CLASSES

    def __len__(self) -> int:
        return len(self.targets)

    def batch(self, indices):
        indices = torch.as_tensor(list(indices))
        inputs = self.inputs
        chosen = {k: v[indices] for k, v in inputs.items()} if isinstance(inputs, dict) else inputs[indices]
        return chosen, self.targets[indices]


def net_named(name: str) -> nn.Module:
    torch.manual_seed(0)
    net = {"residual": Residual, "plain": Plain, "reused": Reused, "transformer": Transformer}[name]()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    net.head.weight.data *= 4
    return net.eval()


def task_of(net: nn.Module, num: int = 48) -> Task:
    data = {split: Pictures(net, num) for split in ("train", "calibration", "validation")}
    return Task(
        model=net,
        **data,
        loss=cross_entropy,
        metric=accuracy,
        metric_name="accuracy",
        example_input=Pictures(net, 4).batch([0])[0],
        distillation=distillation,
        model_name="small",
        data_name="noise",
    )
