"""What decides a weight, and nothing else."""
