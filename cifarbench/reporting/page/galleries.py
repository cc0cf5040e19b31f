"""Test images worth looking at, chosen by the stored predictions and taken from the dataset by their numbers."""

from __future__ import annotations

from typing import Any

from cifarbench.data.dataset import ImageSet
from cifarbench.evaluation.inspection import confidence_extremes, examples_of, top_losses
from cifarbench.reporting.page.pictures import image_address
from cifarbench.reporting.page.record import Record

_LOSSES, _EXAMPLES, _EXTREMES = 22, 8, 6


def galleries(record: Record, data: ImageSet | None) -> dict[str, Any] | None:
    """The three galleries as plain values; None where nothing was tested, images without `src` where `data` is None.

    Returns:
        `confused`: pairs with their examples; `losses`: the costliest images; `extremes`: for each class its most
        and least confidently answered images.
    """
    answers, report = record.predictions, record.score
    if answers is None or report is None:
        return None
    place = {name: index for index, name in enumerate(record.classes)}

    def show(positions: list[int]) -> list[dict[str, Any]]:
        return [_item(record, data, position) for position in positions]

    confused = [
        {**pair, "images": show(examples_of(answers, place[pair["true"]], place[pair["predicted"]], _EXAMPLES))}
        for pair in report["most_confused"]
    ]
    extremes = []
    for label, name in enumerate(record.classes):
        most, least = confidence_extremes(answers, label, _EXTREMES)
        extremes.append({"name": name, "most": show(most), "least": show(least)})
    return {"confused": confused, "losses": show(top_losses(answers, _LOSSES)), "extremes": extremes}


def _item(record: Record, data: ImageSet | None, position: int) -> dict[str, Any]:
    answers = record.predictions
    assert answers is not None
    index, true = int(answers.indices[position]), int(answers.targets[position])
    logarithms = answers.logits[position].double().log_softmax(0)
    probabilities = logarithms.exp()
    answer = int(answers.predicted[position])
    return {
        "index": index,
        "true": record.classes[true],
        "answer": record.classes[answer],
        "probability": probabilities[answer].item(),
        "probability_true": probabilities[true].item(),
        "loss": -logarithms[true].item(),
        "right": answer == true,
        "src": None if data is None else image_address(data.images[index]),
    }


def without_pictures(values: Any) -> Any:
    """The same values without the images' bytes, for the JSON beside the page."""
    if isinstance(values, dict):
        return {name: without_pictures(value) for name, value in values.items() if name != "src"}
    return [without_pictures(value) for value in values] if isinstance(values, list) else values
