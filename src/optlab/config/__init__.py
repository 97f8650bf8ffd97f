"""params.yaml: read it (`loader`), edit it (`params_editor`), ready entries (`catalog`), new ones (`scaffold`)."""
