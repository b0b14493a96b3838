"""float32 or bfloat16 on a CPU that computes in both: measured once for each kind of network, kept by all workers."""

import json
import logging
import time
from collections.abc import Callable, Mapping
from hashlib import sha256
from importlib.metadata import version

import torch

from worker.diffusion.noise import Shape
from worker.networks.architecture import NetworkSource
from worker.networks.cpu.forms import prepare_on_cpu
from worker.networks.denoiser import Denoiser
from worker.networks.form import Form, PreparedNetwork
from worker.networks.network_input import InputSpec
from worker.networks.shared_choices import SharedChoices

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CLEARLY_FASTER = 1.05
"""bfloat16 is worth its rounding from this ratio on; with float32 no more than this is lost."""
MEASURING_S = 2.0
"""Time for measuring both; a large network is measured with smaller batches."""
LEAST_ROUNDS = 5
FORMS_VERSION = 1
"""Increase it when a form's numbers or speed change: every choice is then made again."""


Measure = Callable[[Mapping[str, Denoiser], InputSpec, int, int], Mapping[str, float]]
"""(networks by name, what they take, most rows, threads) → rows per CPU second of each."""


@torch.inference_mode()
def rows_per_s(
    networks: Mapping[str, Denoiser],
    spec: InputSpec,
    most_rows: int,
    threads: int,
    clock: Callable[[], float] = time.process_time,
) -> Mapping[str, float]:
    """Measure batches of `most_rows`, or of as many rows as `MEASURING_S` allows; the networks take turns.

    The clock counts this process's CPU time: on a busy machine wall-clock times differ more than the dtypes do. A full
    batch runs on threads that don't wait for each other, so its CPU time measures its throughput.
    """
    fewest = min(threads, most_rows)
    few_s = _fewest_seconds(networks, spec, fewest, 1, clock)
    affordable = int(fewest * MEASURING_S / ((LEAST_ROUNDS + 1) * sum(few_s.values())))
    rows = min(most_rows, affordable)
    if rows <= fewest:
        return {name: fewest / seconds for name, seconds in few_s.items()}
    rounds = max(LEAST_ROUNDS, LEAST_ROUNDS * affordable // rows)  # a busy machine disturbs most of them
    taken_s = _fewest_seconds(networks, spec, rows, rounds, clock)
    return {name: rows / seconds for name, seconds in taken_s.items()}


def _fewest_seconds(
    networks: Mapping[str, Denoiser], spec: InputSpec, rows: int, rounds: int, clock: Callable[[], float]
) -> dict[str, float]:
    """Of a batch, by network: the minimum is the measurement that other processes disturbed least."""
    inputs, least_s = spec.zeros(rows), dict.fromkeys(networks, float("inf"))
    for network in networks.values():
        network(inputs)  # the first call of each size packs weights
    for _ in range(rounds):
        for name, network in networks.items():
            began = clock()
            network(inputs)
            least_s[name] = min(least_s[name], clock() - began)
    return least_s


def choice_key(config: Mapping[str, object], shape: Shape) -> str:
    """Name of the choice for a kind of network, a kind of processor and the versions of what computes.

    Args:
        config: the network's config.json; diffusers' own notes in it are left out.
    """
    settings = {key: value for key, value in config.items() if key == "_class_name" or not key.startswith("_")}
    network = sha256(json.dumps([settings, shape], sort_keys=True).encode()).hexdigest()[:16]
    versions = f"torch {torch.__version__}, diffusers {version('diffusers')}, forms {FORMS_VERSION}"
    return f"dtype of {config.get('_class_name')} {network} on {processor_kind()} with {versions}"


def processor_kind() -> str:
    """Equal for processors with the same instruction sets, by which the libraries choose kernels."""
    known = torch.cpu.get_capabilities()
    instructions = sorted(name for name, has in known.items() if has is True)
    digest = sha256(" ".join(instructions).encode()).hexdigest()[:8]
    return f"{known.get('architecture', 'cpu')} {torch.backends.cpu.get_cpu_capability()} {digest}"


def prepare_in_chosen_dtype(
    source_in: Callable[[torch.dtype], NetworkSource],
    threads: int,
    most_rows: int,
    key: str,
    choices: SharedChoices,
    measure: Measure = rows_per_s,
) -> PreparedNetwork:
    """Prepare the network in the dtype that all workers use; the first worker to load its kind chooses.

    bfloat16 is chosen if it is exact in batches and clearly faster, or if float32 is not exact.

    Args:
        source_in: the network's source in a dtype.
        most_rows: the largest batch that serves.

    Raises:
        OSError: the choices can't be reached now.
    """
    chosen = choices.get(key)
    if chosen is not None and chosen not in DTYPES:
        raise ValueError(f"need a dtype of {', '.join(DTYPES)} as the {key}, other workers chose {chosen!r}")
    if chosen is not None:
        log.info("%s: computes in %s, as all workers do since it was chosen", source_in(DTYPES[chosen]).where, chosen)
        return prepare_on_cpu(source_in(DTYPES[chosen]), threads)
    forms = {name: prepare_on_cpu(source_in(dtype), threads) for name, dtype in DTYPES.items()}
    proposed = _faster(forms, source_in(torch.float32), most_rows, threads, measure)
    chosen = choices.settle(key, proposed)
    if chosen != proposed:
        log.info("%s: computes in %s, as another worker has chosen", source_in(DTYPES[chosen]).where, chosen)
    return forms[chosen]


def _faster(
    forms: Mapping[str, PreparedNetwork], source: NetworkSource, most_rows: int, threads: int, measure: Measure
) -> str:
    exact = [name for name, prepared in forms.items() if prepared.form is not Form.ONE_BY_ONE]
    if exact != list(forms):
        chosen = exact[0] if exact else "float32"
        log.info("%s: computes in %s; exact in batches: %s", source.where, chosen, ", ".join(exact) or "none")
        return chosen
    speeds = measure({name: form.denoise for name, form in forms.items()}, source.inputs, most_rows, threads)
    chosen = "bfloat16" if speeds["bfloat16"] >= CLEARLY_FASTER * speeds["float32"] else "float32"
    measured = " and ".join(f"{speed:.1f} rows per CPU second in {name}" for name, speed in speeds.items())
    log.info("%s: computes in %s, measured %s", source.where, chosen, measured)
    return chosen
