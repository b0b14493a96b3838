"""A client that a generator makes of the OpenAPI document works."""

import subprocess
import sys
from pathlib import Path

import httpx

from tests.service.fake_worker import FakeWorker

# The generator knows no pictures; as any bytes they are files to it.
CONFIGURATION = """
post_hooks: []
content_type_overrides:
  image/png: application/octet-stream
  image/webp: application/octet-stream
  image/*: application/octet-stream
"""

PROGRAM = """
import sys
from reverie_client import Client
from reverie_client.api.images import get_image
from reverie_client.api.jobs import generate, get_job
from reverie_client.api.models import list_models
from reverie_client.api.openai import list_openai_models
from reverie_client.models import GenerateRequest, Job, JobState, Problem

client = Client(base_url=sys.argv[1])
job = generate.sync(client=client, body=GenerateRequest(steps=5, batch=2, seed=7), prefer="wait=30")
assert isinstance(job, Job) and job.status is JobState.SUCCEEDED, job
assert get_job.sync(job.id, client=client).images == job.images
for image in job.images:
    print(get_image.sync(job.id, image.index, client=client).payload.read().decode())
refused = generate.sync(client=client, body=GenerateRequest(steps=0, batch=2))
assert isinstance(refused, Problem) and refused.errors[0].field == "steps", refused
print(*(model.name for model in list_models.sync(client=client).models))
print(*(model.id for model in list_openai_models.sync(client=client).data))
"""


def test_a_generated_client_draws(http: httpx.Client, worker: FakeWorker, tmp_path: Path) -> None:
    (tmp_path / "openapi.json").write_bytes(http.get("/openapi.json").content)
    (tmp_path / "config.yml").write_text(CONFIGURATION)
    command = ["openapi_python_client", "generate", "--path", "openapi.json", "--config", "config.yml"]
    output = ["--meta", "none", "--output-path", "reverie_client"]
    made = subprocess.run(
        [sys.executable, "-m", *command, *output], cwd=tmp_path, capture_output=True, text=True, timeout=240
    )
    assert made.returncode == 0, made.stdout + made.stderr
    assert "WARNING" not in made.stdout + made.stderr

    with worker.serving():
        run = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(http.base_url)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert run.stdout.splitlines() == [
        "pixels of seed 7",
        "pixels of seed 8",
        "digits clouds emoji",
        "digits clouds emoji",
    ], run.stderr
