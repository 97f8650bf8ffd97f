"""Analysis of the runs: metrics, comparison, verdicts, figures, report, inference."""
