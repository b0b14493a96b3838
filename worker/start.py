"""From the environment to a running worker; what can't start says why in one line."""

import logging
import os
import sys
from functools import partial
from typing import TYPE_CHECKING, NoReturn

import redis

from worker.contract import QUEUE_NAME
from worker.contract.environment import SettingsError
from worker.contract.keys import QueueKeys
from worker.contract.logs import configure_logs
from worker.contract.no_pickle import disable_pickle
from worker.contract.redis_address import without_password
from worker.contract.redis_errors import REDIS_AWAY
from worker.contract.signing import Signer
from worker.metrics_port import CannotListen
from worker.outputs.receipt_writer import ReceiptWriter
from worker.queue import rq_overrides
from worker.queue.connection import connect, wait_until_ready
from worker.results.files import Files, ResultsAway
from worker.results.places import open_files
from worker.settings import WorkerSettings

if TYPE_CHECKING:
    from worker.store.model_store import ModelStore

logger = logging.getLogger(__name__)

SWITCH_INTERVAL_S = 0.0005
EXIT_CANT_START = 1
EXIT_BAD_SETTINGS = 2
NOT_FOR_SERVING = ("accelerate", "peft", "scipy")
"""Training's packages, which diffusers and transformers import for seconds where they find them."""


class CantStartError(Exception):
    """The worker can't start; the message is one line for the operator."""


def main() -> NoReturn:
    """Run until the worker ends; never returns."""
    try:
        settings = WorkerSettings.read()
    except SettingsError as error:
        _end(f"error: {error}", EXIT_BAD_SETTINGS)
    configure_logs(settings, "worker")
    try:
        rq_overrides.require_rq_version()
        disable_pickle()
        store = open_store(settings)
        receipts = open_receipts(settings)
        client = open_redis(settings)
        logger.info("starting: models of %s, queue %s", store.root, without_password(settings.redis_url))
        code = _serve(settings, store, client, receipts)
    except (CantStartError, SettingsError, rq_overrides.UnsupportedRqError) as error:
        _end(f"error: {error}", EXIT_CANT_START)
    except KeyboardInterrupt:
        _end("interrupted", EXIT_CANT_START)
    logging.shutdown()
    sys.stdout.flush()
    # Not sys.exit: a thread inside a kernel would be torn down under it.
    os._exit(code)


def open_store(settings: WorkerSettings) -> "ModelStore":
    """The store, which must hold a model.

    Raises:
        CantStartError: it is missing or empty.
    """
    from worker.store import ModelStore, StoreError, bundled_store_path

    root = settings.store if settings.store is not None else bundled_store_path()
    variable = "REVERIE_STORE" if settings.store is not None else "the bundled store"
    try:
        store = ModelStore(root)
        if not store.models():
            raise CantStartError(f"{variable} {root} holds no model: train or import one first")
    except (StoreError, OSError) as error:
        raise CantStartError(f"{variable}: {error}") from error
    return store


def default_model_of(settings: WorkerSettings) -> str | None:
    """The model for requests that name none, where it is there; else, and for None, the first by name is."""
    from worker.store import BUNDLED_DEFAULT_MODEL

    if settings.default_model is None and settings.store is None:
        return BUNDLED_DEFAULT_MODEL
    return settings.default_model


def open_redis(settings: WorkerSettings) -> "redis.Redis":
    """A connection that has answered once.

    Raises:
        CantStartError: no answer within the stated time.
    """
    client = connect(settings.redis_url)
    try:
        wait_until_ready(client, settings.redis_url, settings.redis_wait_s)
    except redis.exceptions.RedisError as error:
        waited = isinstance(error, REDIS_AWAY) and not isinstance(error, redis.exceptions.AuthenticationError)
        what = f"did not answer within {settings.redis_wait_s:g} s" if waited else "refused"
        raise CantStartError(
            f"Redis at REVERIE_REDIS_URL={without_password(settings.redis_url)} {what}: {error}"
        ) from None
    return client


def open_results(settings: WorkerSettings, client: "redis.Redis") -> Files:
    """The place for files.

    Raises:
        CantStartError: it can't be opened.
    """
    try:
        return open_files(settings.results, client)
    except ResultsAway as error:
        raise CantStartError(f"REVERIE_RESULTS={settings.results}: {error}") from error


def open_receipts(settings: WorkerSettings) -> ReceiptWriter:
    """Signing, if there is a key.

    Raises:
        CantStartError: the key can't be used.
    """
    try:
        return ReceiptWriter(Signer.read(settings.signing_key) if settings.signing_key else None)
    except ValueError as error:
        raise CantStartError(f"REVERIE_SIGNING_KEY: {error}") from None


def _serve(settings: WorkerSettings, store: "ModelStore", client: "redis.Redis", receipts: ReceiptWriter) -> int:
    for name in NOT_FOR_SERVING:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # Python's word for: not to be found
    # Imported here: what was checked before this line needs no torch, and fails without the seconds it takes to load.
    from worker.engine.engine import Engine
    from worker.engine.provenance import arithmetic_of
    from worker.models.loading import load_checkpoint
    from worker.models.pool import ModelPool
    from worker.networks.batch_form import ExactMode
    from worker.networks.cuda.graph_capture import recording_is_safe
    from worker.networks.cuda.networks import gpu_networks
    from worker.networks.device import DeviceLost, choose_device, choose_dtype, device_memory, dtype_name, end_if_lost
    from worker.networks.padded import PadBatch
    from worker.process import Background, WorkerProcess
    from worker.queue.network_choices import RedisChoices
    from worker.queue.retention import Retention
    from worker.store.component_rules import SAFETY_PARTS

    try:
        device = choose_device(settings.device)
        dtype = choose_dtype(settings.dtype, device)
    except ValueError as error:
        raise CantStartError(str(error)) from None
    # A thread that loads a model is busy in Python for tens of milliseconds. The engine gives the interpreter away at
    # each of the hundreds of operations of a step, and would wait this long to get it back every time.
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    tf32 = settings.dtype == "tf32"
    record = settings.cuda_graphs == "auto" and recording_is_safe()
    if device.type == "cuda" and settings.cuda_graphs == "auto" and not record:
        logger.warning("no CUDA graphs: they are recorded with torch 2.13 and later, an older one may not survive it")
    networks = (
        None
        if device.type == "cpu"
        else gpu_networks(device, record=record, tf32=tf32, exact=ExactMode(settings.exact))
    )
    choices = RedisChoices(client)
    safety_checker = settings.safety_checker == "on"
    default_model = default_model_of(settings)
    pool = ModelPool(
        store,
        lambda checkpoint: load_checkpoint(
            checkpoint,
            device,
            dtype,
            choices=choices,
            pad_batch=PadBatch(settings.pad_batch),
            max_batch=settings.max_batch,
            threads=settings.cpu_threads,
            networks=networks,
            tile_above_pixels=settings.tile_above_pixels,
            safety_checker=safety_checker,
        ),
        load_first=default_model,
        spares=networks,
        check_device=partial(end_if_lost, device),
        device_memory=partial(device_memory, device),
        memory_budget_bytes=settings.model_budget_bytes,
        keep_versions=settings.keep_versions,
        not_run=frozenset() if safety_checker else frozenset(SAFETY_PARTS),
    )
    # One before anything is announced, so that a worker that says it is ready can draw; the others while it serves.
    try:
        pool.poll()
        pool.load_one()
    except DeviceLost as error:
        raise CantStartError(str(error)) from None
    retention = Retention(client, QueueKeys.of(QUEUE_NAME), pool, settings.max_job_images)
    process = WorkerProcess(
        settings,
        client,
        Engine(
            pool,
            settings.max_batch,
            save_interval_s=settings.save_interval_s,
            save_max_bytes=settings.save_max_bytes,
        ),
        pool,
        open_results(settings, client),
        device=str(device),
        arithmetic=arithmetic_of(device, settings.tile_above_pixels, safety_checker=safety_checker),
        dtype="tf32" if tf32 else "auto" if dtype is None else dtype_name(dtype),
        default_model=default_model,
        background=[
            Background("models", pool.run, pool.wake),
            Background("retention", retention.run, lambda: None),
        ],
        receipts=receipts,
    )
    try:
        return process.run()
    except CannotListen as error:
        raise CantStartError(str(error)) from None
    except redis.exceptions.RedisError as error:
        raise CantStartError(f"Redis went away while the worker signed on: {error}") from None


def _end(message: str, code: int) -> NoReturn:
    print(message.replace("\n", " "), file=sys.stderr, flush=True)
    os._exit(code)
