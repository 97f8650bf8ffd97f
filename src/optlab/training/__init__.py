"""One training: model, optimizer, loop, determinism, checkpoints."""
