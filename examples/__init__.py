"""Real networks on real data, explained end to end: `make demo` and `make ecg`."""
