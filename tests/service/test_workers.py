"""How many workers, and on what each computes."""

import sys

import pytest

from service.launcher.command_errors import DevicesError
from service.launcher.workers import ask_for_devices, worker_environments
from tests.worker.networks.test_cards import A100, Machine
from worker.devices import visible_devices

GPUS = ["cuda:0", "cuda:1"]


def devices_of(wanted: str, devices: list[str], **env: str) -> list[str | None]:
    return [own.get("REVERIE_DEVICE") for own in worker_environments(wanted, env, devices, cores=8)]


def test_auto_is_one_for_each_gpu_and_one_for_a_cpu() -> None:
    assert devices_of("auto", GPUS) == GPUS
    assert devices_of("auto", GPUS, REVERIE_DEVICE="cuda") == GPUS
    assert devices_of("auto", ["cuda:0"]) == [None], "a single worker chooses by itself"
    assert devices_of("auto", ["cpu"]) == [None]


def test_several_share_out_the_gpus_or_the_cores() -> None:
    assert devices_of("3", GPUS) == ["cuda:0", "cuda:1", "cuda:0"]
    on_cpu = worker_environments("3", {}, ["cpu"], cores=8)
    assert [own["REVERIE_CPU_THREADS"] for own in on_cpu] == ["2", "2", "2"]
    assert worker_environments("4", {}, ["cpu"], cores=2)[0]["REVERIE_CPU_THREADS"] == "1"


def test_what_the_environment_says_holds_for_all() -> None:
    assert devices_of("auto", GPUS, REVERIE_DEVICE="cuda:1") == ["cuda:1"]
    assert devices_of("2", GPUS, REVERIE_DEVICE="cuda:1") == ["cuda:1", "cuda:1"]
    own = worker_environments("2", {"REVERIE_DEVICE": "cpu", "REVERIE_CPU_THREADS": "7"}, GPUS, cores=8)
    assert [(each["REVERIE_DEVICE"], each["REVERIE_CPU_THREADS"]) for each in own] == [("cpu", "7")] * 2


def test_each_exposes_its_metrics_at_a_port_of_its_own() -> None:
    own = worker_environments("3", {"REVERIE_METRICS_PORT": "9100"}, ["cpu"], cores=3)
    assert [each["REVERIE_METRICS_PORT"] for each in own] == ["9100", "9101", "9102"]
    assert worker_environments("1", {"REVERIE_METRICS_PORT": "9100"}, [], cores=3)[0]["REVERIE_METRICS_PORT"] == "9100"
    any_port = worker_environments("2", {"REVERIE_METRICS_PORT": "0"}, ["cpu"], cores=3)
    assert [each["REVERIE_METRICS_PORT"] for each in any_port] == ["0", "0"]


def test_the_devices_are_those_that_torch_sees() -> None:
    assert visible_devices(Machine((A100, A100))) == GPUS
    assert visible_devices(Machine()) == ["cpu"]


@pytest.mark.parametrize("program", ["print('no list')", "raise SystemExit(3)"])
def test_devices_that_cannot_be_found_out_are_an_error_of_one_line(program: str) -> None:
    with pytest.raises(DevicesError, match="can't find out this machine's devices"):
        ask_for_devices([sys.executable, "-S", "-c", program], {})
