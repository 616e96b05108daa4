"""The science of one process: what a tokenizer, a model and a trial are, and how they are trained."""
