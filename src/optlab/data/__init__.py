"""The data set: downloaded (`download`, `archives`), verified, split, and handed out in batches (`dataset`)."""
