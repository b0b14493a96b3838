"""What a job asks for, also as an older gateway wrote it."""

import pytest
from pydantic import ValidationError

from worker.contract import Guidance, LabelCondition, NoCondition, SamplingRequest

FIELDS = {"model": "digits", "seed": 1, "steps": 2, "batch": 3}


@pytest.mark.parametrize("condition", [NoCondition(), LabelCondition(label=3)])
def test_a_request_is_the_same_after_its_way_through_the_queue(condition: NoCondition | LabelCondition) -> None:
    request = SamplingRequest.model_validate({**FIELDS, "condition": condition, "guidance": Guidance(scale=2.5)})
    assert SamplingRequest.model_validate_json(request.model_dump_json()) == request


def test_jobs_of_a_gateway_of_version_0_1_are_read() -> None:
    """A running service may be upgraded while jobs wait."""
    old = SamplingRequest.model_validate({**FIELDS, "class_label": 3, "guidance_scale": 2.5})
    assert (old.condition, old.guidance) == (LabelCondition(label=3), Guidance(scale=2.5))
    plain = SamplingRequest.model_validate({**FIELDS, "class_label": None, "guidance_scale": 1.0})
    assert plain == SamplingRequest.model_validate(FIELDS)


@pytest.mark.parametrize(
    "wrong",
    [
        {"condition": {"kind": "label", "label": -1}},
        {"condition": {"kind": "label"}},
        {"condition": {"kind": "smell"}},
        {"condition": {"kind": "none", "label": 1}},
        {"guidance": {"scale": 101}},
        {"condition": {"kind": "none"}, "class_label": 1},
        {"class_label": -1},
    ],
)
def test_what_is_no_condition_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SamplingRequest.model_validate(FIELDS | wrong)
