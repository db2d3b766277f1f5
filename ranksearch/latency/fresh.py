"""One measurement in a process of its own, which nothing that was loaded, allocated or compiled before it can sway."""

import os
import pickle
import subprocess
import sys
from functools import partial
from typing import Any

import cloudpickle
import torch
from torch import nn

from ranksearch.errors import MeasurementError, TrialError
from ranksearch.latency.lock import DeviceLock
from ranksearch.latency.measure import measure
from ranksearch.latency.preparation import prepare, prepare_inputs
from ranksearch.records import MeasureConfig, Measurement

__all__ = ["answer", "measure_fresh"]

PROGRAM = "from ranksearch.latency.fresh import answer; answer()"


def measure_fresh(
    dense: nn.Module,
    candidate: nn.Module,
    example: Any,
    config: MeasureConfig,
    *,
    device: torch.device,
    seed: int,
    lock: DeviceLock | None,
) -> Measurement:
    """As `measure`, in a new process, which prepares the models and `example`, a batch of one, by itself.

    Raises as `measure` does, and MeasurementError where anything else goes wrong there.
    """
    work = partial(_measure, dense, candidate, example, config, device, seed, lock)
    done = subprocess.run(  # noqa: S603 - this very interpreter
        [sys.executable, "-c", PROGRAM],
        input=cloudpickle.dumps(work),
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},  # what this process imports, that one finds
        check=False,
    )
    if not done.stdout:
        raise MeasurementError(f"the measuring process ended with exit code {done.returncode} and without an answer")
    result = pickle.loads(done.stdout)  # noqa: S301 - our own process wrote it
    if isinstance(result, TrialError):
        raise result
    return result


def _measure(
    dense: nn.Module,
    candidate: nn.Module,
    example: Any,
    config: MeasureConfig,
    device: torch.device,
    seed: int,
    lock: DeviceLock | None,
) -> Measurement:
    """In this process."""
    inputs = prepare_inputs(example, config, device)
    own, other = prepare(dense, config, device), prepare(candidate, config, device)
    return measure(own, other, inputs, config, device=device, seed=seed, lock=lock)


def answer() -> None:
    """What the new process does: it reads what to do, and writes a Measurement or a TrialError."""
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)  # what a model prints is no answer
        out.write(cloudpickle.dumps(_attempt()))


def _attempt() -> Measurement | TrialError:
    try:
        return pickle.load(sys.stdin.buffer)()  # noqa: S301 - the process that started this one wrote it
    except TrialError as error:
        return error
    except Exception as error:  # noqa: BLE001 - the other process shall hear of it, whatever it is
        return MeasurementError(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
