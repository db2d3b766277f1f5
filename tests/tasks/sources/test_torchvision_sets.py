"""Files in the real formats, written here, small."""

import contextlib
import functools
import gzip
import hashlib
import http.server
import pickle
import struct
import sys
import threading
import urllib.error
import urllib.request

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10, MNIST

from ranksearch.errors import DataError
from ranksearch.tasks import load_data
from ranksearch.tasks.augment import CropFlip
from tests.tasks.usage import refuses

NUM = {"train": 200, "t10k": 40}


def idx(array):
    """The IDX format: 0, 0, type (8: bytes), number of dimensions; sizes big-endian; the bytes."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def digits(n):
    generator = np.random.default_rng(n)
    return generator.integers(0, 256, (n, 28, 28), dtype=np.uint8), (np.arange(n) % 10).astype(np.uint8)


def write_mnist(root, name="MNIST", suffix=""):
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    for part, n in NUM.items():
        images, labels = digits(n)
        for kind, array in (("images-idx3-ubyte", images), ("labels-idx1-ubyte", labels)):
            content = idx(array)
            (folder / f"{part}-{kind}{suffix}").write_bytes(gzip.compress(content) if suffix else content)


def write_cifar(root, monkeypatch, n=40):
    """Batches 1 to 5 and test, with torchvision's list of checksums made to fit them."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    sums = {}
    for seed, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]):
        data = np.random.default_rng(seed).integers(0, 256, (n, 3072), dtype=np.uint8)
        batch = {"data": data, "labels": [i % 10 for i in range(n)]}
        content = pickle.dumps({"label_names": list("abcdefghij")} if name == "batches.meta" else batch)
        (folder / name).write_bytes(content)
        sums[name] = hashlib.md5(content).hexdigest()
    monkeypatch.setattr(CIFAR10, "train_list", [[f"data_batch_{i}", sums[f"data_batch_{i}"]] for i in range(1, 6)])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": sums["batches.meta"]})


@pytest.mark.parametrize(
    ("name", "folder", "augment"),
    [
        ("mnist", "MNIST", CropFlip(padding=2, flip=False)),
        ("fashion_mnist", "FashionMNIST", CropFlip(padding=0, flip=True)),
    ],
)
def test_mnist(tmp_path, name, folder, augment):
    write_mnist(tmp_path, folder)
    data = load_data(f"{name}:{tmp_path}")
    assert {n: len(s) for n, s in data.splits.items()} == {
        "train": 160,
        "calibration": 20,
        "validation": 20,
        "test": 40,
    }
    assert (data.name, data.num_classes, data.input_shape, data.augment) == (name, 10, (1, 28, 28), augment)
    images, labels = digits(40)
    assert data.test.inputs[:, 0].numpy().tolist() == images.tolist()
    assert data.test.targets.tolist() == labels.tolist()
    assert data.validation.targets.bincount(minlength=10).min() >= 1


def test_cifar10(tmp_path, monkeypatch):
    write_cifar(tmp_path, monkeypatch)
    data = load_data(f"cifar10:{tmp_path}", normalize="none")
    assert [len(split) for split in data.splits.values()] == [160, 20, 20, 40]
    assert (data.num_classes, data.input_shape, data.augment) == (10, (3, 32, 32), CropFlip(padding=4, flip=True))
    # a row of a batch is the red plane, then the green, then the blue
    expected = np.random.default_rng(5).integers(0, 256, (40, 3072), dtype=np.uint8).reshape(40, 3, 32, 32)
    assert data.test.inputs.numpy().tolist() == expected.tolist()


@pytest.fixture
def offline(monkeypatch):
    asked = []

    def urlopen(request, *args, **kwargs):
        asked.append(getattr(request, "full_url", request))
        sys.stdout.write("chatter, as some versions of torchvision have it")
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return asked


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("mnist", "MNIST/raw"),
        ("fashion_mnist", "FashionMNIST/raw"),
        ("cifar10", "cifar-10-batches-py"),
    ],
)
def test_missing_files_are_fetched_and_a_failure_says_where_they_go(tmp_path, capsys, offline, name, folder):
    with refuses(DataError, name, str(tmp_path / "data" / folder), "download", "put its files there"):
        load_data(f"{name}:{tmp_path / 'data'}")
    assert offline
    assert not (tmp_path / "data").exists()
    assert capsys.readouterr().out == ""


def test_files_that_are_there_are_not_fetched(tmp_path, offline):
    write_mnist(tmp_path)
    load_data(f"mnist:{tmp_path}")
    assert offline == []


@contextlib.contextmanager
def served(folder):
    """The address at which the files of `folder` are served, from this process."""
    handler = functools.partial(QuietHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def test_a_download_is_read(tmp_path, monkeypatch):
    """The real path: gzip files of MNIST's names, fetched from a mirror, checked, unpacked, read."""
    write_mnist(tmp_path / "mirror", suffix=".gz")
    source = tmp_path / "mirror" / "MNIST" / "raw"
    sums = [(p.name, hashlib.md5(p.read_bytes()).hexdigest()) for p in sorted(source.iterdir())]
    monkeypatch.setattr(MNIST, "resources", sums)
    with served(source) as address:
        monkeypatch.setattr(MNIST, "mirrors", [address])
        data = load_data(f"mnist:{tmp_path / 'data'}")
    assert torch.equal(data.test.inputs[:, 0], torch.from_numpy(digits(40)[0]))


@pytest.mark.parametrize("content", [b"", b"\0\0\x08", idx(np.zeros((0, 28, 28), np.uint8)), b"nonsense"])
def test_broken_files(tmp_path, content):
    write_mnist(tmp_path)
    (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(content)
    with refuses(DataError):
        load_data(f"mnist:{tmp_path}")


def test_labels_out_of_range(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").write_bytes(idx(np.full(40, 11, np.uint8)))
    with refuses(DataError, "label 11", "test", "0 to 9"):
        load_data(f"mnist:{tmp_path}")
