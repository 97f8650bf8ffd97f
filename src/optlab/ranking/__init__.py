"""An open ranking: make a record by its protocol (`submission`), check one (`verification`), and rank all (`table`)."""
