"""Models of params.yaml: its sections (`parameters`), optimizers (`optimizer`) and ranges (`search_space`)."""
