"""A CUDA card that is not there: shapes, types and devices of every step are worked out, no number is.

On it a step that mixes host and card fails, and so does one that brings a number back to the host, as ``.item()`` and ``if`` do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

CARD = torch.device("cuda:0")


class _CopiesToTheCard(TorchFunctionMode):
    """Copies from the host ask the driver, which is not there: made of nothing as well."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device", args[1] if len(args) > 1 else None)
        if isinstance(device, torch.device) and device.type == "cuda" and function in (torch.Tensor.to, torch.tensor):
            there = args[0] if function is torch.Tensor.to else torch.tensor(args[0])
            named = [each for each in (*args[1:], *kwargs.values()) if isinstance(each, torch.dtype)]
            return torch.empty(there.shape, dtype=named[0] if named else there.dtype, device=device)
        return function(*args, **kwargs)


@contextmanager
def fake_card() -> Iterator[None]:
    """Tensors that are made in here are made of nothing, on whatever device they are asked for."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode(), _CopiesToTheCard():
        yield


def moved(model: Any) -> Any:
    """The model, in place, with its weights and buffers on the card; within ``fake_card``."""
    known: dict[int, tuple[Any, Any]] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if id(tensor) not in known:  # tied weights stay one
                    there = torch.empty(tensor.shape, dtype=tensor.dtype, device=CARD)
                    is_weight = isinstance(tensor, torch.nn.Parameter)
                    known[id(tensor)] = (torch.nn.Parameter(there, False) if is_weight else there, tensor)
                tensors[name] = known[id(tensor)][0]
    return model
