"""What a trial computes from states and texts, without an engine."""

import re

import numpy as np

from server.trials import cosine_metrics, criterion
from steering.vector import SteeringVector

VECTOR = SteeringVector.of({1: np.array([1, 0, 0], np.float32), 2: np.array([0, 1, 0], np.float32)})


def test_overall_cosines_are_means_over_layers():
    """The overall AUROC compares each text's mean over layers, the layers' own each their cosines."""
    positive = np.array([[[1, 0, 0], [0, 0, 1]], [[0, 0, 1], [0, 1, 0]]], np.float32)
    negative = np.array([[[1, 0, 1], [0, 0, 1]]], np.float32)
    overall, layers = cosine_metrics(VECTOR, [1, 2], positive, negative)
    assert (overall.positive, overall.auroc) == (0.5, 1.0)
    assert (layers[1].positive, layers[1].auroc) == (0.5, 0.5)
    assert (layers[2].negative, layers[2].auroc) == (0.0, 0.75)


def test_examples_stand_in_for_a_description():
    """Without a description the judge is shown some of the texts."""
    assert criterion(" polite ", ["p"], ["n"]) == "polite"
    assert re.search(r"these texts:\n- p1\n- p2\n- p3\nand", criterion(None, ["p1", "p2", "p3", "p4"], ["n"]))
