"""LoRAs: the same as the reference, and the laws of equal pixels for requests with other sets of them and none."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from tests.worker.engine.harness import CPU, Driver, draw, filled_pool, load_float32, plain, same_pixels
from tests.worker.engine.reference import NEGATIVE, PROMPT, STEPS, W, prompted, reference
from tests.worker.engine.test_resume import resumed, saved_states
from tests.worker.engine.test_stable_diffusion import DDIM, latent_of
from tests.worker.loras import random_pairs, write_kohya, write_peft
from tests.worker.stable_diffusion import LATENT, SD, import_sd, sd_pipeline, wider_unet
from worker.contract import LoraUse, SamplerName
from worker.diffusion.noise import initial_noise
from worker.models.loaded_model import LoadedModel
from worker.models.loading import load_checkpoint
from worker.models.pool import ModelPool
from worker.models.residents import MERGED_KEPT
from worker.store import ModelStore
from worker.store.lora_import import import_lora
from worker.store.lora_store import FILE, LoraStore
from worker.store.model_store import Checkpoint

STYLE, FACE = LoraUse(name="style", scale=0.8), LoraUse(name="face", scale=-0.5)
BOTH = ("unet", "text_encoder")


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    """With the LoRAs `style`, of U-Net and text encoder, and `face`, of the U-Net alone."""
    store = ModelStore(tmp_path / "store")
    import_sd(store, unet=wider_unet())
    pipeline = sd_pipeline(unet=wider_unet())
    import_lora(store, write_peft(random_pairs(pipeline, 1, BOTH), tmp_path / "style.safetensors"), "style")
    import_lora(store, write_peft(random_pairs(pipeline, 2), tmp_path / "face.safetensors"), "face")
    return store


def loaded(pool: ModelPool, *loras: LoraUse) -> LoadedModel:
    """Pinned once."""
    model = pool.acquire(SD, None, loras)
    if model is None:
        pool.load_pending()
        model = pool.acquire(SD, None, loras)
    assert model is not None
    return model


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")  # of peft, for the second adapter
@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")  # of peft, for the second adapter
@pytest.mark.parametrize("write", [write_peft, write_kohya])
def test_latents_are_those_of_the_reference(tmp_path: Path, write: Callable[..., Path]) -> None:
    """Of two LoRAs at once, of which one changes the text encoder, too; in both layouts, with alpha and without."""
    store = ModelStore(tmp_path / "store")
    checkpoint = import_sd(store, scheduler=DDIM)
    pairs = [random_pairs(sd_pipeline(), seed, components) for seed, components in ((1, BOTH), (2, ("unet",)))]
    files = [write(each, tmp_path / f"{name}.safetensors") for each, name in zip(pairs, ("style", "face"), strict=True)]
    for file in files:
        import_lora(store, file, file.stem)
    model = loaded(filled_pool(store), STYLE, FACE)
    request, noise = prompted(seed=4, sampler=SamplerName.DDIM), initial_noise(torch.tensor([4]), LATENT)

    pipeline = StableDiffusionPipeline.from_pretrained(checkpoint.path)
    pipeline.set_progress_bar_config(disable=True)
    for file in files:
        pipeline.load_lora_weights(str(tmp_path), weight_name=file.name, adapter_name=file.stem)
    pipeline.set_adapters([STYLE.name, FACE.name], [STYLE.scale, FACE.scale])
    fields: dict[str, Any] = {"negative_prompt": NEGATIVE, "num_inference_steps": STEPS, "guidance_scale": W}
    expected = pipeline(PROMPT, **fields, latents=noise, output_type="latent").images
    latent = latent_of(model, request, noise)
    assert float((latent - expected).norm() / expected.norm()) < 1e-5
    without = reference(store, DDIMScheduler.from_config(pipeline.scheduler.config), noise, "latent")
    assert float((latent - without).norm() / expected.norm()) > 1e-2, "it is seen that they are there"


def test_an_image_is_the_same_alone_in_company_taken_up_again_and_loaded_anew(store: ModelStore) -> None:
    pool = filled_pool(store)
    sets: list[tuple[LoraUse, ...]] = [(), (STYLE,), (FACE,), (FACE, STYLE), (LoraUse(name="style", scale=0.4),)]
    asked = [prompted(seed=1, steps=3, batch=1 + (not place), loras=loras) for place, loras in enumerate(sets)]
    driver = Driver(pool, max_batch=4)
    for number, request in enumerate(asked):
        driver.submit(str(number), request)
        driver.step()
    driver.finish()
    fresh = filled_pool(store)
    for number, request in enumerate(asked):
        assert same_pixels(driver.images(str(number)), draw(fresh, request, max_batch=1))
    images = [driver.images(str(number))[0].tobytes() for number in range(len(asked))]
    assert len(set(images)) == len(images), "each set draws another image"
    other_order = plain(asked[3], loras=[STYLE, FACE])
    assert same_pixels(draw(pool, other_order), driver.images("3"))
    state = list(saved_states(pool, asked[3], 4))[1]
    assert same_pixels(resumed(filled_pool(store), asked[3], state).images("a"), driver.images("3"))


def test_a_receipt_names_the_files_and_a_name_imported_anew_draws_from_its_new_file(
    store: ModelStore, tmp_path: Path
) -> None:
    pool = filled_pool(store)
    request = prompted(steps=2, loras=(STYLE,))
    before = draw(pool, request)
    model = loaded(pool, STYLE)
    resolved = model.resolved(request)
    old = LoraStore(store.root).current("style")
    assert resolved.loras == (LoraUse(name="style", scale=0.8, sha256=old),)
    new = random_pairs(sd_pipeline(unet=wider_unet()), 7)
    import_lora(store, write_peft(new, tmp_path / "new.safetensors"), "style")
    pool.poll()
    assert not same_pixels(draw(pool, request), before)
    assert same_pixels(draw(pool, resolved), before)
    (info,) = [model.loras for model in pool.describe() if model.name == SD]
    assert [(lora.name, lora.earlier) for lora in info] == [("face", []), ("style", [old])]


def test_what_a_lora_does_not_change_is_shared_and_few_sets_stay_in_memory(store: ModelStore) -> None:
    pool = filled_pool(store)
    plain_model, face, style = (loaded(pool, *loras) for loras in ((), (FACE,), (STYLE,)))
    assert face.codec is plain_model.codec is style.codec
    of_encoder = plain_model.shared_bytes.keys() & face.shared_bytes.keys()
    assert len(of_encoder) == 2, "text encoder and autoencoder"
    assert len(of_encoder & style.shared_bytes.keys()) == 1
    own = sum(model.own_bytes for model in (plain_model, face, style))
    shared = {part: size for model in (plain_model, face, style) for part, size in model.shared_bytes.items()}
    assert pool.memory().weight_bytes == own + sum(shared.values())
    for scale in range(MERGED_KEPT + 2):
        model = loaded(pool, LoraUse(name="face", scale=float(scale)))
        pool.release(model)
    assert len(pool.resident()) == 3 + MERGED_KEPT, "three are in use"


def test_a_new_version_is_drawn_with_the_same_loras(store: ModelStore) -> None:
    pool = filled_pool(store)
    request = prompted(steps=2, loras=(FACE,))
    draw(pool, request)
    new = import_sd(store, unet=wider_unet(seed=3), step=9)
    pool.poll()
    pool.load_pending()
    assert {version for _, version in pool.resident()} == {new.version}, "what nothing runs on has left"
    assert same_pixels(draw(pool, request), draw(filled_pool(store), request))


def test_a_lora_that_is_missing_or_damaged_fails_its_requests_and_no_others(store: ModelStore) -> None:
    driver = Driver(filled_pool(store))
    lora = LoraStore(store.root).find("face")
    content = bytearray(lora.file.read_bytes())
    content[-1] ^= 1
    (lora.path / FILE).write_bytes(content)
    driver.submit("damaged", prompted(steps=2, loras=(FACE,)))
    driver.submit("unknown", prompted(steps=2, loras=(LoraUse(name="nobody"),)))
    driver.submit("gone", prompted(steps=2, loras=(LoraUse(name="style", sha256="0" * 64),)))
    driver.submit("good", prompted(steps=2, loras=(STYLE,)))
    driver.finish()
    assert "LoRA face has SHA-256" in driver.failure("damaged").detail
    assert driver.failure("unknown").detail == "there is no LoRA nobody"
    assert driver.failure("gone").detail.startswith("there is no LoRA style of SHA-256 000")
    assert len(driver.images("good")) == 1


def test_a_set_is_loaded_without_the_version_itself_where_memory_is_short(store: ModelStore) -> None:
    """What is idle leaves for it, and comes back when it is asked for."""
    size = load_float32(store.checkpoint(SD)).weight_bytes
    pool = ModelPool(store, load_float32, memory_budget_bytes=round(1.5 * size))
    pool.poll()
    pool.load_pending()
    expected = [draw(filled_pool(store), prompted(steps=2, loras=loras)) for loras in ((), (STYLE,))]
    for _ in range(2):
        for loras, images in zip(((), (STYLE,)), expected, strict=True):
            assert same_pixels(draw(pool, prompted(steps=2, loras=loras)), images)
            assert pool.memory().weight_bytes <= round(1.5 * size)


def test_loras_change_a_network_in_bfloat16_too(store: ModelStore) -> None:
    def load(checkpoint: Checkpoint) -> LoadedModel:
        return load_checkpoint(checkpoint, CPU, torch.bfloat16)

    pool = filled_pool(store, load)
    with_face, without = (draw(pool, prompted(steps=2, loras=loras)) for loras in ((FACE,), ()))
    assert not same_pixels(with_face, without)
