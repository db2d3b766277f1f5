"""An Optuna sampler that predicts a trial as the sum of what each of its options does, and learns those effects."""

from ranksearch.study.additive.sampler import AdditiveSampler

__all__ = ["AdditiveSampler"]
