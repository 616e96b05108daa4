"""Images in groups: on a CPU of a fixed size, so that the result of each depends on no other.

The rounding of a convolution depends on the number of images. One by one each image is independent,
too, but takes up to four times as long. On a GPU the rounding of the transformer depends on the
batch anyway: groups are as large as fits in memory, and are not filled up.
"""

from collections.abc import Callable

import torch
from torch import Tensor

# Values of the largest feature map of a group. On a CPU more gains no time
# (benchmarks/tokenizing.py), and would be computed in vain for a single image. On a GPU: 1 GiB of
# float32, as in `MultiScaleVQVAE.max_batch_size`; a residual block holds about four such maps.
_CPU_VALUES, _GPU_VALUES = 2**19, 2**28
_LARGEST_CPU_GROUP = 8


def group_size(values_per_image: int, device: torch.device) -> int:
    """Images of a group, given the values of an image's largest feature map."""
    if device.type == "cpu":
        return max(1, min(_LARGEST_CPU_GROUP, _CPU_VALUES // values_per_image))
    return max(1, _GPU_VALUES // values_per_image)


def in_groups(function: Callable[..., Tensor], size: int, *tensors: Tensor) -> Tensor:
    """`function` of the rows of `tensors` in groups of `size`; on a CPU zeros fill up the last."""
    if tensors[0].device.type != "cpu":
        parts_of = zip(*(tensor.split(size) for tensor in tensors), strict=True)
        return torch.cat([function(*parts) for parts in parts_of])
    results = []
    for parts in zip(*(tensor.split(size) for tensor in tensors), strict=True):
        rows = len(parts[0])
        filled = [
            torch.cat([part, part.new_zeros(size - rows, *part.shape[1:])]) if rows < size else part
            for part in parts
        ]
        results.append(function(*filled)[:rows])
    return torch.cat(results)
