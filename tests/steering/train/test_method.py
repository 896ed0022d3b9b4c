import pytest

from steering.train.method import METHODS, checked
from steering.train.pairs import Pair


def test_unknown_methods_list_the_known():
    """The error for a name that does not exist holds those that do."""
    with pytest.raises(ValueError, match=r"caa, few-shot, asas, steering-perceptrons.*'pca'"):
        checked("pca", [Pair("p", "a", "n")])


@pytest.mark.parametrize("name", ["caa", "asas"])
def test_positives_alone_are_refused_where_both_are_compared(name):
    """The error names the pair, and the methods that would do."""
    with pytest.raises(ValueError, match=r"pair 2 has no negative.*few-shot and steering-perceptrons"):
        checked(name, [Pair("p", "a", "n"), Pair("p", "a")])


@pytest.mark.parametrize("name", ["few-shot", "steering-perceptrons"])
def test_positives_alone_are_enough_elsewhere(name):
    """Methods that learn from positives accept pairs without negatives."""
    assert checked(name, [Pair("p", "a")]) is METHODS[name]
