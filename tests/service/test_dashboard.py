"""The dashboard and the scrape configuration name metrics that are there."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import yaml  # type: ignore[import-untyped]

from service.access.api_key import Scope, new_key
from tests.docker.compose_files import services
from tests.service.fake_worker import FakeWorker
from worker.contract import EngineCounters

DOCKER = Path(__file__).resolve().parents[2] / "docker"


def test_every_metric_of_the_dashboard_is_exposed(
    worker: FakeWorker, start_gateway: Callable[..., httpx.Client]
) -> None:
    worker.announce(counters=EngineCounters(model_image_steps={"digits": 1}), row_step_s={"digits": 0.1})
    http = start_gateway()
    http.delete(f"/jobs/{http.post('/generate', json={'steps': 1, 'batch': 1}).json()['id']}")
    exposed = set(re.findall(r"^# TYPE (\w+)", http.get("/metrics").text, re.MULTILINE))
    exposed |= {f"{name}_{part}" for name in exposed for part in ("bucket", "sum", "count")}
    dashboard = json.loads((DOCKER / "grafana.json").read_text())
    named = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"reverie_\w+", target["expr"])
    }
    assert len(named) > 15
    assert named - exposed == set()


def test_the_scrape_configuration_reaches_what_compose_starts() -> None:
    compose = services("docker-compose.yml")
    gateway, worker = yaml.safe_load((DOCKER / "prometheus.yml").read_text())["scrape_configs"]
    assert gateway["static_configs"][0]["targets"] == ["gateway:8000"]
    assert compose["gateway"]["ports"][0].endswith(":8000")
    (found,) = worker["dns_sd_configs"]
    assert compose[found["names"][0]]["environment"]["REVERIE_METRICS_PORT"] == found["port"]


@pytest.mark.parametrize("with_keys", [True, False])
def test_the_scrape_configuration_sends_the_key_that_the_gateway_needs(
    with_keys: bool, worker: FakeWorker, start_gateway: Callable[..., httpx.Client]
) -> None:
    gateway = yaml.safe_load((DOCKER / "prometheus.yml").read_text())["scrape_configs"][0]
    assert gateway["authorization"] == {"credentials_file": "/etc/prometheus/reverie_key"}
    key, kept = new_key("prometheus", Scope.ADMIN)
    http = start_gateway(api_keys=kept.line()) if with_keys else start_gateway()
    # As Prometheus sends it; of a file that is empty while keys are off.
    scraped = http.get("/metrics", headers={"Authorization": f"Bearer {key if with_keys else ''}".strip()})
    assert scraped.status_code == 200
    assert "reverie_redis_up 1" in scraped.text
