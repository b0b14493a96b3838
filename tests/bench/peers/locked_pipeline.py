"""FastAPI with one pipeline behind a lock: `python -m tests.bench.peers.locked_pipeline FOLDER PORT DEVICE DTYPE`."""

import sys
import threading
from pathlib import Path

import torch
import uvicorn
from fastapi import FastAPI

from tests.bench.peers.pipeline import Answer, Ask, answer, draw, open_pipeline


def create_app(folder: Path, device: torch.device, dtype: torch.dtype) -> FastAPI:
    pipeline = open_pipeline(folder, device, dtype)
    lock = threading.Lock()
    app = FastAPI()

    @app.get("/health")
    def health() -> str:
        return "ok"

    @app.post("/predict")
    def predict(ask: Ask) -> Answer:
        with lock:  # the pipeline's scheduler keeps state between steps
            images = draw(pipeline, range(ask.seed, ask.seed + ask.images), ask.steps)
        return answer(images)

    return app


if __name__ == "__main__":
    given_folder, port, device_name, dtype_name = sys.argv[1:]
    created = create_app(Path(given_folder), torch.device(device_name), getattr(torch, dtype_name))
    uvicorn.run(created, host="127.0.0.1", port=int(port), log_level="warning")
