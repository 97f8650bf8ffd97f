"""A share of `benchmarks/bad_input.py`: bad input is refused with one line, or means what it says."""

import bad_input
import pytest
from bad_params import KINDS

WRONG = {
    "another value": ({"lr": 0.1}, {"lr": 0.2}),
    "another type": ({"shuffle": 1}, {"shuffle": True}),
    "text for a number": ({"lr": "1e-3"}, {"lr": 0.001}),
    "a key left out": ({"lr": 0.1, "x": 1}, {"lr": 0.1}),
    "a key too many": ({"lr": 0.1}, {"lr": 0.1, "x": 1}),
    "a shorter list": ({"seeds": [0, 1]}, {"seeds": [0]}),
}


@pytest.mark.parametrize(("said", "read"), WRONG.values(), ids=WRONG)
def test_misread_params_are_detected(said, read):
    assert bad_input.same(said, said)
    assert not bad_input.same(said, read)


def test_bad_input_benchmark_subset_passes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(bad_input.download.ARCHIVE_ENV_VAR, "")  # taken back afterwards
    found = bad_input.measure(seed=4, mutations=2 * len(KINDS), commands=0, archives=11, weights_files=9)
    assert len(found) == 2 * len(KINDS) + 20
    assert not bad_input.wrong(found)
    assert bad_input.table(found).count("\n") == 4
