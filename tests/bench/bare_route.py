"""What the gateway is held against: `python -m tests.bench.bare_route PORT REDIS_URL`, a route with one Redis write."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from redis.asyncio import Redis


class Body(BaseModel):
    seed: int | None = None
    steps: int
    batch: int


class Stored(BaseModel):
    id: str
    steps: int


def create_app(redis: Redis) -> FastAPI:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await redis.aclose()

    app = FastAPI(lifespan=lifespan)

    @app.post("/write")
    async def write(body: Body) -> Stored:
        await redis.set("bench:bare", body.model_dump_json(), ex=60)
        return Stored(id="bench:bare", steps=body.steps)

    return app


if __name__ == "__main__":
    app = create_app(Redis.from_url(sys.argv[2]))
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_config=None, access_log=False)
