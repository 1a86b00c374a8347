"""The scores of GLUE and SuperGLUE, against values computed by hand."""

import pytest
import torch

from ldadam.finetune.hub import HUB_TASKS
from ldadam.finetune.metrics import (
    METRICS,
    Outcome,
    accuracy,
    all_correct,
    best_choice,
    f1,
    f1_macro,
    matthews,
    pearson,
    ranks,
    scores,
    spearman,
)

# Of class 1: two hits, one false alarm, one miss, and one other example right.
PREDICTED, TRUE = torch.tensor([1, 1, 0, 0, 1]), torch.tensor([1, 0, 0, 1, 1])


def test_accuracy_and_f1():
    assert accuracy(PREDICTED, TRUE) == pytest.approx(3 / 5)
    assert f1(PREDICTED, TRUE) == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))


def test_f1_of_a_class_that_nobody_names_is_zero():
    assert f1(torch.zeros(4), torch.zeros(4)) == 0


def test_f1_macro_is_the_mean_over_classes():
    found = f1_macro(torch.tensor([0, 1, 1, 2]), torch.tensor([0, 1, 2, 2]))
    assert found == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)


def test_matthews_of_two_classes():
    assert matthews(PREDICTED, TRUE) == pytest.approx((2 * 1 - 1 * 1) / (3 * 3 * 2 * 2) ** 0.5)


def test_matthews_of_three_classes():
    """(correct n - sum of p t) / sqrt((n² - sum of p²)(n² - sum of t²)), p and t being counts of each class."""
    predicted, true = torch.tensor([0, 1, 1, 1, 2, 0]), torch.tensor([0, 0, 1, 1, 2, 2])
    assert matthews(predicted, true) == pytest.approx((4 * 6 - 12) / ((36 - 14) * (36 - 12)) ** 0.5)


@pytest.mark.parametrize(("predicted", "expected"), [([0, 1, 1], 1), ([1, 0, 0], -1), ([1, 1, 1], 0)])
def test_matthews_at_its_ends_and_of_a_constant(predicted, expected):
    assert matthews(torch.tensor(predicted), torch.tensor([0, 1, 1])) == pytest.approx(expected)


def test_pearson():
    """Deviations (-3, -1, 1, 3)/2 and (-3, 1, -1, 3)/2: their product is 4, their squares 5."""
    assert pearson(torch.tensor([1.0, 2, 3, 4]), torch.tensor([1.0, 3, 2, 4])) == pytest.approx(4 / 5)
    assert pearson(torch.ones(3), torch.tensor([1.0, 2, 3])) == 0


def test_equal_numbers_share_a_rank():
    assert ranks(torch.tensor([5.0, 2, 7, 5, 5])).tolist() == [3, 1, 5, 3, 3]


def test_spearman_is_of_ranks():
    assert spearman(torch.tensor([1.0, 10, 100]), torch.tensor([-1.0, 0, 0.1])) == pytest.approx(1)
    assert spearman(torch.tensor([1.0, 2, 2, 3]), torch.tensor([1.0, 2, 3, 4])) == pytest.approx(4.5 / 22.5**0.5)


def test_a_question_counts_when_all_its_answers_are_right():
    groups = torch.tensor([7, 7, 3, 3, 9])
    assert all_correct(PREDICTED, TRUE, groups) == pytest.approx(1 / 3)


def test_the_choice_with_the_larger_margin_counts():
    outputs = torch.tensor([[0.0, 3.0], [0.0, 2.0], [4.0, 1.0], [4.0, 2.0]])
    groups = torch.tensor([0, 0, 1, 1])
    assert best_choice(outputs, torch.tensor([1, 0, 0, 1]), groups) == 1
    assert best_choice(outputs, torch.tensor([0, 1, 0, 1]), groups) == 0.5


def test_every_task_names_scores_that_exist():
    for task in HUB_TASKS.values():
        assert task.metrics and set(task.metrics) <= set(METRICS)


def test_classes_are_the_likeliest_and_numbers_are_themselves():
    outcome = Outcome(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]), torch.zeros(2))
    assert scores(outcome, ("accuracy",)) == {"accuracy": 0.5}
    outcome = Outcome(torch.tensor([[1.0], [3.0]]), torch.tensor([0.0, 5.0]), torch.zeros(2))
    assert scores(outcome, ("pearson",)) == {"pearson": pytest.approx(1)}
