"""The quickstart with another seed for images, tokenizer and transformers."""

from sweeps.quickstart import grid

sweep = grid("quickstart_again", seed=1)
