"""Search for hyperparameters: sampling, successive halving, trials, selection."""
