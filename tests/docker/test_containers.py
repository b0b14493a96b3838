"""What the container files promise, as far as it shows without an engine."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from tests.docker.compose_files import ROOT, services
from worker.store import BUNDLED_DEFAULT_MODEL

DOCKERFILES = sorted((ROOT / "docker").glob("*Dockerfile"))
COMPOSE_FILES = ("docker-compose.yml", "docker/compose.gpu.yaml")


def instructions(dockerfile: Path) -> list[str]:
    """One line for each instruction, without comments."""
    lines = [line for line in dockerfile.read_text().splitlines() if not line.lstrip().startswith("#")]
    return [line for line in "\n".join(lines).replace("\\\n", " ").splitlines() if line.strip()]


def pip_installs(dockerfile: Path) -> list[str]:
    return [line for line in instructions(dockerfile) if "pip install" in line]


def compose_config(*files: str, **variables: str) -> str:
    """The merged configuration as docker-compose or the compose plugin reads it."""
    for command in (["docker-compose"], ["docker", "compose"]):
        if shutil.which(command[0]) is None:
            continue
        if command[1:] and subprocess.run([*command, "version"], capture_output=True).returncode != 0:
            continue
        options = [option for file in files for option in ("-f", file)]
        environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/nonexistent", **variables}
        done = subprocess.run([*command, *options, "config"], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout
    pytest.skip("neither docker-compose nor the compose plugin is installed")


def test_both_images_are_there() -> None:
    assert [path.name for path in DOCKERFILES] == ["gateway.Dockerfile", "worker.Dockerfile"]


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_the_classic_builder_can_build_it(dockerfile: Path) -> None:
    text = dockerfile.read_text()
    assert not re.search(r"^#\s*syntax\s*=", text, re.MULTILINE), "a syntax line asks for BuildKit"
    for line in instructions(dockerfile):
        assert "<<" not in line, f"a here-document needs BuildKit: {line}"
        # --from, --chown, and HEALTHCHECK's own options are older than BuildKit; --mount, --link, --chmod are not.
        assert not re.match(r"(RUN|COPY|ADD)\s.*--(mount|network|security|link|chmod|parents|exclude|checksum)\b", line)


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_its_base_can_be_chosen_and_it_does_not_run_as_root(dockerfile: Path) -> None:
    lines = instructions(dockerfile)
    assert lines[0].startswith("ARG BASE=python:3")
    assert {line.split()[1] for line in lines if line.startswith("FROM")} == {"${BASE}"}
    (user,) = [line.split()[1] for line in lines if line.startswith("USER")]
    assert int(user) > 0
    assert lines.index(f"USER {user}") < [line.split()[0] for line in lines].index("CMD")


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_every_dependency_is_pinned(dockerfile: Path) -> None:
    *dependencies, ourselves = pip_installs(dockerfile)
    assert dependencies
    assert all("--constraint constraints.txt" in line for line in dependencies)
    assert ourselves.endswith("--no-deps .")


def extras_of(dockerfile: Path) -> list[str]:
    (line,) = [line for line in instructions(dockerfile) if "requirements.py" in line and line.startswith("RUN")]
    named = re.search(r"requirements\.py (.*?) >", line)
    assert named is not None
    return named[1].split()


def required(*extras: str) -> list[str]:
    """What the build's own script asks pip for."""
    command = [sys.executable, str(ROOT / "docker" / "requirements.py"), *extras]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


def test_the_gateway_image_installs_the_service_alone_and_so_no_torch() -> None:
    assert extras_of(ROOT / "docker" / "gateway.Dockerfile") == ["service"]
    names = {re.split(r"[^a-z0-9-]", line)[0] for line in required("service")}
    assert "fastapi" in names
    assert names.isdisjoint({"torch", "diffusers", "reverie"})


def test_the_worker_image_installs_the_worker() -> None:
    assert extras_of(ROOT / "docker" / "worker.Dockerfile") == ["worker"]
    assert any(line.startswith("torch>=") for line in required("worker"))


def test_the_worker_image_has_the_default_that_the_bundled_models_have() -> None:
    (line,) = [line for line in instructions(ROOT / "docker" / "worker.Dockerfile") if "REVERIE_STORE=" in line]
    assert f"REVERIE_DEFAULT_MODEL={BUNDLED_DEFAULT_MODEL}" in line.split()


def test_compose_accepts_the_files() -> None:
    config = compose_config("docker-compose.yml")
    assert "capabilities" not in config, "the base file must run without a GPU"
    every = yaml.safe_load(compose_config(*COMPOSE_FILES, COMPOSE_PROFILES="gpu1,gpu2,gpu3"))["services"]
    assert devices_of(every) == [["0"], ["1"], ["2"], ["3"]]


def devices_of(found: dict[str, Any]) -> list[list[str]]:
    """The GPUs of each service that has some."""
    reserved = [service.get("deploy", {}).get("resources", {}).get("reservations", {}) for service in found.values()]
    return sorted(device["device_ids"] for each in reserved for device in each.get("devices", ()))


def test_no_two_workers_share_a_gpu() -> None:
    """`count: 1` gives every replica the same one."""
    every = services(*COMPOSE_FILES)
    workers = {name: service for name, service in every.items() if service["image"] == "reverie-worker"}
    assert len(workers) == 4
    assert devices_of(workers) == [["0"], ["1"], ["2"], ["3"]]
    assert devices_of(services("docker-compose.yml")) == []


def test_workers_differ_in_their_gpu_alone() -> None:
    """They share an image: built in two ways, the last to be built would serve both."""
    every = services(*COMPOSE_FILES)
    own = {"deploy", "profiles"}
    first, *others = (
        {key: value for key, value in service.items() if key not in own}
        for service in every.values()
        if service["image"] == "reverie-worker"
    )
    assert all(other == first for other in others)
    assert first["environment"]["REVERIE_DEVICE"] == "cuda"
    assert first["depends_on"] == {"redis": {"condition": "service_healthy"}}
    assert [service.get("profiles") for name, service in every.items() if name.startswith("worker")] == [
        None,
        ["gpu1"],
        ["gpu2"],
        ["gpu3"],
    ]


def test_the_published_port_and_the_images_can_be_chosen() -> None:
    config = compose_config(
        "docker-compose.yml",
        REVERIE_PORT="9123",
        REVERIE_PUBLISH_HOST="0.0.0.0",
        REVERIE_REDIS_IMAGE="my-redis",
        REVERIE_BASE="my-base",
    )
    assert re.search(r"0\.0\.0\.0.*9123|9123.*0\.0\.0\.0", config, re.DOTALL)
    assert "image: my-redis" in config
    assert config.count("BASE: my-base") == 2


def test_the_gateway_in_a_container_is_given_keys_or_the_word_that_it_needs() -> None:
    """It listens on all addresses there, which it does not do without."""
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    gateway = compose["services"]["gateway"]
    assert {"REVERIE_API_KEYS", "REVERIE_ALLOW_ANONYMOUS"} <= set(gateway["environment"])
    assert "keys:/var/lib/reverie/keys" in gateway["volumes"]
    dockerfile = (ROOT / "docker" / "gateway.Dockerfile").read_text()
    assert "REVERIE_HOST=0.0.0.0" in dockerfile
    assert "/var/lib/reverie/keys" in dockerfile, "the volume gets its owner from the image"


def test_the_worker_is_given_longer_to_stop_than_it_takes() -> None:
    worker = services("docker-compose.yml")["worker"]
    assert int(worker["stop_grace_period"].removesuffix("s")) > worker["environment"]["REVERIE_GRACE_S"] + 5


def test_nothing_but_the_sources_goes_into_the_build() -> None:
    rules = (ROOT / ".dockerignore").read_text().split("\n")
    rules = [rule for rule in rules if rule and not rule.startswith("#")]
    assert rules[0] == "*"
    copied = {
        source
        for dockerfile in DOCKERFILES
        for line in instructions(dockerfile)
        if line.startswith("COPY") and "--from" not in line
        for source in line.split()[1:-1]
    }
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    assert {source.split("/")[0] for source in copied} <= allowed
    assert all((ROOT / source).exists() for source in copied)
