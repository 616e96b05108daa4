"""The quickstart from another seed: other images, another tokenizer, other transformers."""

from sweeps.quickstart import grid

sweep = grid("quickstart_again", seed=1)
