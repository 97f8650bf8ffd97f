"""Past runs: release a comparison (`release`), run a revision again (`rerun`), compare its outputs (`output_diff`)."""
