"""What the runs are worth: their evaluation, the comparison, figures and report, and predictions."""
