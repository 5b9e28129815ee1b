"""Dry runs: what a computation keeps in memory, without doing it."""

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CONVOLUTIONS = (
    torch.ops.aten.convolution.default,
    torch.ops.aten.convolution_backward.default,
)


def without_values(*networks: nn.Module) -> FakeTensorMode:
    """Return a context in which tensors have shapes and no values, so computing takes no memory.

    The weights of ``networks`` are on the meta device; from here on they are such tensors, of the
    CPU.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        for network in networks:
            for module in network.modules():
                for name, weight in module._parameters.items():
                    if weight is not None:
                        module._parameters[name] = nn.Parameter(_like(weight), weight.requires_grad)
                for name, buffer in module._buffers.items():
                    if buffer is not None:
                        module._buffers[name] = _like(buffer)
    return mode


def _like(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype)


class Live(TorchDispatchMode):
    """Counts the bytes of the tensors that live at once, of those made in a ``with`` block."""

    def __init__(self, *networks: nn.Module, reorders: bool = False):
        """The weights of ``networks`` are not counted.

        With ``reorders`` the tensors of a convolution are there twice while it computes, as on the
        CPU, where oneDNN has them in a layout of its own.
        """
        super().__init__()
        self.reorders = reorders
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}
        for network in networks:
            for weight in (*network.parameters(), *network.buffers()):
                self._sizes[weight.untyped_storage()._cdata] = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        made = [each for each in tree_leaves(result) if isinstance(each, Tensor)]
        for each in made:
            self._add(each)
        if self.reorders and function in CONVOLUTIONS:
            given = [each for each in tree_leaves(args) if isinstance(each, Tensor)]
            self.peak = max(self.peak, self.now + sum(each.nbytes for each in given + made))
        return result

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            weakref.finalize(storage, self._drop, key)
            self.now += self._sizes[key]
            self.peak = max(self.peak, self.now)

    def _drop(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


def size_of(network: nn.Module | None) -> int:
    """Return the bytes of a network's weights, without those of an adapter."""
    if network is None:
        return 0
    weights = {
        id(weight): weight.numel() * weight.element_size()
        for name, weight in (*network.named_parameters(), *network.named_buffers())
        if ".lora_" not in name
    }
    return sum(weights.values())
