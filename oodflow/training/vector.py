"""A model's parameters as one vector, so that what is done to all of them is one operation."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

__all__ = ["ParameterVector"]

ALIGNED = 16
"""Every parameter begins at a multiple of so many numbers, as matrix kernels require."""

CHUNK = 2**18
"""Numbers that a CPU updates at a time: with gradient and moments they fit into its caches."""


class ParameterVector:
    """Parameters that become parts of ``values``, and their gradients, gathered in ``gradients``.

    The parts are in the order of the parameters. Between them are zeros whose gradient is zero: an
    optimiser leaves them alone. All parameters have one type and one device.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self.sizes = [-(-each.numel() // ALIGNED) * ALIGNED for each in self.parameters]
        self.values = self.parameters[0].detach().new_zeros(sum(self.sizes))
        self.gradients = torch.zeros_like(self.values)
        # Made once: on a GPU each would be a kernel an update.
        self._gaps = [
            self.values.new_zeros(size - each.numel())
            for size, each in zip(self.sizes, self.parameters, strict=True)
        ]
        for parameter, part in zip(self.parameters, self.parts(self.values), strict=True):
            part.copy_(parameter.detach())
            parameter.data = part

    def parts(self, vector: Tensor) -> list[Tensor]:
        """What belongs to each parameter, in its shape and without a copy."""
        padded = vector.split(self.sizes)
        return [
            part[: each.numel()].view(each.shape)
            for part, each in zip(padded, self.parameters, strict=True)
        ]

    def chunks(self, sizes: Sequence[int] = ()) -> list[Tensor]:
        """The vector in pieces for an optimiser, ``grad`` with each; together they are all of it.

        Without ``sizes`` they are as large as the device works best with.
        """
        size = CHUNK if self.values.device.type == "cpu" else len(self.values)
        chunks = self.values.split(list(sizes) or size)
        gradients = self.gradients.split(list(sizes) or size)
        for chunk, gradient in zip(chunks, gradients, strict=True):
            chunk.grad = gradient
        return list(chunks)

    def clear(self) -> None:
        """Forget the parameters' own gradients; those gathered stay."""
        for parameter in self.parameters:
            parameter.grad = None

    def gather(self) -> Tensor:
        """``gradients``, filled with those of the parameters; one without any has zeros.

        >>> layer = nn.Linear(2, 1)
        >>> vector = ParameterVector(layer.parameters())
        >>> layer(torch.tensor([3.0, 4.0])).sum().backward()
        >>> [part.tolist() for part in vector.parts(vector.gather())]
        [[[3.0, 4.0]], [1.0]]
        """
        pieces = []
        for parameter, gap in zip(self.parameters, self._gaps, strict=True):
            gradient = parameter.grad
            if gradient is None:
                gradient = torch.zeros_like(parameter)
            pieces += [gradient.flatten(), gap]
        return torch.cat(pieces, out=self.gradients)
