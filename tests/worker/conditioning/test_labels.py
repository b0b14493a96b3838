"""Labels as rows of the class embedding, unconditional first."""

import pytest
import torch

from tests.worker.engine.harness import CPU
from worker.conditioning.conditioning import Conditioning, ConditionRefusedError
from worker.conditioning.labels import Labels, Unconditional
from worker.contract import Guidance, LabelCondition, NoCondition


def conditioning(labels: Labels | Unconditional, label: int | None, w: float) -> Conditioning:
    condition = NoCondition() if label is None else LabelCondition(label=label)
    encoding = labels(condition, Guidance(scale=w))
    assert encoding.calls == (), "a label needs no encoder"
    (made,) = encoding.assemble(())
    return made


@pytest.mark.parametrize(
    ("label", "w", "rows"), [(2, 1.0, [2]), (2, 0.0, [4]), (None, 1.0, [4]), (None, 3.0, [4]), (2, 3.0, [4, 2])]
)
def test_guidance_takes_a_second_row_only_where_it_mixes_two(label: int | None, w: float, rows: list[int]) -> None:
    made = conditioning(Labels("m", "class_labels", 4, 4, CPU), label, w)
    assert made.named["class_labels"].tolist() == rows
    assert made.named["class_labels"].dtype == torch.int64
    assert (made.rows, made.guided) == (len(rows), len(rows) == 2)


@pytest.mark.parametrize(
    ("labels", "label", "w", "text"),
    [
        (Labels("m", "class_labels", 4, 4, CPU), 4, 1.0, "need class_label < 4 for model m, got 4"),
        (Labels("m", "class_labels", 4, None, CPU), None, 1.0, "need a class_label, got none"),
        (Labels("m", "class_labels", 4, None, CPU), 1, 2.0, "need guidance_scale 1, got 2.0"),
        (Unconditional("m"), 0, 1.0, "model m has no classes, got class_label 0"),
        (Unconditional("m"), None, 2.0, "no classes to guide by, got guidance_scale 2.0"),
    ],
)
def test_what_a_model_cannot_be_given_is_refused(
    labels: Labels | Unconditional, label: int | None, w: float, text: str
) -> None:
    with pytest.raises(ConditionRefusedError, match=text):
        conditioning(labels, label, w)
