"""params.yaml: read it (`loader`), ready entries (`catalog`), new optimizers (`scaffold`)."""
