"""The ready entries of the catalog, as `optlab add` writes them for a network."""

from optlab.config import catalog
from optlab.preflight import model_check


def fill_in(model="zilliax"):
    """The entries by name."""
    output = model_check.find_output_weight(model)
    return {each.name: each.fill_in_output_weight(output) for each in catalog.load().entries}
