"""The curves: one line per optimizer, in the interval that its seeds give."""

import pytest

from optlab.record.contents import Epoch
from optlab.results import figures, statistics


def history(*losses):
    return [
        Epoch(epoch=number, train_loss=loss, running_loss=1.0, validation_loss=None, validation_accuracy=None, lr=0.1)
        for number, loss in enumerate(losses, start=1)
    ]


def test_the_mean_over_the_seeds_lies_in_its_interval():
    (axis,) = figures.curves([("adam", history(2.0, 1.0)), ("adam", history(2.2, 1.4)), ("sgd", history(2.3))]).axes
    adam, sgd = axis.lines
    assert (list(adam.get_xdata()), list(adam.get_ydata())) == ([1, 2], pytest.approx([2.1, 1.2]))
    assert (list(sgd.get_xdata()), list(sgd.get_ydata())) == ([1], [2.3])
    (band,) = axis.collections  # one seed has none
    corners = band.get_paths()[0].vertices
    half = statistics.figure([1.0, 1.4]).half
    at_end = {round(float(y), 6) for x, y in corners if x == 2}
    assert at_end == {round(1.2 - half, 6), round(1.2 + half, 6)}
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["adam", "sgd"]


def test_where_a_seed_has_diverged_there_is_no_mean():
    (axis,) = figures.curves([("adam", history(2.0, 1.0)), ("adam", history(2.2, None))]).axes
    assert list(axis.lines[0].get_xdata()) == [1]


def test_an_optimizer_without_any_figure_is_in_the_legend():
    (axis,) = figures.curves([("adam", history(None)), ("adam", history(None)), ("sgd", history(1.0))]).axes
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["adam", "sgd"]
