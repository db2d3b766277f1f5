"""An Optuna sampler that predicts a trial as the sum of what each of its options does, and learns those effects."""

from ranksearch.study.additive.sampler import AdditiveSampler, need_latency

__all__ = ["AdditiveSampler", "need_latency"]
