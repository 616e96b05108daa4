"""Images to tokens and back: a multi-scale residual VQVAE, and the cache of encoded images."""
