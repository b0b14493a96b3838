"""A Stable Diffusion directory: imported by the command, served, and drawn the same after the death of a worker."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import ValkeyHandle
from tests.e2e.conftest import running_stack
from tests.waiting import wait_until
from tests.worker.loras import random_pairs, write_peft
from tests.worker.stable_diffusion import SD, import_sd, import_sdxl, refiner_pipeline, sd_pipeline, sdxl_pipeline
from tests.worker.text_pipeline import TEXT, publish_text
from worker.contract import chain_key
from worker.store import ModelStore
from worker.store.lora_import import import_lora

pytestmark = pytest.mark.slow

CAT = {"model": SD, "prompt": "a cat", "negative_prompt": "dog", "seed": 7, "steps": 80, "batch": 2}


def test_a_prompt_gives_the_same_pixels_alone_in_company_after_kill_9_and_across_a_reload(
    valkey_session: ValkeyHandle, tmp_path: Path
) -> None:
    store = ModelStore(tmp_path / "store")
    sd_pipeline().save_pretrained(tmp_path / "folder")
    command = [sys.executable, "-m", "worker.store", "--store", str(store.root), "import"]
    subprocess.run([*command, str(tmp_path / "folder"), "--name", SD], check=True)
    publish_text(store)
    old = store.checkpoint(SD).version
    with running_stack(valkey_session, tmp_path, store=store.root) as stack:
        (info,) = [model for model in stack.http.get("/models").json()["models"] if model["name"] == SD]
        assert (info["takes"], info["width"], info["height"]) == ("prompt", 16, 16)
        job = stack.finished(first := stack.generate(**CAT))
        with Image.open(io.BytesIO(stack.images(job)[0])) as picture:
            assert (picture.format, picture.size) == ("PNG", (16, 16))
        alone = stack.hashes(first)
        others = [stack.generate(**{**CAT, "prompt": text, "steps": 20}) for text in ("a dog", "a cat " * 50)]
        others.append(stack.generate(model=TEXT, prompt="dog", seed=1, steps=20, batch=2))
        again = stack.generate(**CAT)
        stack.wait_for_step(again, 10)
        stack.replace_worker()
        new = import_sd(store, vae_seed=1).version
        assert stack.hashes(again) == alone
        assert len(set(alone)) == 2
        for job_id in others:
            stack.finished(job_id)
        wait_until(lambda: stack.http.get("/models").json()["models"][0]["version"] != old, "the new version")
        changed = stack.finished(stack.generate(**CAT))
        assert changed["version"] == new
        assert [image["sha256"] for image in changed["images"]] != alone
        assert stack.hashes(stack.generate(**CAT, version=old)) == alone


def test_stable_diffusion_xl_goes_on_after_kill_9_with_loras_and_a_refiner(
    valkey_session: ValkeyHandle, tmp_path: Path
) -> None:
    """With both encoders, a negative prompt of zeros and a refiner: one job dies before its leg, the other within. Each
    LoRA was imported anew when the job goes on."""
    store = ModelStore(tmp_path / "store")
    import_sdxl(store, "xl", refiner_pipeline())

    def import_loras(seed: int) -> None:
        for name, components in {"style": ("unet", "text_encoder"), "words": ("text_encoder_2",)}.items():
            file = write_peft(random_pairs(sdxl_pipeline(), seed, components), tmp_path / f"{name}-{seed}.safetensors")
            import_lora(store, file, name)

    import_loras(1)
    asked = {"model": "xl", "prompt": "a cat", "guidance_scale": 5.0, "seed": 3, "steps": 80, "batch": 1}
    loras = {"loras": [{"name": "style", "scale": 0.7}, {"name": "words", "scale": -0.4}]}
    with running_stack(valkey_session, tmp_path, store=store.root, lease_s=4, save_interval_s=0.1) as stack:
        bodies = [asked | loras | {"steps": 50, "refiner_start": 0.9}, asked | {"refiner_start": 0.05}]
        alone = [stack.hashes(job_id) for job_id in [stack.generate(**body) for body in bodies]]
        assert alone[0] != alone[1]
        again = []
        for body in bodies:  # first the one whose weights take time to make, so that the other has not ended by then
            again.append(stack.generate(**body))
            wait_until(lambda: all(stack.redis.exists(chain_key(job_id)) for job_id in again), "each to be saved")
        stack.wait_for_step(again[1], 5)
        stack.worker.kill()
        import_loras(2)
        stack.worker = stack.start_worker()
        assert [stack.hashes(job_id) for job_id in again] == alone
        log = stack.worker.log.read_text()
        assert all(f"job {job_id} goes on, " in log for job_id in again), log
