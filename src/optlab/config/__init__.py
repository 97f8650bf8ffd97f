"""params.yaml: its models (`parameters`), reading it (`reading`), the wording of its errors (`wording`)."""
