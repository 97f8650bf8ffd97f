"""Running many stages: parallel `repro`, tuning, `versus`; on local cores or on a Ray cluster."""
