"""The numbers of a report against scikit-learn and hand computation, and the views of test-time augmentation."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torch import Tensor, nn

from cifarbench.compute import Compute
from cifarbench.data.dataset import CLASSES
from cifarbench.evaluation import predict as prediction
from cifarbench.evaluation.metrics import (
    calibration_error,
    confusion_matrix,
    loss_and_accuracy,
    most_confused,
    per_class,
    score,
    wilson_interval,
)
from cifarbench.evaluation.predict import predict

CPU = Compute(torch.device("cpu"), "fp32")
MEAN, STD = (0.49, 0.48, 0.44), (0.25, 0.24, 0.26)


@pytest.fixture(scope="module")
def answers() -> tuple[Tensor, Tensor]:
    """Logits (2000, 10) that are right about half of the time, and targets of unequal classes."""
    draw = np.random.default_rng(11)
    targets = draw.choice(10, 2_000, p=np.linspace(1, 3, 10) / 20)
    logits = draw.normal(0, 2, (2_000, 10)) + 3 * np.eye(10)[targets]
    return torch.from_numpy(logits).float(), torch.from_numpy(targets)


@pytest.fixture(scope="module")
def report(answers) -> dict:
    return score(*answers, CLASSES, None)


class OnMps(Tensor):
    """A tensor that says it lies on MPS, where there is no float64."""

    device = torch.device("mps")

    def double(self) -> Tensor:
        """Fail as it does there."""
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64.")

    def cpu(self) -> Tensor:
        """The same values as an ordinary tensor."""
        return self.as_subclass(Tensor)


def probabilities_of(logits: Tensor) -> np.ndarray:
    """Softmax in float64 NumPy."""
    exponentials = np.exp(logits.numpy().astype(np.float64))
    return exponentials / exponentials.sum(1, keepdims=True)


def test_the_confusion_matrix_is_that_of_scikit_learn(answers, report):
    logits, targets = answers
    assert report["confusion_matrix"] == sk.confusion_matrix(targets, logits.argmax(1)).tolist()


def test_accuracy_is_that_of_scikit_learn(answers, report):
    logits, targets = answers
    assert report["accuracy"] == pytest.approx(sk.accuracy_score(targets, logits.argmax(1)))


def test_precision_recall_f1_and_support_are_those_of_scikit_learn(answers, report):
    logits, targets = answers
    theirs = np.array(sk.precision_recall_fscore_support(targets, logits.argmax(1))).T
    ours = [[row[name] for name in ("precision", "recall", "f1", "support")] for row in report["per_class"].values()]
    assert list(report["per_class"]) == list(CLASSES)
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_a_class_that_never_occurs_or_is_never_answered_scores_zero():
    predicted, targets = np.array([0, 0, 2, 2]), np.array([0, 1, 1, 0])
    matrix = confusion_matrix(torch.from_numpy(predicted), torch.from_numpy(targets), 4)
    theirs = np.array(sk.precision_recall_fscore_support(targets, predicted, labels=range(4), zero_division=0)).T
    ours = [
        [row[name] for name in ("precision", "recall", "f1", "support")]
        for row in per_class(matrix, CLASSES[:4]).values()
    ]
    np.testing.assert_allclose(ours, theirs)


def test_the_loss_is_the_log_loss_of_scikit_learn(answers, report):
    logits, targets = answers
    theirs = sk.log_loss(targets, probabilities_of(logits))
    assert report["loss"] == pytest.approx(theirs, rel=1e-9)
    assert report["nll"] == report["loss"]


def test_loss_and_accuracy_agree_with_the_report(answers, report):
    assert loss_and_accuracy(*answers) == (report["loss"], report["accuracy"])


def test_a_device_without_float64_gives_the_same_loss_and_accuracy(answers):
    logits, targets = (tensor.as_subclass(OnMps) for tensor in answers)
    assert loss_and_accuracy(logits, targets) == loss_and_accuracy(*answers)


def test_the_brier_score_sums_over_the_classes_as_in_scikit_learn(answers, report):
    logits, targets = answers
    columns = probabilities_of(logits).T
    theirs = sum(sk.brier_score_loss(targets == label, column) for label, column in enumerate(columns))
    assert report["brier"] == pytest.approx(theirs, rel=1e-9)


def test_the_brier_score_of_being_surely_wrong_is_two():
    assert score(torch.tensor([[100.0, 0.0]]), torch.tensor([1]), ("a", "b"), None)["brier"] == pytest.approx(2.0)


def test_the_calibration_error_is_that_of_a_loop_over_bins(answers, report):
    logits, targets = answers
    chances = probabilities_of(logits)
    confidence, right = chances.max(1), chances.argmax(1) == targets.numpy()
    expected = 0.0
    for number in range(15):
        inside = (confidence > number / 15) & (confidence <= (number + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert report["ece"] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("number", range(14))
def test_errors_of_neighbouring_bins_do_not_cancel(number):
    lower, upper = (number + 0.5) / 15, (number + 1.5) / 15
    confidences = torch.tensor([[lower], [upper]], dtype=torch.float64)
    too_sure, too_unsure = lower, 1 - upper
    assert calibration_error(confidences, torch.tensor([False, True])) == pytest.approx((too_sure + too_unsure) / 2)


def test_full_confidence_belongs_to_the_last_bin():
    sure = torch.eye(10, dtype=torch.float64)
    half_right = torch.arange(10) % 2 == 0
    assert calibration_error(sure, half_right) == pytest.approx(0.5)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below():
    # 0.6 is the upper edge of the ninth bin of fifteen and 0.55 lies inside that bin, so their errors cancel.
    chances = torch.tensor([[0.6, 0.4], [0.55, 0.45]], dtype=torch.float64)
    assert calibration_error(chances, torch.tensor([True, False])) == pytest.approx(abs(1.15 - 1) / 2)


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    # Newcombe (1998), Statistics in Medicine 17, table I: the score method without continuity correction.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_wilson_interval_has_the_published_values(hits, count, low, high):
    assert wilson_interval(hits, count) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("hits", "count"), [(1, 10), (9_312, 10_000), (11_000, 12_000)])
def test_the_ends_of_the_wilson_interval_solve_its_equation(hits, count):
    for end in wilson_interval(hits, count):
        assert abs(hits / count - end) == pytest.approx(
            1.959963984540054 * math.sqrt(end * (1 - end) / count), rel=1e-9
        )


@pytest.mark.parametrize(("hits", "inside"), [(0, 0.0), (50, 1.0)])
def test_the_wilson_interval_stays_a_share(hits, inside):
    low, high = wilson_interval(hits, 50)
    assert 0.0 <= low <= inside <= high <= 1.0


def test_the_interval_of_the_report_is_of_its_hits(answers, report):
    logits, targets = answers
    hits = int(np.trace(sk.confusion_matrix(targets, logits.argmax(1))))
    assert report["accuracy_interval"] == list(wilson_interval(hits, 2_000))


def test_most_confused_lists_the_largest_mistakes_with_their_share_of_the_true_class():
    matrix = torch.tensor([[5, 3, 0], [1, 9, 0], [7, 0, 90]])
    assert most_confused(matrix, ("a", "b", "c"), count=2) == [
        {"true": "c", "predicted": "a", "count": 7, "share": 7 / 97},
        {"true": "a", "predicted": "b", "count": 3, "share": 3 / 8},
    ]


def test_most_confused_leaves_out_pairs_that_never_happened():
    assert most_confused(torch.tensor([[5, 0], [1, 9]]), ("a", "b")) == [
        {"true": "b", "predicted": "a", "count": 1, "share": 0.1}
    ]


def test_equally_frequent_mistakes_are_listed_in_reading_order():
    rows = most_confused(torch.ones(3, 3, dtype=torch.int64), ("a", "b", "c"), count=3)
    assert [(row["true"], row["predicted"]) for row in rows] == [("a", "b"), ("a", "c"), ("b", "a")]


def test_most_confused_leaves_the_matrix_as_it_was():
    matrix = torch.tensor([[5, 3], [1, 9]])
    most_confused(matrix, ("a", "b"))
    assert matrix.tolist() == [[5, 3], [1, 9]]


def test_official_accuracy_counts_official_images_alone(answers):
    logits, targets = answers
    official = torch.arange(2_000) >= 1_500
    scored = score(logits, targets, CLASSES, official)
    assert scored["n_official"] == 500
    assert scored["accuracy_official"] == pytest.approx(sk.accuracy_score(targets[1_500:], logits[1_500:].argmax(1)))
    assert scored["n"] == 2_000


def test_without_official_images_their_accuracy_is_none(report):
    assert report["accuracy_official"] is None
    assert report["n_official"] is None


def test_a_report_is_plain_json(report):
    assert json.loads(json.dumps(report, allow_nan=False)) == report


# --- predict ---------------------------------------------------------------------------------------------------------


class Linear(nn.Module):
    """A linear model in float64 NumPy's reach: logits = weight · pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.from_numpy(np.random.default_rng(4).normal(0, 0.1, (10, 3 * 6 * 6))).float())
        self.batches: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.batches.append(len(images))
        return images.flatten(1) @ self.weight.T


def small_images(count: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(5).integers(0, 256, (count, 3, 6, 6), dtype=np.uint8))


def by_hand(model: Linear, images: np.ndarray) -> np.ndarray:
    """Logits of already normalised float64 images."""
    return images.reshape(len(images), -1) @ model.weight.detach().numpy().astype(np.float64).T


def normal(images: Tensor) -> np.ndarray:
    shape = (1, 3, 1, 1)
    return (images.numpy() / 255.0 - np.reshape(MEAN, shape)) / np.reshape(STD, shape)


def mirrored(images: np.ndarray) -> np.ndarray:
    return images[..., ::-1]


def moved(images: np.ndarray, by: int) -> np.ndarray:
    """Shifted `by` pixels down and to the right, pixel by pixel, the border filled by reflection."""
    out = np.empty_like(images)
    for row in range(6):
        for column in range(6):
            from_row, from_column = (-at if at < 0 else 10 - at if at > 5 else at for at in (row - by, column - by))
            out[:, :, row, column] = images[:, :, from_row, from_column]
    return out


def test_without_views_the_logits_are_those_of_the_normalised_images():
    model, images = Linear(), small_images(9)
    np.testing.assert_allclose(predict(model, images, (MEAN, STD), CPU), by_hand(model, normal(images)), atol=1e-5)


def test_flip_averages_the_image_and_its_mirror():
    model, images = Linear(), small_images(9)
    plain = normal(images)
    expected = (by_hand(model, plain) + by_hand(model, mirrored(plain))) / 2
    np.testing.assert_allclose(predict(model, images, (MEAN, STD), CPU, "flip"), expected, atol=1e-5)


def test_multicrop_weighs_the_middle_a_quarter_and_each_shift_an_eighth():
    model, images = Linear(), small_images(9)
    plain, up, down = (moved(normal(images), by) for by in (0, -1, 1))
    views = [(plain, 0.25), (up, 0.125), (down, 0.125)]
    expected = sum(weight * (by_hand(model, view) + by_hand(model, mirrored(view))) for view, weight in views)
    np.testing.assert_allclose(predict(model, images, (MEAN, STD), CPU, "multicrop"), expected, atol=1e-5)


@pytest.mark.parametrize("tta", ["none", "flip", "multicrop"])
def test_logits_do_not_depend_on_where_batches_end(tta, monkeypatch):
    model, images = Linear(), small_images(23)
    whole = predict(model, images, (MEAN, STD), CPU, tta)
    monkeypatch.setattr(prediction, "EVAL_BATCH", 5)
    model.batches.clear()
    torch.testing.assert_close(predict(model, images, (MEAN, STD), CPU, tta), whole, rtol=1e-5, atol=1e-5)
    assert max(model.batches) == 5
    assert sum(model.batches) % 23 == 0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_logits_are_float32_in_every_precision(precision):
    logits = predict(Linear(), small_images(3), (MEAN, STD), Compute(torch.device("cpu"), precision), "flip")
    assert (logits.dtype, logits.shape, logits.requires_grad) == (torch.float32, (3, 10), False)


def test_no_images_give_no_logits():
    assert predict(Linear(), small_images(0), (MEAN, STD), CPU).shape == (0, 10)


@pytest.mark.parametrize("training", [True, False])
def test_predicting_leaves_the_mode_as_it_was(training):
    model = Linear().train(training)
    predict(model, small_images(3), (MEAN, STD), CPU)
    assert model.training is training


def test_predicting_uses_evaluation_mode_and_leaves_the_model_unchanged():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Flatten(), nn.Linear(108, 10)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = small_images(8)
    assert torch.equal(predict(model, images, (MEAN, STD), CPU), predict(model, images, (MEAN, STD), CPU))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("channels_last", [True, False])
def test_batches_have_the_memory_layout_asked_for(channels_last):
    seen = []

    class Looking(Linear):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(images.is_contiguous(memory_format=torch.channels_last))
            return super().forward(images)

    predict(Looking(), small_images(3), (MEAN, STD), CPU, channels_last=channels_last)
    assert seen == [channels_last]


def test_predicting_leaves_the_images_as_they_were():
    images = small_images(3)
    before = images.clone()
    predict(Linear(), images, (MEAN, STD), CPU, "multicrop")
    assert torch.equal(images, before)
