"""Text of modules that a user might have, written into a folder by the tests."""

NETS = """
import torch
from torch import nn
from layers import Scale

class Net(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(256, num_classes), Scale())

    def forward(self, x):
        return self.layers(x)

def make(num_classes):
    torch.manual_seed(0)
    return Net(num_classes)

def make_ten():
    return make(10)

def broken():
    raise ValueError("first line\\nsecond line")

def number():
    return 3

def wants_width(width):
    return Net()

fixed = Net()
not_callable = 3
"""

LAYERS = """
from torch import nn

class Scale(nn.Module):
    def forward(self, x):
        return 2 * x
"""

DATA = """
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

def examples(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, 1, 16, 16), dtype=torch.uint8, generator=generator)
    return images, torch.arange(n) % 10

class Pairs(Dataset):
    def __init__(self, n, seed=0):
        images, self.targets = examples(n, seed)
        self.images = images.float() / 255

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, i):
        return self.images[i], self.targets[i]

class Stream(IterableDataset):
    def __iter__(self):
        return iter([])

def tensors():
    return examples(100), examples(40, 1)

def arrays():
    return tuple(tuple(part.numpy() for part in examples(n)) for n in (100, 40, 30))

def datasets():
    return Pairs(100), Pairs(40, 1), Pairs(30, 2)

def loaders():
    return DataLoader(Pairs(100), batch_size=7, shuffle=True), DataLoader(Pairs(40, 1))

def empty():
    return examples(100), examples(0)

def streams():
    return Stream(), Stream()

def single():
    return examples(100)[0]

def labels_missing():
    return Pairs(100).images, Pairs(40).images

def out_of_range():
    images, labels = examples(100)
    return (images, labels + 5), (images, labels)

def wrong_shape():
    images, labels = examples(100)
    return (images[..., :8], labels), (images[..., :8], labels)

def unequal():
    images, labels = examples(100)
    return (images, labels[:-1]), (images, labels)
"""


def write_user_code(folder):
    for name, text in (("nets", NETS), ("layers", LAYERS), ("sets", DATA)):
        (folder / f"{name}.py").write_text(text)
