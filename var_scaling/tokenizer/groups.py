"""Images in groups of a fixed size, so that the result of each depends on no other.

The rounding of a convolution depends on the number of images. One by one each image is independent,
too, but takes up to four times as long.
"""

from collections.abc import Callable

import torch
from torch import Tensor

# Values of the largest feature map of a group. On a CPU more gains no time
# (benchmarks/tokenizing.py), and would be computed in vain for a single image.
_CPU_VALUES, _GPU_VALUES = 2**19, 2**27
_LARGEST_GROUP = 8


def group_size(values_per_image: int, device: torch.device) -> int:
    """Images of a group, given the values of an image's largest feature map."""
    values = _CPU_VALUES if device.type == "cpu" else _GPU_VALUES
    return max(1, min(_LARGEST_GROUP, values // values_per_image))


def in_groups(function: Callable[..., Tensor], size: int, *tensors: Tensor) -> Tensor:
    """`function` of the rows of `tensors` in groups of `size`; zeros fill up the last group."""
    results = []
    for parts in zip(*(tensor.split(size) for tensor in tensors), strict=True):
        rows = len(parts[0])
        filled = [
            torch.cat([part, part.new_zeros(size - rows, *part.shape[1:])]) if rows < size else part
            for part in parts
        ]
        results.append(function(*filled)[:rows])
    return torch.cat(results)
