"""Training a compressed model: end to end, layer by layer, or through its dense twin."""

from ranksearch.finetune.batches import Batch, autocast, fixed_batches, memory_format
from ranksearch.finetune.loop import finetune
from ranksearch.finetune.reconstruction import reconstruct
from ranksearch.finetune.scratch import from_scratch

__all__ = [
    "Batch",
    "autocast",
    "finetune",
    "fixed_batches",
    "from_scratch",
    "memory_format",
    "reconstruct",
]
