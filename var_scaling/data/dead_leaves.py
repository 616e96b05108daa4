"""Dead leaves: generated images of a few flat shapes, each a pure function of its row."""

import numpy as np

from var_scaling.datasets import DeadLeaves

_SPLITS = {"train": 0, "validation": 1}
_DRAWS_PER_LEAF = 8  # uniforms: x, y, radius, shape, aspect, angle, colour, spare


class DeadLeavesSource:
    """The images of one split (`ImageDataset`). Row r: image r // classes of class r % classes."""

    def __init__(self, data: DeadLeaves, split: str):
        self.data = data
        self.split = split
        self.rows = data.train_images if split == "train" else data.validation_images
        # Classes alternate, so any range of rows has all classes in nearly equal numbers.
        self.labels = np.arange(self.rows, dtype=np.int64) % data.classes
        self.classes: list[str] | None = None  # generated classes have no names

    def images(self, rows: np.ndarray, epochs: np.ndarray | int = 0) -> np.ndarray:
        """uint8 (n, side, side, 3). An image depends only on its row, not on the epoch."""
        numbers, classes = np.divmod(np.asarray(rows, dtype=np.int64), self.data.classes)
        draws = np.stack(
            [self._draws(int(c), int(i)) for c, i in zip(classes, numbers, strict=True)]
        )
        return paint(draws, _palettes(self.data)[classes], self.data)

    def _draws(self, label: int, number: int) -> np.ndarray:
        """(1 + leaves, _DRAWS_PER_LEAF) uniforms of one image, from its part of a Philox stream."""
        # Philox is counter-based: the key selects a stream for each class and split, the counter
        # the image in it. No image needs the images before it, and more images change none.
        key = np.array([self.data.seed, 2 * label + _SPLITS[self.split]], dtype=np.uint64)
        shape = (1 + self.data.leaves, _DRAWS_PER_LEAF)
        blocks = shape[0] * _DRAWS_PER_LEAF // 4  # Philox yields four numbers per counter value
        bits = np.random.Philox(key=key, counter=np.array([number * blocks, 0, 0, 0], np.uint64))
        return np.random.Generator(bits).random(shape, dtype=np.float64)


def _palettes(data: DeadLeaves) -> np.ndarray:
    """(classes, colours, 3) in [0, 1]: classes differ only in their colours."""
    # 2**63 is the key of no class: theirs are 2 x label + split.
    generator = np.random.Generator(np.random.Philox(key=[data.seed, 2**63]))
    return generator.random((data.classes, data.colours, 3))


def paint(draws: np.ndarray, palettes: np.ndarray, data: DeadLeaves) -> np.ndarray:
    """Paint the leaves back to front. `draws`: (n, 1 + leaves, _DRAWS_PER_LEAF) in [0, 1); the
    first is the background. Returns uint8 (n, side, side, 3). Leaves are rotated ellipses or boxes.
    """
    n = len(draws)
    # Centres of the pixels, in units of the image's side.
    axis = (np.arange(data.side, dtype=np.float32) + 0.5) / data.side
    y, x = np.meshgrid(axis, axis, indexing="ij")
    draws = draws.astype(np.float32)
    # A draw just below 1 may round to 1 in float32: clip keeps the index in the palette.
    colour = (draws[..., 6] * data.colours).astype(np.int64).clip(max=data.colours - 1)
    # (n, colours, 3) to (n, 1 + leaves, 3): the colour of the background and of each leaf.
    rgb = np.take_along_axis(palettes.astype(np.float32), colour[..., None], axis=1)
    canvas = np.broadcast_to(rgb[:, 0, None, None], (n, data.side, data.side, 3)).copy()
    for leaf in range(1, 1 + data.leaves):
        # (n, draws, 1, 1), to broadcast with x and y of shape (side, side).
        u = draws[:, leaf, :, None, None]
        radius = data.smallest + (data.largest - data.smallest) * u[:, 2]
        aspect = 0.5 + 0.5 * u[:, 4]
        # Half a turn gives all orientations: both shapes are symmetric under a turn by pi.
        cosine, sine = np.cos(np.pi * u[:, 5]), np.sin(np.pi * u[:, 5])
        dx, dy = x - u[:, 0], y - u[:, 1]
        along = (cosine * dx + sine * dy) / radius
        across = (cosine * dy - sine * dx) / (radius * aspect)
        ellipse = along**2 + across**2 < 1
        box = np.maximum(np.abs(along), np.abs(across)) < 0.8
        inside = np.where(u[:, 3] < 0.5, ellipse, box)
        canvas = np.where(inside[..., None], rgb[:, leaf, None, None], canvas)
    return np.rint(canvas * 255).astype(np.uint8)
