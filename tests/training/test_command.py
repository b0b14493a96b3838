"""`python -m training`, from arguments to a published directory that diffusers opens."""

import base64
import os
from pathlib import Path

import pytest
import torch
from diffusers import DDIMPipeline
from PIL import Image
from safetensors.torch import load_file

from tests.training.tiny import quick
from training.__main__ import configure, main
from training.configuration import presets
from training.data import split
from training.data.digits import load_digits
from training.data.textures import PHOTOGRAPHS, load_textures
from training.errors import ConfigurationError
from training.loop import Budget, Trainer
from training.metrics.held_out import HeldOut
from training.network import Denoiser, build_unet
from training.sources import HELD_OUT_FRACTION, HELD_OUT_SEED
from worker.diffusion import NoiseSchedule
from worker.diffusion.golden import golden_inputs, spread_values
from worker.store import GoldenOutput, ModelStore
from worker.store.manifest import WEIGHTS_PATH

QUICK = ["--steps", "3", "--width", "8", "--layers", "1", "--batch", "8", "--fresh"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    """A store with one quickly trained digits model, two versions."""
    root = tmp_path_factory.mktemp("training") / "store"
    state = str(root.parent / "state")
    assert main(["--store", str(root), "--state", state, "--publish-every", "2", *QUICK], {}) == 0
    return ModelStore(root)


def test_the_command_publishes_on_the_way_and_at_the_end(store: ModelStore) -> None:
    steps = [store.checkpoint("digits", version).manifest.step for version in store.versions("digits")]
    assert steps == [2, 3]
    assert store.checkpoint("digits").manifest.step == 3
    for version in store.versions("digits"):
        store.verify("digits", version)


def test_textures_are_trained_on_by_name(tmp_path: Path) -> None:
    places = ["--store", str(tmp_path / "store"), "--state", str(tmp_path / "state")]
    assert main([*places, "--data", "textures", "--size", "16", "--held-out-rows", "8", *QUICK], {}) == 0
    manifest = ModelStore(tmp_path / "store").checkpoint("textures").manifest
    assert (manifest.width, manifest.height, manifest.channels) == (16, 16, 3)
    assert manifest.labels == list(PHOTOGRAPHS)
    train, held_out = load_textures(16).divided()
    assert manifest.recipe.data.startswith("textures")
    assert train.fingerprint() != held_out.fingerprint() != load_textures(32).divided()[1].fingerprint()


def test_the_manifest_says_how_good_and_how_made(store: ModelStore) -> None:
    manifest = store.checkpoint("digits").manifest
    assert manifest.labels == list("0123456789")
    assert manifest.null_label == 10
    losses = {"held_out_loss", "held_out_loss_unconditional", "held_out_loss_zero", "held_out_loss_linear"}
    bands = {f"held_out_{name}_band_{band}" for name in ("mse", "rmse", "mae", "r2") for band in range(5)}
    assert set(manifest.metrics) == losses | bands
    assert manifest.recipe.settings["batch"] == 8
    assert manifest.recipe.command.startswith("python -m training --store ")
    assert manifest.recipe.seed == 0
    assert manifest.recipe.libraries["torch"] == torch.__version__


def test_the_averaged_weights_are_published_with_their_loss_on_images_never_trained_on(store: ModelStore) -> None:
    """Trained and evaluated again, by hand, on the two sides of the split."""
    schedule = NoiseSchedule.linear()
    trained_on, held_out = split(load_digits(), HELD_OUT_FRACTION, HELD_OUT_SEED)
    denoiser = Denoiser(build_unet((1, 8, 8), 10, width=8, layers_per_block=1, seed=0))
    trainer = Trainer(denoiser, trained_on, schedule, quick(batch=8))
    trainer.run(Budget(steps=3))
    averaged = trainer.ema.network
    checkpoint = store.checkpoint("digits")
    published = load_file(checkpoint.path / WEIGHTS_PATH)
    for name, weight in averaged.network.state_dict().items():
        torch.testing.assert_close(published[name], weight, rtol=0, atol=0, msg=name)
    expected = HeldOut.draw(held_out, schedule, seed=HELD_OUT_SEED).loss(averaged)
    assert checkpoint.manifest.metrics["held_out_loss"] == pytest.approx(expected, rel=1e-5)


def test_a_version_has_a_card_with_its_scores_and_samples(store: ModelStore) -> None:
    checkpoint = store.checkpoint("digits")
    card = (checkpoint.path / "README.md").read_text()
    assert "![Samples from fixed seeds](samples.png)" in card
    assert f"| held out loss | {checkpoint.manifest.metrics['held_out_loss']:.4f} |" in card
    assert checkpoint.manifest.recipe.command in card
    with Image.open(checkpoint.path / "samples.png") as samples:
        assert samples.size == (8 * 8, 4 * 8)


def test_diffusers_opens_what_is_published(store: ModelStore) -> None:
    checkpoint = store.checkpoint("digits")
    pipeline = DDIMPipeline.from_pretrained(checkpoint.path, use_safetensors=True)
    assert pipeline.unet.config.num_class_embeds == 11
    ours = NoiseSchedule.linear()
    torch.testing.assert_close(pipeline.scheduler.alphas_cumprod.double(), ours.alphas_cumprod, rtol=1e-4, atol=0)
    assert pipeline.scheduler.config.prediction_type == "epsilon"


@torch.no_grad()
def test_the_golden_output_is_computed_again_from_the_published_files(store: ModelStore) -> None:
    checkpoint = store.checkpoint("digits")
    golden = checkpoint.manifest.golden
    assert isinstance(golden, GoldenOutput)
    assert golden.class_labels is not None
    unet = DDIMPipeline.from_pretrained(checkpoint.path, use_safetensors=True).unet
    x_t, t = golden_inputs(golden.seed, golden.timesteps, (1, 8, 8))
    again = unet(x_t, t, class_labels=torch.tensor(golden.class_labels)).sample
    values = torch.frombuffer(bytearray(base64.b64decode(golden.values_base64)), dtype=torch.float32)
    torch.testing.assert_close(spread_values(again), values.view(len(golden.timesteps), -1), rtol=1e-4, atol=1e-5)
    assert {0, 999} < set(golden.timesteps)
    assert len(set(values.tolist())) > 200


def test_a_folder_of_images_can_be_trained_on(tmp_path: Path) -> None:
    for label in ("dark", "light"):
        (tmp_path / "shades" / label).mkdir(parents=True)
        for index in range(6):
            shade = (40 if label == "dark" else 200) + index
            Image.new("RGB", (20, 16), (shade, shade, 0)).save(tmp_path / "shades" / label / f"{index}.png")
    arguments = ["--data", str(tmp_path / "shades"), "--size", "8", "--store", str(tmp_path / "store"), *QUICK]
    assert main([*arguments, "--state", str(tmp_path / "state")], {}) == 0
    manifest = ModelStore(tmp_path / "store").checkpoint("shades").manifest
    assert manifest.labels == ["dark", "light"]
    assert (manifest.height, manifest.width, manifest.channels) == (8, 8, 3)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--data", "no/such/folder"], "no/such/folder"),
        (["--model", "../evil"], "../evil"),
        (["--size", "16"], "--size is for pictures"),
        (["--steps", "0"], "budget above 0, got 0"),
        (["--minutes", "-1"], "budget above 0, got -1"),
        (["--steps", "5", "--minutes", "1"], "one of steps, epochs and minutes"),
        (["--batch", "0"], "--batch: Input should be greater than or equal to 1, got '0'"),
        (["--batch", "9", "--accumulate", "2"], "got 9 and 2"),
        (["--optimizer", "adamm"], "got 'adamm'"),
        (["--zero-terminal-snr"], "need v_prediction or sample"),
        (["--config", "no/such.toml"], "can't read no/such.toml"),
        (["--like", "digits"], "no model digits"),
        (["--resume"], "nothing to go on from"),
        (["--width", "10"], "multiple of 8, got 10"),
        (["--publish-every", "0"], "--publish-every: Input should be greater than or equal to 1, got '0'"),
        (["--threads", "0"], "--threads: Input should be greater than or equal to 1, got '0'"),
        (["--learning-rate", "7"], "got '7'"),
    ],
)
def test_a_bad_argument_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], reason: str
) -> None:
    assert main(["--store", str(tmp_path), *arguments], {}) == 1
    message = capsys.readouterr().err.strip()
    assert message.startswith("error: ")
    assert reason in message
    assert "\n" not in message
    assert os.listdir(tmp_path) == []


def test_a_store_that_cannot_be_written_is_said_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["--store", str(tmp_path / "file"), *QUICK], {}) == 1
    assert "can't write to the store" in capsys.readouterr().err


def test_an_unknown_option_ends_with_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--stroe", "x"])
    assert exit_.value.code == 2
    assert "--store" in capsys.readouterr().err


def test_the_sources_of_a_setting_stand_in_order(tmp_path: Path) -> None:
    """A preset, a file, the environment, flags: the later one is taken."""
    (tmp_path / "mine.toml").write_text("batch = 16\nseed = 7\nminutes = 5\nchannels = [8, 16]\n")
    environment = {"REVERIE_TRAIN_SEED": "8", "REVERIE_STORE": "elsewhere"}
    arguments = ["--preset", "emoji", "--config", str(tmp_path / "mine.toml"), "--steps", "9"]
    configuration, resume = configure(arguments, environment)
    assert (configuration.data, configuration.batch, configuration.seed) == ("emoji", 16, 8)
    assert (configuration.steps, configuration.minutes) == (9, None)
    assert configuration.channels == (8, 16)
    assert configure(["--channels", "8,24"], {})[0].channels == (8, 24)
    assert resume is None
    assert configure(["--fresh"], {})[1] is False


@pytest.mark.parametrize("name", presets())
def test_a_preset_is_a_configuration(name: str) -> None:
    configuration, _ = configure(["--preset", name], {})
    assert (configuration.model or configuration.data) == name


def test_an_unknown_key_is_refused_wherever_it_stands(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("bacth = 16\n")
    with pytest.raises(ConfigurationError, match="unknown setting 'bacth'"):
        configure(["--config", str(tmp_path / "mine.toml")], {})
    with pytest.raises(ConfigurationError, match="unknown setting 'bacth'"):
        configure([], {"REVERIE_TRAIN_BACTH": "16"})


def test_settings_are_taken_from_a_published_version(store: ModelStore, tmp_path: Path) -> None:
    version = store.checkpoint("digits").version
    like = ["--like", f"digits@{version}", "--seed", "5"]
    (tmp_path / "mine.toml").write_text(f"store = {str(store.root)!r}\n")
    for arguments, environment in (
        (["--store", str(store.root), *like], {}),
        (["--config", str(tmp_path / "mine.toml"), *like], {}),
        (like, {"REVERIE_TRAIN_STORE": str(store.root)}),
        (like, {"REVERIE_STORE": str(store.root)}),
    ):
        configuration, _ = configure(arguments, environment)
        assert (configuration.width, configuration.batch, configuration.seed) == (8, 8, 5)
        assert configuration.steps == 3


def test_the_settings_are_printed_at_the_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--store", str(tmp_path / "store"), "--state", str(tmp_path / "state"), *QUICK, "--steps", "1"]
    assert main(arguments, {"REVERIE_TRAIN_SEED": "7"}) == 0
    lines = capsys.readouterr().out.split("images to train on")[0].splitlines()
    assert {"  data = digits", "  batch = 8", "  seed = 7", "  steps = 1", "  optimizer = adam"} <= set(lines)


def test_the_same_command_goes_on_and_a_finished_run_begins_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--store", str(tmp_path / "store"), "--state", str(tmp_path / "state"), *QUICK[:-1]]
    assert main(arguments, {}) == 0
    assert "going on" not in capsys.readouterr().out
    longer = [*arguments, "--steps", "5", "--resume"]
    assert main(longer, {}) == 0
    assert "going on at step 3" in capsys.readouterr().out
    manifest = ModelStore(tmp_path / "store").checkpoint("digits").manifest
    assert manifest.step == 5
    assert manifest.recipe.command.endswith("--steps 5"), "which makes it from nothing, too"
    assert main([*longer, "--seed", "1"], {}) == 1
    assert "with seed 0 and not 1" in capsys.readouterr().err


def test_only_what_is_better_is_published(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--store", str(tmp_path / "store"), "--state", str(tmp_path / "state"), *QUICK]
    assert main([*arguments, "--steps", "6"], {}) == 0
    best = ModelStore(tmp_path / "store").current("digits")
    assert main([*arguments, "--steps", "1", "--publish-best", "held_out_loss"], {}) == 0
    assert "not published at step 1: held_out_loss" in capsys.readouterr().out
    assert ModelStore(tmp_path / "store").current("digits") == best
    better = [*arguments, "--steps", "1", "--learning-rate", "1e-9", "--publish-best", "held_out_r2_band_4"]
    assert main(better, {}) == 0
    assert "not published at step 1: held_out_r2_band_4" in capsys.readouterr().out, "there a higher one is better"
    assert main([*arguments, "--publish-best", "beauty"], {}) == 1
    said = capsys.readouterr()
    assert "need --publish-best with one of held_out_loss" in said.err
    assert "images to train on" not in said.out, "it is refused before the first step"
