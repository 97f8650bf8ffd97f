"""Where values of hyperparameters are looked for, which trials go on, and what is chosen."""
