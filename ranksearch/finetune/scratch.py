"""The same net with no memory: fresh weights everywhere, to be trained from scratch."""

from torch import nn

__all__ = ["from_scratch"]


def from_scratch(model: nn.Module) -> nn.Module:
    """Draws the weights of every module anew, as PyTorch initialises its class, in place. Returns the model.

    Parameters of modules that have no `reset_parameters` (a class token, say) stay as they are: layers that `compress`
    built with init="random" have fresh ones already.
    """
    for module in model.modules():
        reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
        if reset is not None:
            reset()
    return model
