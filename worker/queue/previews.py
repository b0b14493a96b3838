"""Previews of watched jobs: which jobs are watched, and their newest previews in Redis."""

from base64 import b64encode
from typing import TYPE_CHECKING, Any, cast

from worker.contract import Preview, PreviewSnapshot, events_channel
from worker.contract.keys import preview_asked_key, preview_key
from worker.engine.messages import EnginePort
from worker.outputs.image_files import encode_preview
from worker.queue.held_job import HeldJob, HeldJobs

if TYPE_CHECKING:
    import redis

KEPT_S = 15
"""How long a preview outlives the next one, which did not come."""


class PreviewReporter:
    """Owned by the progress thread."""

    def __init__(self, client: "redis.Redis", engine: EnginePort, held: HeldJobs) -> None:
        self._client = client
        self._engine = engine
        self._held = held

    def look(self) -> None:
        """Tell the engine which of its jobs somebody watches."""
        job_ids = [job.job_id for job in self._held.all() if job.in_engine]
        asked: list[bytes | None] = []
        if job_ids:
            asked = cast(Any, self._client.mget([preview_asked_key(job_id) for job_id in job_ids]))
        self._engine.watch([job_id for job_id, is_asked in zip(job_ids, asked, strict=True) if is_asked is not None])

    def report(self) -> None:
        """Write what has come since the last time, in one round trip."""
        news = [(job, job.previews) for job in self._held.all() if job.previews is not job.previews_sent]
        if not news:
            return
        with self._client.pipeline(transaction=False) as pipeline:
            for job, _ in news:
                pipeline.set(preview_key(job.job_id), _snapshot(job).model_dump_json(), ex=KEPT_S)
                pipeline.publish(events_channel(job.job_id), "")
            pipeline.execute()
        for job, previews in news:
            job.previews_sent = previews


def _snapshot(job: HeldJob) -> PreviewSnapshot:
    previews = [
        Preview(index=index, step=step, webp=b64encode(encode_preview(pixels)).decode())
        for index, (step, pixels) in sorted(job.previews.items())
    ]
    return PreviewSnapshot(previews=previews)
