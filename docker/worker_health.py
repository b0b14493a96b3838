"""The worker container's health check: exit code 0 while the worker of this container sends its heartbeats."""

import os
import socket
import sys

import redis

from worker.contract.keys import WORKERS_KEY

with redis.Redis.from_url(os.environ["REVERIE_REDIS_URL"], socket_timeout=5, socket_connect_timeout=5) as client:
    live = client.zrangebyscore(WORKERS_KEY, f"({client.time()[0]}", "+inf")
    # A worker's name begins with its host's.
    mine = [name for name in live if name.startswith(f"{socket.gethostname()}-".encode())]
    sys.exit(0 if mine else "no heartbeat of this container's worker in Redis")
