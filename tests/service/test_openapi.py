"""The OpenAPI document is true: whatever is generated from it, the gateway answers as the document says."""

import re
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import positive_data_acceptance

from service.access.api_key import CostLimit
from tests.service.access.conftest import Keys, bearer
from tests.service.access.test_ownership import png
from tests.service.fake_worker import OUT_OF_MEMORY, FakeWorker
from worker.contract import ImageFormat
from worker.outputs.image_files import encode

EXAMPLES = 12


@pytest.fixture
def http(worker: FakeWorker, start_gateway: Callable[..., httpx.Client]) -> httpx.Client:
    """Its streams are short: a client that takes no events waits for the end of what it has asked for. Its worker's
    files are pictures, for a contact sheet is made of them."""
    worker.file_of = lambda seed: encode(np.full((8, 8, 1), seed % 256, np.uint8), ImageFormat.PNG).data
    return start_gateway(stream_s=0.05)


@pytest.fixture
def keyed(worker: FakeWorker, start_gateway: Callable[..., httpx.Client]) -> tuple[httpx.Client, Keys]:
    """The same with keys and a limit; the client sends alice's."""
    keys = Keys.make(CostLimit(3600, 60))
    http = start_gateway(stream_s=0.05, api_keys=keys.lines)
    http.headers.update(bearer(keys.alice))
    return http, keys


@pytest.fixture
def job_ids(http: httpx.Client, worker: FakeWorker) -> list[str]:
    return jobs_in_each_state(http, worker)


def jobs_in_each_state(http: httpx.Client, worker: FakeWorker) -> list[str]:
    """One job in each state, and one that never was."""
    worker.file_of = lambda seed: png((seed % 256, 0, 0))  # a sheet is made of pictures

    def submit() -> str:
        return str(http.post("/generate", json={"steps": 5, "batch": 2}).json()["id"])

    succeeded, failed, running, canceled, queued = (submit() for _ in range(5))
    worker.succeed(worker.take())
    worker.fail(worker.take(), OUT_OF_MEMORY.model_dump_json())
    worker.report(worker.take(), step=2)
    http.delete(f"/jobs/{canceled}")
    return [succeeded, failed, running, canceled, queued, "0" * 32]


def test_answers_conform_to_the_document(http: httpx.Client, job_ids: list[str], worker: FakeWorker) -> None:
    with worker.serving(leave=job_ids):  # some answers wait for their images
        _check_operations(http, job_ids, [{}])


def test_answers_conform_to_the_document_with_keys_too(keyed: tuple[httpx.Client, Keys], worker: FakeWorker) -> None:
    """Asked by the owner of the jobs, by another and by an admin; and what needs a key is refused without one."""
    http, keys = keyed
    job_ids = jobs_in_each_state(http, worker)
    with worker.serving(leave=job_ids):
        _check_operations(http, job_ids, [bearer(key) for key in (keys.alice, keys.bob, keys.admin, keys.reader)])


def _check_operations(http: httpx.Client, job_ids: list[str], callers: list[dict[str, str]]) -> None:
    schema = schemathesis.openapi.from_url(f"{http.base_url}/openapi.json")
    # The callers' own headers take the place of keys that it would make up, or leave out to see them refused.
    schema.config.generation.with_security_parameters = False
    # A text that is too long may make the whole body too large, which the list of what refuses leaves out.
    schema.config.checks.negative_data_rejection.expected_statuses.append("413")
    failures: list[str] = []
    for result in schema.get_all_operations():
        assert isinstance(result, Ok), result
        operation = result.ok()
        for mode in schemathesis.GenerationMode:
            try:
                _check_all(operation.as_strategy(generation_mode=mode), job_ids, callers)
            except Unsatisfiable:
                assert mode is schemathesis.GenerationMode.NEGATIVE, f"{operation.label}: no valid request exists"
            except Exception as error:
                failures.append(f"{operation.label}, {mode.value}: {error}")
    assert not failures, "\n\n".join(failures)


def _check_all(
    cases: "st.SearchStrategy[schemathesis.Case[Any]]", job_ids: list[str], callers: list[dict[str, str]]
) -> None:
    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=cases, job_id=st.sampled_from(job_ids), known=st.booleans(), caller=st.sampled_from(callers))
    def check(case: "schemathesis.Case[Any]", job_id: str, known: bool, caller: dict[str, str]) -> None:
        # A random id is never found: let half of the cases meet a job.
        if known and "job_id" in case.path_parameters:
            case.path_parameters["job_id"] = job_id
        # Excluded: some rules (a known model, seed + batch within bounds) can't be expressed in a schema.
        case.call_and_validate(headers=caller, excluded_checks=[positive_data_acceptance])

    check()


def test_every_operation_declares_its_problems(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            problems = {status: answer for status, answer in operation["responses"].items() if int(status) >= 400}
            assert {"500", "503"} <= set(problems), (method, path)
            form = "application/json" if path.startswith("/v1/") else "application/problem+json"
            for answer in problems.values():
                assert list(answer["content"]) == [form], (method, path)
    assert {"400", "413", "415", "422", "429"} <= set(document["paths"]["/generate"]["post"]["responses"])
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_with_keys_every_operation_says_that_it_needs_one(keyed: tuple[httpx.Client, Keys]) -> None:
    document = keyed[0].get("/openapi.json").json()
    assert document["components"]["securitySchemes"] == {"ApiKey": {"type": "http", "scheme": "bearer"}}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            needs_key = path not in ("/livez", "/readyz")
            assert ("security" in operation) == ("401" in operation["responses"]) == needs_key, path


def test_every_operation_has_a_name_that_a_generated_client_can_use(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    names = [operation["operationId"] for operation in operations]
    assert len(set(names)) == len(names)
    assert [name for name in names if not re.fullmatch(r"[a-z]+(_[a-z]+)*", name)] == []
    assert [operation for operation in operations if not operation["summary"] or len(operation["tags"]) != 1] == []


def test_the_examples_of_the_document_work(http: httpx.Client) -> None:
    examples = http.get("/openapi.json").json()["components"]["schemas"]["GenerateRequest"]["examples"]
    assert examples
    for example in examples:
        # The example's label is a digit; this catalogue has three. Its prompt is for the model that takes one.
        fitted = {"class_label": 2} if "class_label" in example else {"model": "emoji"} if "prompt" in example else {}
        body = {**example, **fitted}
        assert http.post("/generate", json=body).status_code == 202
