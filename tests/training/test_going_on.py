"""Runs that are stopped, killed or shared between processes end as runs that are not."""

import os
import re
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.training.started import StartedRun, wait_for_state
from tests.training.tiny import tiny_denoiser
from tests.waiting import PATIENCE_S
from training.__main__ import main
from training.configuration import read_configuration
from training.data.digits import load_digits
from training.errors import ConfigurationError
from training.loop import Trainer
from training.processes import Processes, Sharding, joined_processes
from training.state import StateFolder
from worker.store import ModelStore
from worker.store.manifest import WEIGHTS_PATH

QUICK = ["--width", "8", "--layers", "1", "--threads", "1", "--save-every", "1", "--held-out-rows", "8"]

PLAIN = ["--optimizer", "sgd", "--learning-rate", "0.05"]
"""Adam makes large steps of what is rounding alone, as the gradient of a bias before a norm is."""


def arguments_of(root: Path, *settings: str) -> list[str]:
    places = ["--store", str(root / "store"), "--state", str(root / "state"), "--model", "digits"]
    return [*places, *QUICK, *settings]


def train(root: Path, *settings: str) -> None:
    """Here, to the end: what is to be killed has a process of its own."""
    assert main(arguments_of(root, *settings), {}) == 0


def start(root: Path, *settings: str, environment: dict[str, str] | None = None) -> StartedRun:
    return StartedRun(*arguments_of(root, *settings), environment=environment)


def published(root: Path) -> bytes:
    return (ModelStore(root / "store").checkpoint("digits").path / WEIGHTS_PATH).read_bytes()


@pytest.mark.slow
def test_a_run_killed_at_any_step_goes_on_to_the_same_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a rate that no budget decides, so that it can be killed before any end. Every precision: `test_loop.py`."""
    settings = ["--batch", "8", "--decay", "constant"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for step in (1, 9):
        process = start(killed, *settings, "--minutes", "60")
        wait_for_state(killed, step)
        process.kill()
    state = StateFolder(killed / "state").load()
    assert state is not None
    settings += ["--steps", str(state.step + 3)]
    train(killed, *settings)
    assert f"going on at step {state.step}" in capsys.readouterr().out
    train(whole, *settings)
    assert published(killed) == published(whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_saves_its_state_and_says_how_to_go_on(tmp_path: Path, number: signal.Signals) -> None:
    process = start(tmp_path, "--minutes", "60", "--batch", "4", "--fresh")
    wait_for_state(tmp_path, 1)
    process.send_signal(number)
    output = process.finish()
    assert process.returncode == 130
    found = re.search(r"stopped at step (\d+); go on with: (python -m training --store .*)", output)
    assert found is not None, output
    assert "--fresh" not in found[2], "it would begin anew"
    state = StateFolder(tmp_path / "state").load()
    assert state is not None
    assert (state.step, state.finished) == (int(found[1]), False)
    assert not (tmp_path / "store" / "digits").exists()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start_two(root: Path, *arguments: str, states: tuple[str, str] = ("state", "state")) -> list[StartedRun]:
    """Two processes that share each batch, as launchers start them; each with its own folder for the state."""
    meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [
        start(root, *arguments, "--state", str(root / state), environment=meeting | {"RANK": str(rank)})
        for rank, state in enumerate(states)
    ]


def finish_both(ranks: list[StartedRun]) -> list[str]:
    """What they said; both must have come to their end."""
    outputs = [process.finish() for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], outputs
    return outputs


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--shard"], ["--shard", "--accumulate", "2"]], ids=" ".join)
def test_two_processes_equal_one_with_the_same_batch_to_rounding(tmp_path: Path, more: list[str]) -> None:
    settings = ["--steps", "4", "--batch", "64", *PLAIN]
    train(tmp_path / "one", *settings)
    outputs = finish_both(start_two(tmp_path / "two", *settings, *more))
    assert "published digits/" in outputs[0]
    assert "published" not in outputs[1]
    assert_close(tmp_path / "two", tmp_path / "one")


def assert_close(root: Path, expected_root: Path) -> None:
    """The weights that runs ended with, and what they published of them."""
    found, expected = (StateFolder(each / "state").load() for each in (root, expected_root))
    assert found is not None
    assert expected is not None
    for part in ("denoiser", "ema"):
        for name, weight in expected.tensors[part].items():
            torch.testing.assert_close(found.tensors[part][name], weight, rtol=1e-4, atol=1e-6, msg=name)
    weights = [
        load_file(ModelStore(each / "store").checkpoint("digits").path / WEIGHTS_PATH) for each in (root, expected_root)
    ]
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_processes_that_divide_the_weights_go_on_alike_after_a_kill_and_as_one(tmp_path: Path) -> None:
    """The state is of the whole, whoever saved it: in halves it goes on with the same bits, in one process closely."""
    settings = ["--batch", "16", "--decay", "constant", *PLAIN, "--steps", "8"]
    whole, killed, alone, one = (tmp_path / name for name in ("whole", "killed", "alone", "one"))
    train(one, *settings)
    finish_both(start_two(whole, *settings, "--shard"))
    for root in (killed, alone):
        ranks = start_two(root, *settings[:-1], "10000", "--shard")
        wait_for_state(root, 2)
        for process in ranks:
            process.kill()
        state = StateFolder(root / "state").load()
        assert state is not None
        assert state.step < 8
    finish_both(start_two(killed, *settings, "--shard"))
    assert published(killed) == published(whole)
    train(alone, *settings)
    assert_close(alone, one)


@pytest.mark.slow
def test_accelerates_launcher_says_that_weights_are_divided(tmp_path: Path) -> None:
    configuration = tmp_path / "accelerate.yaml"
    configuration.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: FSDP\nnum_machines: 1\nnum_processes: 2\n"
        "machine_rank: 0\nmain_training_function: main\nmixed_precision: 'no'\nuse_cpu: false\n"
        f"main_process_port: {free_port()}\n"
        "fsdp_config:\n  fsdp_version: 2\n  fsdp_offload_params: false\n  fsdp_reshard_after_forward: true\n"
    )
    launcher = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(configuration),
        "-m",
        "training",
    ]
    settings = ["--steps", "3", "--batch", "8", *PLAIN]
    done = subprocess.run(
        [*launcher, *arguments_of(tmp_path / "two", *settings)], capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr
    assert "weights divided among 2 processes" in done.stdout
    train(tmp_path / "one", *settings)
    assert_close(tmp_path / "two", tmp_path / "one")


@pytest.mark.parametrize("setting", ["--compile", "--channels-last", "--precision float16", "--lora-on digits"])
def test_what_weights_that_are_divided_go_without_is_said(setting: str) -> None:
    flags = dict(zip(("name", "value"), setting.removeprefix("--").split(), strict=False))
    configuration = read_configuration(flags={flags["name"].replace("-", "_"): flags.get("value", True)})
    trainer = partial(Trainer, tiny_denoiser(), load_digits(), configuration.noise_schedule(), configuration)
    with pytest.raises(ConfigurationError, match=f"go without {flags['name'].replace('-', '_')}"):
        trainer(processes=Processes(0, 2, Sharding()))
    trainer(processes=Processes(0, 1, Sharding()))


def test_accelerates_settings_that_are_not_served_are_refused() -> None:
    environment = {"ACCELERATE_USE_FSDP": "true", "FSDP_OFFLOAD_PARAMS": "true"}
    joined = joined_processes(environment, torch.device("cpu"))
    with pytest.raises(ConfigurationError, match="fsdp_offload_params false"), joined:
        pass


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_processes_killed_on_captions_go_on_to_the_same_bits_from_the_state_of_the_first_alone(
    tmp_path: Path,
) -> None:
    (tmp_path / "shades").mkdir()
    for index in range(12):
        Image.new("L", (8, 8), 20 * index).save(tmp_path / "shades" / f"{index}.png")
        (tmp_path / "shades" / f"{index}.txt").write_text(f"shade {index}")
    settings = [
        *("--data", str(tmp_path / "shades"), "--text-width", "32", "--text-layers", "1", "--vocabulary", "700"),
        *("--contrastive-steps", "2", "--held-out-rows", "4", "--steps", "12", "--batch", "8"),
    ]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish_both(start_two(whole, *settings))
    ranks = start_two(killed, *settings, states=("state", "of-another-machine"))
    wait_for_state(killed, 2)
    for process in ranks:
        process.kill()
    assert not (killed / "store" / "digits").exists(), "they were killed before their end"
    outputs = finish_both(start_two(killed, *settings, states=("state", "of-another-machine")))
    assert "going on at step" in outputs[0]
    assert not (killed / "of-another-machine").exists()
    assert published(killed) == published(whole)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_launcher_that_ends_all_when_one_is_stopped_lets_the_first_save(tmp_path: Path) -> None:
    """Who gets the signal stops them all; the state is that of the step after which they did."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    settings = arguments_of(tmp_path, "--minutes", "60", "--batch", "8", "--log", str(tmp_path / "log"))
    process = subprocess.Popen(
        [*launcher, "--", "-m", "training", *settings],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for_state(tmp_path, 1)
    ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(ranks) == 2
    os.kill(int(ranks[1]), signal.SIGTERM)
    output, _ = process.communicate(timeout=PATIENCE_S)
    found = re.search(r"stopped at step (\d+); go on with: .* \(as one of 2 processes, by their launcher\)", output)
    assert found is not None, output
    state = StateFolder(tmp_path / "state").load()
    assert state is not None
    assert state.step == int(found[1])


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_when_one_process_dies_the_others_end_and_say_so(tmp_path: Path) -> None:
    first, second = start_two(tmp_path, "--minutes", "60", "--batch", "8")
    wait_for_state(tmp_path, 2)
    second.kill()
    output = first.finish()
    assert first.returncode == 1
    assert "error: another process of the run is gone" in output
    state = StateFolder(tmp_path / "state").load()
    assert state is not None
    assert state.step >= 2
