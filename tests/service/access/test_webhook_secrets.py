"""What one owner is told, no other owner can have signed."""

from collections.abc import Callable

import httpx
import pytest
from standardwebhooks import Webhook as Verifier
from standardwebhooks import WebhookVerificationError

from tests.service.access.conftest import Keys
from tests.service.fake_worker import FakeWorker
from tests.service.test_webhooks import SECRET
from tests.service.webhook_receiver import Receiver
from tests.waiting import wait_until


def test_each_owner_verifies_by_a_secret_of_its_own(
    keys: Keys, worker: FakeWorker, start_gateway: Callable[..., httpx.Client]
) -> None:
    with Receiver() as receiver:
        http = start_gateway(api_keys=keys.lines, webhook_hosts=f"http://{receiver.host}", webhook_secret=SECRET)
        alice, bob = ({"Authorization": f"Bearer {key}"} for key in (keys.alice, keys.bob))
        body = {"steps": 10, "batch": 1, "webhook": {"url": receiver.url}}
        job = http.post("/generate", json=body, headers=alice).json()
        http.delete(job["links"]["self"], headers=alice)
        wait_until(lambda: receiver.received, "alice to be told")
        (told,) = receiver.received
        own, others = (http.get("/webhooks/secret", headers=who).json()["secret"] for who in (alice, bob))
        assert http.get("/webhooks/secret").status_code == 401
        assert len({own, others, SECRET}) == 3
        assert Verifier(own).verify(told.body, told.headers)["data"]["id"] == job["id"]
        for secret in (others, SECRET):
            with pytest.raises(WebhookVerificationError):
                Verifier(secret).verify(told.body, told.headers)
        assert http.get(f"/jobs/{job['id']}/webhooks", headers=alice).status_code == 200
        assert http.get(f"/jobs/{job['id']}/webhooks", headers=bob).status_code == 404
