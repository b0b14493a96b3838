"""The worker container's health check: exit code 0 while the worker of this container sends its heartbeats."""

import os
import socket
import sys

import redis

from worker.contract import WORKER_KEY_PREFIX

with redis.Redis.from_url(os.environ["REVERIE_REDIS_URL"], socket_timeout=5, socket_connect_timeout=5) as client:
    # A worker's name begins with its host's; its key expires soon after the last heartbeat.
    mine = client.scan_iter(f"{WORKER_KEY_PREFIX}{socket.gethostname()}-*", count=5000)
    sys.exit(0 if next(mine, None) is not None else "no heartbeat of this container's worker in Redis")
