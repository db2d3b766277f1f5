"""MobileNetV1-SSD on scenes drawn by code, as tasks: a small net trained on first use, and the published one.

    ranksearch run --model ranksearch.tasks.detection:small_ssd_task --space fastfaces
    ranksearch run --model ranksearch.tasks.detection:ssd_task --train 30 --space fastfaces        # for a GPU

The pictures in the scenes are the training images of a data set of grey images, divided once and for all among the
splits: scenes of different splits share none.
"""

import logging
import math
from dataclasses import asdict, dataclass

import torch
from platformdirs import user_cache_path

from ranksearch.records import key_of
from ranksearch.tasks.detection.average_precision import AveragePrecision
from ranksearch.tasks.detection.loss import MultiboxLoss, distillation
from ranksearch.tasks.detection.scenes import Scenes, ink_of
from ranksearch.tasks.detection.ssd import MobileNetSSD, prior_boxes
from ranksearch.tasks.sources import load_data
from ranksearch.tasks.split import split_off
from ranksearch.tasks.task import Task
from ranksearch.tasks.trained import TrainRecipe, cached, fit
from ranksearch.threads import threads

__all__ = ["detection_task", "small_ssd_task", "ssd_task", "train_small"]

log = logging.getLogger(__name__)

SCENES = {"train": 6_000, "calibration": 512, "validation": 400, "test": 400}
PICTURES = 2_000  # of a split, at most
SEED = 2016  # which pictures are in which split


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe(TrainRecipe):
    """The small net and its training. A change of any field, or of `version`, trains it anew."""

    version: int = 1
    image_size: int = 96
    width: float = 0.25
    seed: int = 0


SMALL = Recipe(epochs=7, optimizer="adam", learning_rate=3e-3, batch_size=32, weight_decay=0.0)


def ssd_task() -> Task:
    """The published net, 300 × 300, with random weights: give `--weights`, or `--train`, which wants a GPU."""
    return detection_task(MobileNetSSD(), 300, model_name="ssd_task", negatives=math.inf)


def small_ssd_task() -> Task:
    """A quarter of the channels at 96 × 96 pixels, trained on first use: some two minutes on one core."""
    file = user_cache_path("ranksearch") / f"ssd-{key_of({**asdict(SMALL), 'scenes': SCENES})}.safetensors"
    model = cached(file, lambda: MobileNetSSD(SMALL.width), lambda: train_small(SMALL))
    return detection_task(model, SMALL.image_size, model_name="small_ssd_task")


def train_small(recipe: Recipe) -> MobileNetSSD:
    """The small net trained from scratch, on one thread. The global random state is left as it was."""
    log.info("training the small detector on drawn scenes (once; it is cached)")
    train = _scenes("digits", recipe.image_size)["train"].drawn()
    with torch.random.fork_rng(devices=[]), threads(1):
        torch.manual_seed(recipe.seed)
        model = MobileNetSSD(recipe.width)
        fit(model, train, recipe, loss=MultiboxLoss(prior_boxes(recipe.image_size), math.inf), seed=recipe.seed)
    return model


def detection_task(
    model: MobileNetSSD, image_size: int, *, pictures: str = "digits", negatives: float = 3, model_name: str = "ssd"
) -> Task:
    """A detector of whatever `pictures` shows: `digits`, `mnist:ROOT` or `fashion_mnist:ROOT`. Raises DataError.

    negatives: see `MultiboxLoss`. With three for every positive, a net with random weights keeps scoring every box
    alike, where with all of them it learns.
    """
    scenes = _scenes(pictures, image_size)
    priors = prior_boxes(image_size)
    return Task(
        model=model,
        train=scenes["train"],
        calibration=scenes["calibration"],
        validation=scenes["validation"].drawn(),
        test=scenes["test"],
        loss=MultiboxLoss(priors, negatives),
        metric=AveragePrecision(priors),
        metric_name="average precision",
        example_input=scenes["validation"].batch([0])[0],
        distillation=distillation,
        model_name=model_name,
        data_name=f"scenes-{pictures.partition(':')[0]}",
    )


def _scenes(pictures: str, image_size: int) -> dict[str, Scenes]:
    images = load_data(pictures, normalize="none").train
    eighth = len(images) // 8
    parts = split_off(images, [eighth] * 3, SEED)
    shown = [part.batch(range(min(PICTURES, len(part))))[0] for part in parts]
    return {
        name: Scenes([ink_of(picture) for (picture,) in images], image_size, count, seed)
        for seed, ((name, count), images) in enumerate(zip(SCENES.items(), shown, strict=True))
    }
