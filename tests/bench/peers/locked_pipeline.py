"""FastAPI with one pipeline behind a lock: `python -m tests.bench.peers.locked_pipeline FOLDER PORT DEVICE FORM...`."""

import sys
import threading
from pathlib import Path

import torch
import uvicorn
from fastapi import FastAPI

from tests.bench.peers.forms import PipelineForm
from tests.bench.peers.pipeline import Answer, Ask, Pipeline, answer


def create_app(folder: Path, device: torch.device, form: PipelineForm) -> FastAPI:
    pipeline = Pipeline(folder, device, form)
    pipeline.warm_up(4)
    lock = threading.Lock()
    app = FastAPI()

    @app.get("/health")
    def health() -> str:
        return "ok"

    @app.post("/predict")
    def predict(ask: Ask) -> Answer:
        with lock:  # the pipeline's scheduler keeps state between steps
            images = pipeline.draw(range(ask.seed, ask.seed + ask.images), ask.steps)
        return answer(images)

    return app


if __name__ == "__main__":
    given_folder, port, device_name, *form = sys.argv[1:]
    created = create_app(Path(given_folder), torch.device(device_name), PipelineForm.from_arguments(*form))
    uvicorn.run(created, host="127.0.0.1", port=int(port), log_level="warning")
