"""The stages of a sweep: which there are, what each does, and one attempt at one of them."""
