"""The training loop, and the training of a tokenizer and of a trial's model."""
