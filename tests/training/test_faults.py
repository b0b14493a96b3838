"""What goes wrong while somebody trains: the error says what and what to do, and what was published stays served."""

import json
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from tests.training import reading_process
from tests.training.reading_process import die
from tests.training.tiny import gaussian_images, quick, tiny_denoiser
from tests.waiting import wait_until
from training.__main__ import main
from training.autoencoder import build_autoencoder
from training.data.digits import load_digits
from training.data.latents import Autoencoder, LatentData
from training.data.places import load_pictures
from training.data.workers import batches
from training.errors import DataError, StateError
from training.loop import Trainer
from training.state import StateFolder
from worker.diffusion import NoiseSchedule
from worker.store import ModelStore

QUICK = ["--steps", "2", "--width", "8", "--layers", "1", "--batch", "8", "--held-out-rows", "8", "--model", "mine"]
TEXT = ["--text-width", "32", "--text-layers", "1", "--vocabulary", "700", "--contrastive-steps", "1", "--tokens", "8"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Where a version of `mine` is published."""
    assert main([*places(tmp_path), *QUICK], {}) == 0
    return tmp_path


def places(root: Path) -> list[str]:
    return ["--store", str(root / "store"), "--state", str(root / "state")]


def pictures(folder: Path, count: int = 12, size: tuple[int, int] = (8, 8)) -> Path:
    folder.mkdir()
    for index in range(count):
        Image.new("L", size, 20 * index).save(folder / f"{index}.png")
    return folder


@contextmanager
def full_disk(room_bytes: int = 2000) -> Iterator[None]:
    """A limit to the size of files stands for it."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def test_on_a_full_disk_a_run_ends_and_what_was_published_stays(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = ModelStore(root / "store")
    before, state = store.current("mine"), (root / "state" / "state.pt").read_bytes()
    with full_disk():
        assert main([*places(root), *QUICK, "--fresh", "--seed", "1", "--publish-every", "1"], {}) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert "File too large" in error
    assert store.versions("mine") == [before]
    assert store.current("mine") == before
    assert before is not None
    store.verify("mine", before)
    assert (root / "state" / "state.pt").read_bytes() == state


def test_what_could_not_be_published_is_published_by_the_same_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "mine").write_text("in the way")
    assert main([*places(tmp_path), *QUICK], {}) == 1
    (tmp_path / "store" / "mine").unlink()
    capsys.readouterr()
    assert main([*places(tmp_path), *QUICK], {}) == 0
    assert "going on at step 2" in capsys.readouterr().out
    assert ModelStore(tmp_path / "store").checkpoint("mine").manifest.step == 2


def test_a_state_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    trainer = Trainer(tiny_denoiser(), load_digits(), NoiseSchedule.linear(), quick(batch=2))
    folder.save(trainer.state({"seed": 0}))
    before = folder.path.read_bytes()
    with full_disk(), pytest.raises(StateError, match="the one before is kept"):
        folder.save(trainer.state({"seed": 1}))
    assert folder.path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]


def test_a_log_that_cannot_be_written_ends_the_run_with_its_name(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "log").mkdir()
    (root / "log" / "metrics.jsonl").symlink_to("/dev/full")
    assert main([*places(root), *QUICK, "--fresh", "--log", str(root / "log"), "--log-every", "1"], {}) == 1
    assert f"error: can't write to --log {root / 'log'}: No space left on device" in capsys.readouterr().err
    checkpoint = ModelStore(root / "store").checkpoint("mine")
    ModelStore(root / "store").verify("mine", checkpoint.version)


def test_latents_that_a_full_disk_cannot_keep_are_told_and_leave_nothing(tmp_path: Path) -> None:
    vae = build_autoencoder((1, 4, 4), [4, 8], 3, 0)
    with full_disk(), pytest.raises(DataError, match=r"can't keep latents in .*cache: File too large"):
        LatentData(gaussian_images(1000), Autoencoder(vae.eval(), "0"), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_run_does_not_go_on_with_data_that_has_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*places(tmp_path), "--data", str(pictures(tmp_path / "pictures")), *QUICK]
    assert main(arguments, {}) == 0
    Image.new("L", (8, 8), 255).save(tmp_path / "pictures" / "3.png")
    assert main([*arguments, "--steps", "3", "--resume"], {}) == 1
    assert "or the data has changed since: put the data back" in capsys.readouterr().err


def test_captions_of_ten_thousand_words_and_empty_ones_are_trained_on(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "pictures")
    words = " ".join(f"word{index}" for index in range(10_000))
    texts = {index: {0: words, 1: ""}.get(index, f"shade {index}") for index in range(12)}
    lines = [json.dumps({"file_name": f"{index}.png", "text": text}) for index, text in texts.items()]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    assert main([*places(tmp_path), "--data", str(folder), *QUICK, *TEXT], {}) == 0
    manifest = ModelStore(tmp_path / "store").checkpoint("mine").manifest
    assert "text_encoder" in manifest.components


def test_a_picture_of_20000_by_20000_is_left_out_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = pictures(tmp_path / "pictures")
    Image.new("1", (20_000, 20_000)).save(folder / "12.png")
    assert len(load_pictures(folder, 8, broken_share=0.1)) == 12
    assert "12.png" in caplog.text
    assert "decompression bomb" in caplog.text


@pytest.mark.parametrize("size", [(1, 1), (2, 3)])
def test_pictures_of_a_pixel_are_trained_on(tmp_path: Path, size: tuple[int, int]) -> None:
    folder = pictures(tmp_path / "pictures", size=size)
    assert main([*places(tmp_path), "--data", str(folder), *QUICK], {}) == 0
    manifest = ModelStore(tmp_path / "store").checkpoint("mine").manifest
    assert (manifest.width, manifest.height) == size


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--size", "30", "--channels", "8,8,8"], "need images whose sides are multiples of 4, got 30x30"),
        (["--size", "30", "--backbone", "dit", "--width", "32", "--patch", "4"], "multiples of the patch of 4, got 30"),
        (["--size", "8", "--batch", "1000000000000000"], "out of memory with 1000000000000000 images at once: raise"),
        (["--size", "8", "--width", "8000000"], "for the weights and their averages: lower --width, --channels"),
    ],
)
def test_what_does_not_fit_is_one_line_that_says_what_to_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], reason: str
) -> None:
    folder = pictures(tmp_path / "pictures")
    assert main([*places(tmp_path), "--data", str(folder), *QUICK, *arguments], {}) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert reason in error


def test_a_process_that_reads_the_data_and_dies_is_told() -> None:
    with pytest.raises(DataError, match="a process that reads the data died"):
        next(batches(die, iter(range(9)), 1))


def test_processes_that_read_the_data_end_with_a_run_that_is_killed() -> None:
    run = subprocess.Popen([sys.executable, "-m", reading_process.__name__], stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    reader = Path("/proc", run.stdout.readline().strip(), "stat")
    run.kill()
    run.wait()
    run.stdout.close()

    def gone() -> bool:
        try:
            return reader.read_text().rsplit(")", 1)[1].split()[0] == "Z"
        except OSError:
            return True

    wait_until(gone, "the reader of the data to end")
