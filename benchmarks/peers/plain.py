"""The script a user would write without ranksearch: `python -m benchmarks.peers.plain SECONDS STORAGE OUTPUT`.

Optuna's NSGA-II over a method and a rank for every layer; each trial factorizes from scratch with torch.linalg,
fine-tunes as ranksearch does (same batches, steps and loss), times thirty forward passes, evaluates on validation.
"""

import copy
import json
import sys
import time
from pathlib import Path
from statistics import median

import optuna
import torch
from torch import nn

from ranksearch.calibrate import reestimate_batchnorm
from ranksearch.evaluate import evaluate
from ranksearch.finetune import finetune, fixed_batches
from ranksearch.records import FinetuneConfig
from ranksearch.tasks.load import build_task

CPU = torch.device("cpu")
CONFIG = FinetuneConfig(precision="float32", layout="contiguous", threads=1)


def spatial(conv: nn.Conv2d, rank: int) -> nn.Sequential:
    out_channels, in_channels, height, width = conv.weight.shape
    matrix = conv.weight.detach().permute(1, 2, 0, 3).reshape(in_channels * height, out_channels * width)
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    first = nn.Conv2d(in_channels, rank, (height, 1), (conv.stride[0], 1), (conv.padding[0], 0), bias=False)
    second = nn.Conv2d(
        rank, out_channels, (1, width), (1, conv.stride[1]), (0, conv.padding[1]), bias=conv.bias is not None
    )
    with torch.no_grad():
        first.weight.copy_((u[:, :rank] * s[:rank].sqrt()).T.reshape(rank, in_channels, height, 1))
        v = (s[:rank, None].sqrt() * vt[:rank]).reshape(rank, out_channels, width)
        second.weight.copy_(v.permute(1, 0, 2)[:, :, None])
        if conv.bias is not None:
            second.bias.copy_(conv.bias)
    return nn.Sequential(first, second)


def channel(conv: nn.Conv2d, rank: int) -> nn.Sequential:
    u, s, vt = torch.linalg.svd(conv.weight.detach().flatten(1), full_matrices=False)
    first = nn.Conv2d(conv.in_channels, rank, conv.kernel_size, conv.stride, conv.padding, bias=False)
    second = nn.Conv2d(rank, conv.out_channels, 1, bias=conv.bias is not None)
    with torch.no_grad():
        first.weight.copy_((s[:rank, None].sqrt() * vt[:rank]).reshape_as(first.weight))
        second.weight.copy_((u[:, :rank] * s[:rank].sqrt())[:, :, None, None])
        if conv.bias is not None:
            second.bias.copy_(conv.bias)
    return nn.Sequential(first, second)


METHODS = {"spatial": spatial, "channel": channel}


def largest_rank(conv: nn.Conv2d, method: str) -> int:
    out_channels, in_channels, height, width = conv.weight.shape
    if method == "spatial":
        return min(in_channels * height, out_channels * width)
    return min(out_channels, in_channels * height * width)


def forward_ms(model: nn.Module, inputs: torch.Tensor) -> float:
    with torch.inference_mode():
        for _ in range(10):
            model(inputs)
        times = []
        for _ in range(30):
            start = time.perf_counter()
            model(inputs)
            times.append(time.perf_counter() - start)
    return 1000 * median(times)


def main(seconds: float, storage: str, output: Path) -> None:
    start = time.time()
    torch.set_num_threads(1)
    task = build_task(model=None, weights=None, data=None, metric=None, normalize="dataset", seed=0, cache_dir=None)
    dense = task.model
    convs = {n: m for n, m in dense.named_modules() if isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1)}
    batches = list(fixed_batches(task, dense, CONFIG, 0, CPU))
    calibration = [
        task.calibration.batch(range(i, i + 128))[0] for i in range(0, min(512, len(task.calibration)) - 127, 128)
    ]
    example = task.example_input.expand(8, -1, -1, -1).contiguous()
    dense_ms = forward_ms(dense, example)

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        model = copy.deepcopy(dense)
        plan = {}
        for name, conv in convs.items():
            method = trial.suggest_categorical(f"{name} method", ["dense", *METHODS])
            share = trial.suggest_float(f"{name} rank", 0.02, 1.0)
            if method != "dense":
                rank = max(1, round(share * largest_rank(conv, method)))
                plan[name] = f"{method}_svd:{rank}"
                model.set_submodule(name, METHODS[method](conv, rank))
        ms = forward_ms(model.eval(), example)
        reestimate_batchnorm(model, calibration)
        finetune(model, batches, task, CONFIG, CPU)
        reestimate_batchnorm(model, calibration)
        accuracy = evaluate(model, task.validation, task.metric, device=CPU).value
        trial.set_user_attr("plan", plan)
        trial.set_user_attr("seconds", time.time() - start)
        return ms / dense_ms, accuracy

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.NSGAIISampler(seed=0)
    study = optuna.create_study(directions=["minimize", "maximize"], storage=storage, sampler=sampler)
    study.optimize(objective, timeout=seconds - (time.time() - start))
    rows = [
        {"values": t.values, **t.user_attrs} for t in study.trials if t.values and t.user_attrs["seconds"] <= seconds
    ]
    output.write_text(json.dumps(rows))


if __name__ == "__main__":
    main(float(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
