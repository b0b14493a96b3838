"""What the store holds, read once per poll, so that describing the models needs no disk access."""

import json
import threading
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from worker.contract import LoraSet, ModelInfo, SamplerName, Takes, UpscaleInfo, VersionInfo
from worker.diffusion.prediction import PredictionType
from worker.models.chain_config import ChainConfig, read_chain_config
from worker.models.errors import UnsupportedModel
from worker.models.loaded_model import Execution
from worker.models.lora_catalogue import LoraCatalogue
from worker.store.component_rules import TEXT_PARTS
from worker.store.errors import StoreError
from worker.store.inspection import can_reuse_features, first_image_shape, reads_pictures, size_multiple
from worker.store.lora_file import LoraTarget, read_target
from worker.store.lora_store import LoraStore
from worker.store.manifest import NOISE_CONFIG_PATH, Manifest
from worker.store.model_store import Checkpoint, ModelStore
from worker.store.pipeline_index import latent_pipeline_class
from worker.store.refiner_rules import REFINER_UNET
from worker.store.super_resolution import has_super_resolution, read_super_resolution

FactT = TypeVar("FactT")


@dataclass(frozen=True, slots=True)
class _Facts:
    """What is reported of one version. Versions never change, so each is read once."""

    manifest: Manifest
    chain: ChainConfig | None
    """None of an unsupported configuration: what diffusers assumes is reported."""
    size_multiple: int | None
    lora_target: LoraTarget | None
    fast: bool
    needs_mask: bool
    upscale: UpscaleInfo | None


class Catalogue:
    """A snapshot of the store. Only `refresh` reads the disk; it is called by one thread, the rest by any."""

    def __init__(self, store: ModelStore, not_run: AbstractSet[str] = frozenset()) -> None:
        self._store = store
        self._lora_catalogue = LoraCatalogue(LoraStore(store.root))
        self._not_run = not_run
        self._lock = threading.Lock()
        self._facts: dict[tuple[str, str], _Facts] = {}
        self._names: dict[str, frozenset[str]] = {}
        self._versions: dict[str, list[str]] = {}
        self._currents: dict[str, str | StoreError] = {}
        self._looks = 0
        """How often `refresh` has found something else than before."""
        self._described: tuple[object, list[ModelInfo]] | None = None
        """The last answer of `describe`, and of what it was made."""

    def refresh(self) -> dict[str, str | StoreError]:
        """Each model's current version, or why it can't be read.

        Raises:
            StoreError: the store itself can't be read.
        """
        names: dict[str, frozenset[str]] = {}
        versions: dict[str, list[str]] = {}
        currents: dict[str, str | StoreError] = {}
        facts: dict[tuple[str, str], _Facts] = {}
        for model in self._store.models():
            try:
                names[model] = self._store.version_names(model)
                # Their order is in their manifests: read again only when a version has come or gone.
                known_order = self._versions[model] if names[model] == self._names.get(model) else None
                versions[model] = known_order or self._store.versions(model)
            except StoreError as error:
                versions[model], currents[model] = [], error
                continue
            try:
                currents[model] = self._store.current(model)
            except StoreError as error:
                currents[model] = error
            for version in versions[model]:
                known = self._facts.get((model, version)) or self._read(model, version)
                if known is not None:
                    facts[model, version] = known
        loras_changed = self._lora_catalogue.refresh()
        with self._lock:
            if loras_changed or (versions, currents, facts) != (self._versions, self._currents, self._facts):
                self._looks += 1
            self._names, self._versions, self._currents, self._facts = names, versions, currents, facts
        return currents

    def versions(self) -> dict[str, list[str]]:
        """Each model's versions, oldest first, as of the last `refresh`."""
        with self._lock:
            return dict(self._versions)

    def currents(self) -> dict[str, str | StoreError]:
        """Each model's current version, or why it can't be read, as of the last `refresh`."""
        with self._lock:
            return dict(self._currents)

    def manifest(self, model: str, version: str) -> Manifest | None:
        """As of the last `refresh`; None when it can't be read."""
        with self._lock:
            facts = self._facts.get((model, version))
        return facts.manifest if facts is not None else None

    def resolved(self, loras: LoraSet) -> LoraSet:
        """Each with the hash of the file that it means, as of the last `refresh`.

        Raises:
            ModelUnavailable: there is no LoRA of that name.
        """
        return self._lora_catalogue.resolved(loras)

    def describe(
        self,
        offered: Mapping[str, str | None],
        executions: Mapping[str, Execution],
        reload_errors: Mapping[str, str],
        load_failures: Mapping[str, int],
        loads: Mapping[str, int],
        memory_bytes: Mapping[str, int],
        retired: AbstractSet[tuple[str, str]] = frozenset(),
    ) -> list[ModelInfo]:
        """One entry for each model of which at least one version can be read.

        The entries are built when something has changed, and are the same objects otherwise: several threads ask for
        them several times a second.

        Args:
            offered: version that a request gets which names none; None when no version can be had.
            executions: how each model's network ran when it was last loaded.
            reload_errors: why the current version can't be loaded.
            load_failures: since this process began, and so
            loads: that succeeded.
            memory_bytes: of each model's versions in memory.
            retired: versions not to be listed.
        """
        with self._lock:
            versions, currents, facts = self._versions, self._currents, self._facts
            state = (
                self._looks,
                dict(offered),
                dict(executions),
                dict(reload_errors),
                dict(load_failures),
                dict(loads),
                dict(memory_bytes),
                frozenset(retired),
            )
            if self._described is not None and self._described[0] == state:
                return list(self._described[1])
        models = []
        for model, names in versions.items():
            readable = {name: facts[model, name] for name in names if (model, name) in facts.keys() - retired}
            if not readable:
                continue
            current = currents.get(model)
            shown = next((v for v in (offered.get(model), current) if v in readable), next(reversed(readable)))
            manifest, chain = readable[str(shown)].manifest, readable[str(shown)].chain
            execution = executions.get(model)
            models.append(
                ModelInfo(
                    name=model,
                    version=offered.get(model),
                    versions=[_version_info(fact) for fact in readable.values()],
                    labels=manifest.labels,
                    width=manifest.width,
                    height=manifest.height,
                    channels=manifest.channels,
                    size_multiple=readable[str(shown)].size_multiple,
                    fast=readable[str(shown)].fast,
                    num_train_timesteps=chain.schedule.num_train_timesteps if chain else 1000,
                    prediction_type=(chain.prediction_type if chain else PredictionType.EPSILON).value,
                    samplers=list(SamplerName),
                    dtype=execution.dtype if execution else None,
                    exact=execution.exact if execution else None,
                    form=execution.form if execution else None,
                    loras=self._lora_catalogue.fitting(model, readable[str(shown)].lora_target),
                    skipped=sorted({*manifest.skipped, *(self._not_run & manifest.components.keys())}),
                    needs_mask=readable[str(shown)].needs_mask,
                    upscale=readable[str(shown)].upscale,
                    takes=_takes(manifest),
                    example_prompts=manifest.example_prompts,
                    batch_sizes=list(execution.batch_sizes) if execution else None,
                    exact_cost=execution.exact_cost if execution else None,
                    memory_bytes=memory_bytes.get(model, 0),
                    reload_error=reload_errors.get(model),
                    load_failures=load_failures.get(model, 0),
                    loads=loads.get(model, 0),
                )
            )
        with self._lock:
            self._described = (state, models)
        return list(models)

    def _read(self, model: str, version: str) -> _Facts | None:
        """None for a version that can't be described; if it is the current one, loading it says why."""
        try:
            checkpoint = self._store.checkpoint(model, version)
            chain = _chain_config(checkpoint)
        except StoreError:
            return None
        classes = {name: component.class_name for name, component in checkpoint.manifest.components.items()}
        return _Facts(
            checkpoint.manifest,
            chain,
            size_multiple=_if_readable(size_multiple, checkpoint, None),
            lora_target=_if_readable(lambda path, where: read_target(path, classes, where), checkpoint, None),
            fast=_if_readable(can_reuse_features, checkpoint, False),
            needs_mask=_if_readable(reads_pictures, checkpoint, False),
            upscale=_if_readable(_upscale, checkpoint, None),
        )


def _upscale(folder: Path, where: str) -> UpscaleInfo | None:
    """None of a version that is no cascade. Raises BadCheckpoint."""
    if not has_super_resolution(folder):
        return None
    found = read_super_resolution(folder, where)
    height, width, _ = first_image_shape(folder, where)
    return UpscaleInfo(
        width=width,
        height=height,
        steps=found.steps,
        max_steps=found.max_steps,
        noise_level=found.noise_level,
        max_noise_level=found.max_noise_level,
    )


def _if_readable(read: Callable[[Path, str], FactT], checkpoint: Checkpoint, otherwise: FactT) -> FactT:
    """What `read` finds in a version's folder; `otherwise` of a version that can't be loaded."""
    try:
        return read(checkpoint.path, f"{checkpoint.model}/{checkpoint.version}")
    except (StoreError, OSError, ValueError):
        return otherwise


def _chain_config(checkpoint: Checkpoint) -> ChainConfig | None:
    """None where it can't be read or is not supported."""
    try:
        config = json.loads((checkpoint.path / NOISE_CONFIG_PATH).read_bytes())
        return read_chain_config(
            config, f"{checkpoint.model}/{checkpoint.version}", latent_pipeline_class(checkpoint.path)
        )
    except (OSError, ValueError, AttributeError, UnsupportedModel):
        return None


def _takes(manifest: Manifest) -> Takes:
    if any(encoder in manifest.components for encoder, _ in TEXT_PARTS):
        return Takes.PROMPT
    return Takes.CLASS_LABEL if manifest.labels else Takes.NOTHING


def _version_info(facts: _Facts) -> VersionInfo:
    manifest, chain, defaults = facts.manifest, facts.chain, facts.manifest.request_defaults
    return VersionInfo(
        version=manifest.version,
        step=manifest.step,
        created_at=manifest.created_at,
        weights_sha256=manifest.weights_sha256,
        metrics=dict(manifest.metrics),
        sampler=defaults.sampler or (chain.sampler if chain else SamplerName.DDIM),
        karras=chain.karras if chain else False,
        steps=defaults.steps,
        guidance_scale=defaults.guidance_scale,
        refiner=REFINER_UNET in manifest.components,
    )
