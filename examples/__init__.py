"""Networks on real data with their attributions: `make demo`, `make ecg`, `make examples`."""
