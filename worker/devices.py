"""`python -m worker.devices`: the devices that workers of this machine may compute on, one JSON list.

For whoever starts workers without loading torch itself.
"""

import json
import sys
from typing import TextIO

from worker.networks.cuda.cards import Cards, TorchsCards


def visible_devices(cards: Cards) -> list[str]:
    """`cuda:N` of each GPU; the CPU alone where there is none."""
    return [f"cuda:{index}" for index in range(cards.count())] or ["cpu"]


def main(output: TextIO = sys.stdout) -> None:
    json.dump(visible_devices(TorchsCards()), output)


if __name__ == "__main__":
    main()
