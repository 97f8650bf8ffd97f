"""Reading of params.yaml (`loader`), its error messages, ready optimizers (`catalog`), new ones (`scaffold`)."""
