"""LitServe with dynamic batching: `python -m tests.bench.peers.litserve_pipeline FOLDER PORT DEVICE MAX_BATCH FORM...`.

A pipeline call has one step count for all of its images, so the requests of a batch are drawn group by group.
"""

import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import litserve
import torch

from tests.bench.peers.forms import PipelineForm
from tests.bench.peers.pipeline import Ask, Pipeline, answer

BATCH_TIMEOUT_S = 0.05


class GroupedPipeline(litserve.LitAPI):  # type: ignore[misc]  # litserve ships no types
    def __init__(self, folder: Path, form: PipelineForm, max_batch: int) -> None:
        super().__init__(max_batch_size=max_batch, batch_timeout=BATCH_TIMEOUT_S)
        self._folder = folder
        self._form = form
        self._max_batch = max_batch

    def setup(self, device: str) -> None:
        self._pipeline = Pipeline(self._folder, torch.device(device), self._form)
        self._pipeline.warm_up(self._max_batch)

    def decode_request(self, request: dict[str, Any]) -> Ask:
        return Ask.model_validate(request)

    def batch(self, inputs: list[Ask]) -> list[Ask]:
        return inputs

    def predict(self, asks: list[Ask]) -> list[list[Any]]:
        """The images of each request, in order."""
        groups: dict[int, list[int]] = defaultdict(list)
        for place, ask in enumerate(asks):
            groups[ask.steps].append(place)
        drawn: list[list[Any]] = [[] for _ in asks]
        for steps, places in groups.items():
            seeds = [ask.seed + i for ask in (asks[place] for place in places) for i in range(ask.images)]
            images = iter(self._pipeline.draw(seeds, steps))
            for place in places:
                drawn[place] = [next(images) for _ in range(asks[place].images)]
        return drawn

    def unbatch(self, output: list[list[Any]]) -> list[list[Any]]:
        return output

    def encode_response(self, output: list[Any]) -> dict[str, Any]:
        return answer(output).model_dump()


if __name__ == "__main__":
    given_folder, port, device_name, max_batch, *form = sys.argv[1:]
    api = GroupedPipeline(Path(given_folder), PipelineForm.from_arguments(*form), int(max_batch))
    accelerator = torch.device(device_name).type
    server = litserve.LitServer(api, accelerator=accelerator, devices=1, workers_per_device=1, timeout=False)
    server.run(host="127.0.0.1", port=int(port), log_level="warning", generate_client_file=False, num_api_servers=1)
