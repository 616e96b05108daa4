"""What a sweep will cost, what it will find, what to run next."""
