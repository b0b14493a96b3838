"""From weights to a published version: a diffusers pipeline directory and its manifest."""

import copy
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from diffusers import DiTTransformer2DModel
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from training.card import SAMPLES_NAME, model_card
from training.cascade import FirstLeg, write_cascade
from training.configuration import TrainingConfiguration
from training.data import ImageSource
from training.data.examples import null_label
from training.data.latents import Autoencoder, LatentData
from training.golden import GOLDEN_ROWS, golden_of
from training.network import Conditions, Denoiser
from training.text import CaptionTokenizer
from worker.diffusion import NoiseSchedule, Spacing
from worker.store import Checkpoint, GoldenOutput, ModelStore, PublishFailed, Recipe, RequestDefaults, StoreError
from worker.store.component_rules import LEARNED_RANGE, denoiser_folder
from worker.store.pipeline_index import write_index, write_text_to_image_index

GOLDEN_PROMPT = "a picture"
BETAS = {"linear": (1e-4, 0.02), "scaled_linear": (0.00085, 0.012), "cosine": (1e-4, 0.02)}
"""As `NoiseSchedule` has them by default; a cosine has none, and diffusers reads these and leaves them unused."""
DIFFUSERS_SCHEDULES = {"cosine": "squaredcos_cap_v2"}


@dataclass(frozen=True, eq=False)
class Publication:
    """What every version of one run shares.

    Attributes:
        store, model: where it goes.
        configuration: of the run.
        source: what it is trained on.
        tokenizer: None without captions.
        recipe: for the manifest.
        first: what a second leg is trained for; None of any other network.
    """

    store: ModelStore
    model: str
    configuration: TrainingConfiguration
    source: ImageSource
    tokenizer: CaptionTokenizer | None
    recipe: Recipe
    first: FirstLeg | None = None

    def publish(
        self, denoiser: Denoiser, *, step: int, metrics: Mapping[str, float], samples: Tensor | None = None
    ) -> Checkpoint:
        """Publish `denoiser` (the averaged weights) as the current version.

        With a sheet of samples ([H, W, C] uint8) it gets a card, README.md, that shows them.
        """
        dtype = getattr(torch, self.configuration.publish_dtype)
        published = copy.deepcopy(denoiser).cpu().to(dtype)

        autoencoder = self.source.autoencoder if isinstance(self.source, LatentData) else None

        def write(folder: Path) -> None:
            if self.first is not None:
                write_cascade(
                    folder, self.first, published.to(dtype), self.configuration, scheduler_config(self.configuration)
                )
            else:
                write_pipeline(
                    folder,
                    published.to(dtype),
                    self.configuration,
                    self.tokenizer,
                    self.source.label_names,
                    autoencoder,
                )
            if samples is not None:
                card = model_card(self.model, self.configuration, self.source, metrics, self.recipe.command)
                (folder / "README.md").write_text(card, encoding="utf-8")
                Image.fromarray(samples.squeeze(-1).numpy()).save(folder / SAMPLES_NAME)

        return self.store.publish(
            self.model,
            write,
            step=step,
            metrics=metrics,
            recipe=self.recipe,
            **self._of_first_leg() if self.first is not None else self._of_only_leg(published.float()),
        )

    def _of_only_leg(self, published: Denoiser) -> dict[str, Any]:
        """What the manifest says of the first network, here the one that is trained: of its weights as they are
        published, rounded to their dtype."""
        golden = golden_output(
            published,
            self.configuration.noise_schedule(),
            self.source.shape,
            len(self.source.label_names),
            self.tokenizer,
        )
        return {
            "labels": self.source.label_names,
            "null_label": null_label(self.source),
            "request_defaults": RequestDefaults(**self._given_defaults()),
            "example_prompts": () if self.tokenizer is None else self.configuration.example_prompts,
            "golden": golden,
        }

    def _of_first_leg(self) -> dict[str, Any]:
        assert self.first is not None, "asked for by the caller"
        manifest = self.first.checkpoint.manifest
        return {
            "labels": manifest.labels,
            "null_label": manifest.null_label,
            "request_defaults": manifest.request_defaults.model_copy(update=self._given_defaults()),
            "example_prompts": self.configuration.example_prompts or manifest.example_prompts,
            "golden": manifest.golden,
        }

    def _given_defaults(self) -> dict[str, Any]:
        """Those for requests that the configuration names."""
        configuration = self.configuration
        named = {
            "sampler": configuration.request_sampler,
            "steps": configuration.request_steps,
            "guidance_scale": configuration.request_guidance_scale,
        }
        return {name: value for name, value in named.items() if value is not None}

    def current_metrics(self) -> Mapping[str, float] | None:
        """Of the version that is served now; None where there is none."""
        try:
            return self.store.checkpoint(self.model).manifest.metrics
        except StoreError:
            return None


def spacing_of(configuration: TrainingConfiguration) -> Spacing:
    """Trailing where a chain must begin at the timestep in which nothing of the image is left. Lin et al. 2023."""
    return Spacing.TRAILING if configuration.zero_terminal_snr else Spacing.LEADING


def scheduler_class(configuration: TrainingConfiguration) -> str:
    return "DDPMScheduler" if configuration.learned_variance else "DDIMScheduler"


def scheduler_config(configuration: TrainingConfiguration) -> dict[str, object]:
    """`scheduler/scheduler_config.json`, as diffusers reads it: of the sampler that a request gets which names none.

    DDIM is good in few steps; DDPM is, where its variance was learnt.
    """
    beta_start, beta_end = BETAS[configuration.schedule]
    of_sampler: dict[str, object] = {"set_alpha_to_one": True}
    if configuration.learned_variance:
        of_sampler = {"variance_type": LEARNED_RANGE}
    return {
        "_class_name": scheduler_class(configuration),
        "_diffusers_version": version("diffusers"),
        "num_train_timesteps": configuration.noise_schedule().num_train_timesteps,
        "beta_start": beta_start,
        "beta_end": beta_end,
        "beta_schedule": DIFFUSERS_SCHEDULES.get(configuration.schedule, configuration.schedule),
        "trained_betas": None,
        "prediction_type": configuration.prediction.value,
        **of_sampler,
        "clip_sample": configuration.autoencoder is None,
        "clip_sample_range": 1.0,
        "thresholding": False,
        "dynamic_thresholding_ratio": 0.995,
        "sample_max_value": 1.0,
        "timestep_spacing": spacing_of(configuration).value,
        "steps_offset": 0,
        "rescale_betas_zero_snr": configuration.zero_terminal_snr,
    }


def write_pipeline(
    folder: Path,
    denoiser: Denoiser,
    configuration: TrainingConfiguration,
    tokenizer: CaptionTokenizer | None,
    labels: Sequence[str] = (),
    autoencoder: Autoencoder | None = None,
) -> None:
    """Write a directory that diffusers opens into the empty `folder`.

    Args:
        labels: names of the classes, which DiT's pipelines keep.
        autoencoder: goes along, as `vae`.
    """
    class_name = type(denoiser.network).__name__
    components = {denoiser_folder(class_name): class_name, "scheduler": scheduler_class(configuration)}
    try:
        denoiser.network.save_pretrained(folder / denoiser_folder(class_name), safe_serialization=True)
        if denoiser.text_encoder is not None and tokenizer is not None:
            denoiser.text_encoder.save_pretrained(folder / "text_encoder")
            tokenizer.save(folder / "tokenizer")
        if autoencoder is not None:
            autoencoder.vae.save_pretrained(folder / "vae", safe_serialization=True)
    except SafetensorError as error:
        raise PublishFailed(f"can't write the weights: {error}") from error
    (folder / "scheduler").mkdir()
    text = json.dumps(scheduler_config(configuration), indent=2) + "\n"
    (folder / "scheduler" / "scheduler_config.json").write_text(text, encoding="utf-8")
    vae = {} if autoencoder is None else {"vae": "AutoencoderKL"}
    if isinstance(denoiser.network, DiTTransformer2DModel):
        write_index(folder, "DiTPipeline", components | vae, absent={"vae"} - vae.keys(), labels=labels)
    elif denoiser.text_encoder is None:
        write_index(folder, "DDPMPipeline" if configuration.learned_variance else "DDIMPipeline", components)
    else:
        write_text_to_image_index(folder, scheduler=scheduler_class(configuration), latent=autoencoder is not None)


def golden_output(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    shape: tuple[int, int, int],
    num_labels: int,
    tokenizer: CaptionTokenizer | None = None,
) -> GoldenOutput:
    """What the network returns now, from noise at timesteps over the whole schedule, for loaders to compare with.

    With captions, of one prompt: tokenizer and text encoder are compared so, too.
    """
    labels = [row % num_labels for row in range(GOLDEN_ROWS)] if num_labels else None
    tokens = None if tokenizer is None else tokenizer([GOLDEN_PROMPT] * GOLDEN_ROWS)
    conditions = Conditions(None if labels is None else torch.tensor(labels), tokens)
    prompt = None if tokenizer is None else GOLDEN_PROMPT
    return golden_of(denoiser, schedule, shape, conditions, class_labels=labels, prompt=prompt)


def library_versions() -> dict[str, str]:
    """Versions of what the weights depend on."""
    return {"python": platform.python_version()} | {
        name: version(name) for name in ("torch", "diffusers", "transformers", "tokenizers", "numpy", "scikit-learn")
    }
