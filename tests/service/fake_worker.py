"""A worker that keeps the contract and draws nothing: it stands at the other end of Redis."""

import hashlib
import threading
from base64 import b64encode
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

import numpy as np
import redis
from rq import Queue
from rq.executions import Execution
from rq.job import Job, JobStatus
from rq.registry import StartedJobRegistry
from rq.serializers import JSONSerializer

from worker.contract import (
    QUEUE_NAME,
    EngineCounters,
    ImageRecord,
    JobError,
    JobOutcome,
    MemoryUse,
    ModelInfo,
    Preview,
    PreviewSnapshot,
    ProgressSnapshot,
    SamplerName,
    SamplingRequest,
    Takes,
    UpscaleInfo,
    VersionInfo,
    WorkerStatus,
    events_channel,
    progress_key,
)
from worker.contract.keys import IDEMPOTENCY_FIELD, idempotency_key, preview_key
from worker.contract.live_workers import ANNOUNCE, WITHDRAW
from worker.outputs.animation import animate
from worker.outputs.image_files import encode_preview
from worker.results.files import File, Files
from worker.results.names import frames_file, image_file, job_folder
from worker.results.redis_files import RedisFiles

VERSION = "000012000-3f2a9c1b"
WEIGHTS = "ab" * 32
NAME = "fake-worker"

DIGITS = ModelInfo(
    name="digits",
    version=VERSION,
    versions=[
        VersionInfo(version=VERSION, step=12000, created_at=datetime(2026, 1, 1, tzinfo=UTC), weights_sha256=WEIGHTS)
    ],
    labels=["zero", "one", "two"],
    width=8,
    height=8,
    channels=1,
    size_multiple=2,
    fast=True,
    num_train_timesteps=1000,
    prediction_type="epsilon",
    samplers=list(SamplerName),
    takes=Takes.CLASS_LABEL,
    dtype="bfloat16",
    exact=True,
    form="one_by_one",
)
CLOUDS = DIGITS.model_copy(
    update={
        "name": "clouds",
        "labels": [],
        "num_train_timesteps": 100,
        "samplers": [SamplerName.DDPM],
        "takes": Takes.NOTHING,
        "size_multiple": None,
        "fast": False,
    }
)

EMOJI = DIGITS.model_copy(update={"name": "emoji", "labels": [], "takes": Takes.PROMPT})
CASCADE = DIGITS.model_copy(
    update={
        "name": "digits-x2",
        "width": 16,
        "height": 16,
        "size_multiple": None,
        "upscale": UpscaleInfo(width=8, height=8, steps=5, max_steps=1000, noise_level=100, max_noise_level=400),
    }
)
REFINED = EMOJI.model_copy(
    update={
        "name": "refined",
        "versions": [
            DIGITS.versions[0].model_copy(update={"version": "000000001-3f2a9c1b"}),
            DIGITS.versions[0].model_copy(update={"refiner": True}),
        ],
    }
)
"""Its current version has a refiner, the one before has none."""


def status_of(
    counters: EngineCounters,
    models: tuple[ModelInfo, ...] = (DIGITS, CLOUDS, EMOJI),
    default_model: str | None = "digits",
    row_step_s: dict[str, float] | None = None,
    name: str = NAME,
    memory: MemoryUse | None = None,
) -> WorkerStatus:
    return WorkerStatus(
        worker=name,
        started_at=datetime.now(UTC),
        device="cpu",
        dtype="float32",
        max_batch=16,
        default_model=default_model,
        models=list(models),
        counters=counters,
        row_step_s=row_step_s or {},
        memory=memory or MemoryUse(),
    )


class FakeWorker:
    def __init__(self, client: "redis.Redis") -> None:
        self._client = client
        self.tells = True
        """Whether it says that a job has changed; False: as if every message were lost."""
        self.files: Files = RedisFiles(client)
        self.file_of: Callable[[int], bytes] = lambda seed: f"pixels of seed {seed}".encode()
        """The bytes of an image's file, by its seed."""
        self.sha256_of: Callable[[bytes], str] = lambda data: hashlib.sha256(data).hexdigest()
        """The hash that it tells of an image, by its file."""
        self.drawn: list[SamplingRequest] = []
        """What it was asked for, of the jobs that succeeded."""
        self._executions: dict[str, Execution] = {}
        self._queue = Queue(QUEUE_NAME, connection=client, serializer=JSONSerializer)

    def announce(
        self,
        models: tuple[ModelInfo, ...] = (DIGITS, CLOUDS, EMOJI),
        default_model: str | None = "digits",
        counters: EngineCounters | None = None,
        row_step_s: dict[str, float] | None = None,
        name: str = NAME,
        memory: MemoryUse | None = None,
    ) -> None:
        status = status_of(counters or EngineCounters(), models, default_model, row_step_s, name, memory)
        self._client.register_script(ANNOUNCE)(args=[name, status.model_dump_json(), 600, 600])

    def die(self) -> None:
        self._client.register_script(WITHDRAW)(args=[NAME])

    def queue_length(self) -> int:
        return int(self._client.llen(self._queue.key))

    def take(self, job_id: str | None = None) -> Job:
        """Begin a job, with a lease: the next one, unless it is named."""
        if job_id is None:
            job_id = self._queue.pop_job_id()
        else:
            self._queue.remove(job_id)
        assert job_id is not None, "the queue is empty"
        job = Job.fetch(job_id, connection=self._client, serializer=JSONSerializer)
        with self._client.pipeline() as pipe:
            self._executions[job.id] = Execution.create(job, ttl=30, pipeline=pipe)
            job.prepare_for_execution(NAME, pipeline=pipe)
            pipe.persist(job.key)
            pipe.execute()
        return job

    @contextmanager
    def serving(
        self,
        steps: Sequence[int] = (1,),
        warnings: Sequence[str] = (),
        error: JobError | None = None,
        leave: Collection[str] = (),
    ) -> Iterator[None]:
        """Draws in the background whatever is queued, reporting these steps of each job; fails it with `error`.

        Args:
            leave: jobs that stay as they are.
        """
        stop = threading.Event()

        def serve() -> None:
            while not stop.wait(0.005):
                waiting = [job_id for job_id in self._queue.job_ids if job_id not in leave]
                if waiting:
                    job = self.take(waiting[0])
                    for step in steps:
                        self.report(job, step)
                    if error is None:
                        self.succeed(job, warnings)
                    else:
                        self.fail(job, error.model_dump_json())

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def leases(self) -> int:
        return StartedJobRegistry(QUEUE_NAME, connection=self._client, serializer=JSONSerializer).get_job_count(
            cleanup=False
        )

    def report(self, job: Job, step: int) -> None:
        request = request_of(job)
        snapshot = ProgressSnapshot(
            step=step, steps=request.steps, model=request.model, version=VERSION, weights_sha256=WEIGHTS
        )
        self._client.set(progress_key(job.id), snapshot.model_dump_json(), ex=60)
        self._tell(job, snapshot.model_dump_json())

    def preview(self, job: Job, step: int) -> None:
        """Of the first image, as if somebody had asked."""
        webp = encode_preview(np.full((8, 8, 1), step % 256, np.uint8))
        snapshot = PreviewSnapshot(previews=[Preview(index=0, step=step, webp=b64encode(webp).decode())])
        self._client.set(preview_key(job.id), snapshot.model_dump_json(), ex=60)
        self._tell(job)

    def succeed(self, job: Job, warnings: Sequence[str] = (), receipt: str | None = None) -> list[bytes]:
        """Store the images, then end the job; answers the images' bytes."""
        request = request_of(job)
        self.drawn.append(request)
        assert job.result_ttl is not None
        images, records, files = [], [], []
        folder = job_folder(job.id, self._executions[job.id].id)
        for index in range(request.batch):
            data = self.file_of(request.seed + index)
            file = File(image_file(folder, index, request.format.extension), data, job.result_ttl)
            files.append(file)
            images.append(data)
            frames = None
            if request.frames:
                moments = [np.full((8, 8, 1), 10 * number, np.uint8) for number in range(1, request.frames)]
                moving = animate(moments, np.full((8, 8, 1), (request.seed + index) % 256, np.uint8))
                frames = File(frames_file(folder, index), moving, job.result_ttl)
                files.append(frames)
            records.append(
                ImageRecord(
                    index=index,
                    seed=request.seed + index,
                    sha256=self.sha256_of(data),
                    width=8,
                    height=8,
                    size_bytes=len(data),
                    file=file.name,
                    frames_file=frames.name if frames else None,
                )
            )
        assert self.files.put(files) == [None] * len(files)
        outcome = JobOutcome(
            model=request.model,
            version=VERSION,
            weights_sha256=WEIGHTS,
            dtype="bfloat16",
            exact=False,
            images=records,
            media_type=request.format.media_type,
            receipt=receipt,
            warnings=list(warnings),
        )
        job._result = outcome.model_dump(mode="json")
        with self._client.pipeline() as pipe:
            job.ended_at = datetime.now(UTC)
            job._handle_success(job.result_ttl, pipeline=pipe, worker_name=NAME)
            self._expire_idempotency(job, job.result_ttl, pipe)
            job.cleanup(job.result_ttl, pipeline=pipe, remove_from_queue=False)
            self._executions[job.id].delete(job, pipe)
            pipe.execute()
        self._tell(job)
        return images

    def fail(self, job: Job, exc_string: str) -> None:
        with self._client.pipeline() as pipe:
            job.ended_at = datetime.now(UTC)
            job.set_status(JobStatus.FAILED, pipeline=pipe)
            job._handle_failure(exc_string, pipe, worker_name=NAME)
            self._expire_idempotency(job, job.failure_ttl or 0, pipe)
            self._executions[job.id].delete(job, pipe)
            pipe.execute()
        self._tell(job)

    def _expire_idempotency(self, job: Job, ttl_s: int, pipe: "redis.client.Pipeline") -> None:
        digest = self._client.hget(job.key, IDEMPOTENCY_FIELD)
        if isinstance(digest, bytes):
            pipe.expire(idempotency_key(digest.decode()), ttl_s)

    def _tell(self, job: Job, text: str = "") -> None:
        if self.tells:
            self._client.publish(events_channel(job.id), text)


def request_of(job: Job) -> SamplingRequest:
    (argument,) = job.args
    return SamplingRequest.model_validate(argument)


OUT_OF_MEMORY = JobError(code="out_of_memory", detail="need 3 GiB, 1 GiB is free")
