"""UnpackedAttention: nn.MultiheadAttention with its projections as layers, so that a plan can replace them.

nn.MultiheadAttention holds the projections of query, key and value in one parameter and reads the weight of its
output projection directly. Unpacked, they are the linear layers `in_proj` (E → 3E, for self-attention) and `out_proj`,
or `q_proj`, `k_proj`, `v_proj` and `out_proj` where query, key and value are not the same tensor or not of one size.

The blocks of torch.nn that hold attention have fused paths, which read weights past the modules:
nn.TransformerEncoderLayer in eval mode, and nn.TransformerEncoder where padding is masked. `switch_fused_paths` turns
them off where a layer was replaced. What nn.TransformerEncoder returns at masked positions then is what it returns in
training: not zeros.

Shape letters: B batch, L queries, S keys, E embedding, H heads, D of one head.
"""

import copy
from collections.abc import Container
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

__all__ = [
    "PACKED",
    "SEPARATE",
    "UnpackedAttention",
    "is_separate",
    "pack",
    "projections",
    "qualified",
    "switch_fused_paths",
    "unpack",
    "unpacked",
]

# The parameters of nn.MultiheadAttention itself: the first, or the next three, and a bias or none.
PACKED = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias")
SEPARATE = ("q_proj", "k_proj", "v_proj")


class UnpackedAttention(nn.Module):
    """What nn.MultiheadAttention computes, by its own arguments. Made by `unpack`, which keeps all other attributes."""

    embed_dim: int
    num_heads: int
    head_dim: int
    dropout: float
    batch_first: bool
    in_proj: nn.Module
    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    out_proj: nn.Module
    _qkv_same_embed_dim: bool
    in_proj_bias = None  # what nn.TransformerEncoderLayer asks first, and then does without its fused path

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """The output, shaped as `query`, and the weights (B, L, S), (B, H, L, S) or None, as nn.MultiheadAttention.

        Raises RuntimeError for is_causal without an attn_mask: it is only a hint of what the mask is.
        """
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal is a hint about attn_mask, which is None; give the causal mask")
        use_hint = is_causal and key_padding_mask is None and not need_weights
        q_BHLD, k_BHSD, v_BHSD = (self._heads(x) for x in self._project(query, key, value))
        mask = None if use_hint else _merged(attn_mask, key_padding_mask, q_BHLD)
        dropout = self.dropout if self.training else 0.0
        if not need_weights:
            mixed_BHLD = functional.scaled_dot_product_attention(q_BHLD, k_BHSD, v_BHSD, mask, dropout, use_hint)
            return self._output(mixed_BHLD, query), None
        scores_BHLS = (q_BHLD * self.head_dim**-0.5) @ k_BHSD.mT
        weights_BHLS = (scores_BHLS if mask is None else scores_BHLS + mask).softmax(-1)
        weights_BHLS = functional.dropout(weights_BHLS, dropout)
        weights = weights_BHLS.mean(1) if average_attn_weights else weights_BHLS
        return self._output(weights_BHLS @ v_BHSD, query), weights if query.dim() == 3 else weights.squeeze(0)

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        if "in_proj" not in self._modules:
            return self.q_proj(query), self.k_proj(key), self.v_proj(value)
        if query is key and key is value:
            return self.in_proj(query).chunk(3, -1)
        return tuple(self.in_proj(x).chunk(3, -1)[third] for third, x in enumerate((query, key, value)))

    def _heads(self, x: Tensor) -> Tensor:
        """(B, L, E), (L, B, E) or (L, E) as (B, H, L, D)."""
        batch_first = self.batch_first or x.dim() == 2
        x_BLE = (x if x.dim() == 3 else x[None]) if batch_first else x.transpose(0, 1)
        return x_BLE.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _output(self, mixed_BHLD: Tensor, query: Tensor) -> Tensor:
        if query.dim() == 2:
            return self.out_proj(mixed_BHLD[0].transpose(0, 1).flatten(1))
        order = (0, 2, 1, 3) if self.batch_first else (2, 0, 1, 3)
        return self.out_proj(mixed_BHLD.permute(order).flatten(2))


def _merged(attn_mask: Tensor | None, key_padding_mask: Tensor | None, like_BHLD: Tensor) -> Tensor | None:
    """The sum of both masks as numbers to be added to the scores (B, H, L, S), or to be broadcast to them."""
    batch, heads = like_BHLD.shape[:2]
    masks: list[Tensor] = []
    if attn_mask is not None:
        added = _added(attn_mask, like_BHLD.dtype)
        masks.append(added if added.dim() == 2 else added.unflatten(0, (batch, heads)))
    if key_padding_mask is not None:
        masks.append(_added(key_padding_mask, like_BHLD.dtype).reshape(batch, 1, 1, -1))
    return masks[0] + masks[1] if len(masks) == 2 else next(iter(masks), None)


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -torch.inf) if mask.dtype is torch.bool else mask


# --- packed and unpacked ---------------------------------------------------------------------------------------------


def projections(attention: nn.MultiheadAttention, *, separate: bool = False) -> dict[str, nn.Linear]:
    """The layers that the attention consists of, in the order they run, with its own tensors or views of them.

    `separate` gives q_proj, k_proj and v_proj in place of in_proj, as attention over inputs of several sizes has them.
    """
    bias = attention.in_proj_bias
    if attention._qkv_same_embed_dim and not separate:
        parts = {"in_proj": _linear(attention.in_proj_weight, bias, attention.training)}
    else:
        own = (attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight)
        weights = _thirds(attention.in_proj_weight) if attention._qkv_same_embed_dim else own
        biases = (None, None, None) if bias is None else _thirds(bias)
        named = zip(SEPARATE, weights, biases, strict=True)
        parts = {name: _linear(weight, bias, attention.training) for name, weight, bias in named}
    return parts | {"out_proj": attention.out_proj}


def unpack(attention: nn.MultiheadAttention, *, separate: bool = False) -> UnpackedAttention:
    """The same object, in place, as UnpackedAttention: whatever refers to it, or hooks it, does so still."""
    layers = projections(attention, separate=separate)
    attention.__class__ = UnpackedAttention  # type: ignore[assignment]
    for name in PACKED:
        del attention._parameters[name]
    del attention._modules["out_proj"]
    attention._modules.update(layers)
    return attention  # type: ignore[return-value]


@torch.no_grad()
def pack(attention: UnpackedAttention) -> nn.MultiheadAttention:
    """The inverse of `unpack`, in place. All projections must be nn.Linear."""
    names = [name for name in ("in_proj", *SEPARATE) if name in attention._modules]
    layers = [cast("nn.Linear", attention._modules.pop(name)) for name in names]
    weights: dict[str, Any] = {f"{name}_weight": layer.weight for name, layer in zip(names, layers, strict=True)}
    if attention._qkv_same_embed_dim:
        weights = {"in_proj_weight": _joined(list(weights.values()))}
    bias = None if layers[0].bias is None else _joined([layer.bias for layer in layers])
    attention.__class__ = nn.MultiheadAttention  # type: ignore[assignment]
    for name, parameter in (dict.fromkeys(PACKED) | weights | {"in_proj_bias": bias}).items():
        attention.register_parameter(name, parameter)
    attention.out_proj.__class__ = NonDynamicallyQuantizableLinear  # a Linear that dynamic quantization leaves alone
    return attention  # type: ignore[return-value]


def unpacked(model: nn.Module, layers: Container[str]) -> nn.Module:
    """A copy of the model that shares all tensors with it and holds `layers` as modules: attention that has a
    projection among these names is unpacked. The model itself where there is none."""
    attention = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.MultiheadAttention)]
    first_names = {module: name for name, module in model.named_modules()} if attention else {}
    named = [name for name, m in attention if first_names[m.out_proj] in layers or _has_inputs_in(layers, name)]
    if not named:
        return model
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, memo)
    for name in named:
        unpack(cast("nn.MultiheadAttention", twin.get_submodule(name)), separate=is_separate(name, layers))
    return twin


def is_separate(attention: str, layers: Container[str]) -> bool:
    """Whether the layers name a q_proj, k_proj or v_proj of the attention of this name."""
    return any(qualified(attention, part) in layers for part in SEPARATE)


def qualified(module: str, attribute: str) -> str:
    return f"{module}.{attribute}" if module else attribute


def _has_inputs_in(layers: Container[str], name: str) -> bool:
    return qualified(name, "in_proj") in layers or is_separate(name, layers)


def _linear(weight: Tensor, bias: Tensor | None, training: bool) -> nn.Linear:
    outputs, inputs = weight.shape
    layer = nn.Linear(inputs, outputs, bias is not None, device="meta").train(training)
    layer.weight, layer.bias = weight, bias  # type: ignore[assignment]
    return layer


def _thirds(parameter: nn.Parameter) -> list[nn.Parameter]:
    return [nn.Parameter(third, parameter.requires_grad) for third in parameter.detach().chunk(3)]


def _joined(parameters: list[Tensor]) -> nn.Parameter:
    if len(parameters) == 1:
        return cast("nn.Parameter", parameters[0])
    return nn.Parameter(torch.cat(parameters), any(parameter.requires_grad for parameter in parameters))


# --- fused paths -----------------------------------------------------------------------------------------------------


def switch_fused_paths(model: nn.Module) -> None:
    """Turns the fused paths of torch.nn's encoders off where a layer was replaced, and on again where none is left."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            _switch(module, "activation_relu_or_gelu", on=_is_whole(module))
        elif isinstance(module, nn.TransformerEncoder):
            _switch(module, "use_nested_tensor", on=all(_is_whole(layer) for layer in module.layers))


def _is_whole(layer: nn.Module) -> bool:
    return not isinstance(layer, nn.TransformerEncoderLayer) or (
        isinstance(layer.self_attn, nn.MultiheadAttention)
        and isinstance(layer.linear1, nn.Linear)
        and isinstance(layer.linear2, nn.Linear)
    )


def _switch(module: nn.Module, attribute: str, *, on: bool) -> None:
    kept = f"_{attribute}_when_whole"
    if on and hasattr(module, kept):
        setattr(module, attribute, getattr(module, kept))
        delattr(module, kept)
    elif not on and not hasattr(module, kept):
        setattr(module, kept, getattr(module, attribute))
        setattr(module, attribute, False)
