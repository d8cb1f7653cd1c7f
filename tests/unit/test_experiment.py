"""The instant experiment of a lesson: drawn once where nobody looks, drawn again where a control changes."""

import ipywidgets as widgets
import pytest
from matplotlib.figure import Figure

from ftlab import plots
from ftlab.apps.board import experiment


def test_where_nobody_looks_it_draws_once_with_the_initial_values(monkeypatch):
    monkeypatch.setenv("FTLAB_HEADLESS", "1")
    drawn = []
    experiment.show(lambda **values: drawn.append(values), bits=(2, 8, 2), block=[32, 64], double=True)
    assert drawn == [{"bits": 4, "block": 32, "double": True}]


def test_a_changed_control_draws_again(monkeypatch):
    monkeypatch.delenv("FTLAB_HEADLESS", raising=False)
    drawn, shown = [], []
    monkeypatch.setattr(experiment, "display", shown.append)
    experiment.show(lambda bits: drawn.append(bits), bits=widgets.IntSlider(4, 2, 8))
    (box,) = shown
    slider, picture = box.children
    slider.value = 8
    assert drawn == [4, 8]
    assert slider.description == "bits" and not slider.continuous_update
    assert "ft-bits" in slider._dom_classes and "ft-picture" in picture._dom_classes


def test_a_short_run_is_drawn_at_whole_steps():
    ax = plots.plot_loss([{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}], Figure().subplots())
    assert all(tick == round(tick) for tick in ax.get_xticks())


@pytest.mark.parametrize("here", plots.STEPS)
def test_the_pipeline_fills_the_lesson_s_step_alone(here):
    ax = plots.plot_pipeline(here, Figure().subplots())
    filled = [text.get_text() for text in ax.texts if text.get_text() and text.get_color() == "white"]
    assert filled == [here]
