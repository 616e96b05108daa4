"""The science of one process: what tokenizers, models and trials are and how they are trained."""
