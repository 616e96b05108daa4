"""The diffusion baseline: a transformer that denoises the tokenizer's grid."""
