"""All that a gateway and a worker do to jobs in Redis, once: `python -m tests.worker.contract.life_of_jobs URL`."""

import asyncio
import sys
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import redis

import worker.contract
from service.app import connect
from service.catalogue import Catalogue
from service.job_queue import Idempotency, JobQueue
from service.redis_deadline import redis_deadline
from service.settings import Settings
from worker.contract import (
    QUEUE_NAME,
    ImageRecord,
    JobError,
    JobOutcome,
    ProgressSnapshot,
    SamplingRequest,
    chain_key,
)
from worker.contract.keys import QueueKeys
from worker.contract.live_workers import ANNOUNCE, WITHDRAW
from worker.queue.claim_terms import ClaimTerms
from worker.queue.leases import Leases
from worker.queue.offer import ModelOffer, Offer
from worker.queue.retention import Retention, Version
from worker.queue.server_clock import ServerClock
from worker.results.files import File
from worker.results.names import image_file, job_folder
from worker.results.redis_files import AsyncRedisFiles, RedisFiles

REQUEST = SamplingRequest(model="digits", seed=1, steps=10, batch=1)
PROGRESS = ProgressSnapshot(step=10, steps=10, model="digits", version="000000001-00000000", weights_sha256="ab" * 32)
OUTCOME = JobOutcome(
    model="digits",
    version=PROGRESS.version,
    weights_sha256=PROGRESS.weights_sha256,
    images=[ImageRecord(index=0, seed=1, sha256="ab" * 32, width=8, height=8, size_bytes=1)],
    media_type="image/png",
)


OFFER = Offer({REQUEST.model: ModelOffer(True, frozenset({PROGRESS.version}))})


class NothingToPrune:
    def has_versions_to_prune(self) -> bool:
        return True

    def prune(self, named: AbstractSet[Version]) -> list[Version]:
        return []


def leases(client: "redis.Redis", lease_s: float) -> Leases:
    return Leases(
        client,
        QUEUE_NAME,
        "w",
        "",
        lease_s=lease_s,
        default_ttl_s=60,
        max_job_images=64,
        server_clock=ServerClock(lambda: datetime.now(UTC)),
    )


async def live(url: str) -> None:
    settings = Settings(redis_url=url)
    client = redis.Redis.from_url(url)
    async with connect(settings) as gateway_client:
        queue = JobQueue(gateway_client, settings)
        ids = [character * 32 for character in "123456"]
        for job_id in ids:
            key = Idempotency(job_id, "ab" * 32, None)
            await queue.submit(queue.new_job(job_id, REQUEST, None), REQUEST, key, {})
            assert (await queue.submit(queue.new_job(job_id, REQUEST, None), REQUEST, key, {})).outcome == "known"
        assert len(await queue.look(ids)) == len(ids)

        lasting, dying = leases(client, 60), leases(client, 0.001)
        finished, failed, released, retried, canceled = lasting.claim(None, ClaimTerms(5, OFFER)).jobs
        lasting.renew([finished])
        record = await queue.read(finished.job_id)
        assert record is not None
        assert record.status == "started"
        lasting.send([lasting.store(failed, chain_key(failed.job_id), b"x")])
        files, name = RedisFiles(client), image_file(job_folder(finished.job_id, finished.execution_id), 0, "png")
        files.put([File(name, b"x", 60)])
        answers = lasting.send(
            [
                lasting.finish(finished, OUTCOME, PROGRESS, files.witnesses([name])),
                lasting.fail(failed, JobError(code="bad_job", detail="as asked"), may_retry=False),
                lasting.fail(retried, JobError(code="bad_job", detail="as asked"), may_retry=True),
            ]
        )
        assert answers == ["finished", "failed", "queued"]
        await queue.cancel(canceled.job_id)
        assert lasting.release([released]) == [released.job_id]
        Retention(client, QueueKeys.of(QUEUE_NAME), NothingToPrune(), 64).look()
        (lost,) = dying.claim(None, ClaimTerms(1, OFFER)).jobs
        await asyncio.sleep(0.01)
        assert lasting.recover(stranded_s=60).requeued == [lost.job_id]
        moved = lasting.wait_for_job(1)
        assert moved is not None
        lasting.recover(stranded_s=60)
        lasting.recover(stranded_s=0)
        assert len(lasting.end_unserved(Offer(), 60).noticed) == (await queue.line(10))[0]
        assert lasting.idle_workers() == []
        kept = await AsyncRedisFiles(gateway_client, partial(redis_deadline, 1.0)).get(name)
        assert kept is not None
        assert kept.data == b"x"
        record = await queue.read(finished.job_id)
        assert record is not None
        assert record.result is not None
        client.register_script(ANNOUNCE)(args=["w", "{}", 60, 60])
        await Catalogue(gateway_client, 1.0).read()
        client.register_script(WITHDRAW)(args=["w"])
    client.close()


if __name__ == "__main__":
    asyncio.run(live(sys.argv[1]))
    print(Path(worker.contract.__file__).parents[2])
