"""The models of params.yaml: the pipeline's parameters, its optimizers, and their search spaces."""
