"""The speed of training steps by size: measurements in the home, and what is assumed without."""
