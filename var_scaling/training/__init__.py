"""The one loop, and the two things trained by it: a tokenizer, a trial."""
