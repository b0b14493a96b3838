"""A network's dtype and form on a CPU: measured once for each kind of network and processor, kept by all workers."""

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version

import torch

from worker.diffusion.noise import Shape
from worker.networks.architecture import NetworkSource
from worker.networks.cpu.forms import prepare_compiled, prepare_on_cpu
from worker.networks.denoiser import Denoiser
from worker.networks.device import dtype_name
from worker.networks.form import Form, PreparedNetwork
from worker.networks.network_input import InputSpec
from worker.networks.shared_choices import SharedChoices

log = logging.getLogger(__name__)

COMPILED = "float32 compiled"
DTYPES = {COMPILED: torch.float32, "float32": torch.float32, "bfloat16": torch.bfloat16}
"""The candidates by name. What a name stands for never changes: choices are kept by it."""
CLEARLY_FASTER = 1.05
"""bfloat16 is worth its rounding from this ratio on; with float32 no more than this is lost."""
CLEARLY_SLOWER = 0.85
"""Compiled kernels are left for torch's operations below this ratio: between the two, a measurement that others
disturbed must not decide."""
MEASURING_S = 1.0
"""Time for measuring all; a large network is measured with smaller batches."""
MEASURED_BYTES = 2**31
"""A compiled network of more is taken unmeasured: two of them might not fit into memory."""
LEAST_ROUNDS = 5
FORMS_VERSION = 6
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
    taken_s = _fewest_seconds(networks, spec, rows, LEAST_ROUNDS, clock)
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


def choice_key(config: Mapping[str, object], shape: Shape, dtypes: Sequence[torch.dtype]) -> str:
    """Name of the choice for a kind of network, a kind of processor and the versions of what computes.

    Args:
        config: the network's config.json; diffusers' own notes in it are left out.
        dtypes: those to choose from.
    """
    settings = {key: value for key, value in config.items() if key == "_class_name" or not key.startswith("_")}
    network = sha256(json.dumps([settings, shape], sort_keys=True).encode()).hexdigest()[:16]
    versions = f"torch {torch.__version__}, diffusers {version('diffusers')}, {_compiler()}, forms {FORMS_VERSION}"
    of = " or ".join(map(dtype_name, dtypes))
    return f"form in {of} of {config.get('_class_name')} {network} on {processor_kind()} with {versions}"


def _compiler() -> str:
    try:
        return f"llvmlite {version('llvmlite')}"
    except PackageNotFoundError:
        return "no llvmlite"


def processor_kind() -> str:
    """Equal for processors with the same instruction sets, by which the libraries choose kernels."""
    known = torch.cpu.get_capabilities()
    instructions = sorted(name for name, has in known.items() if has is True)
    digest = sha256(" ".join(instructions).encode()).hexdigest()[:8]
    return f"{known.get('architecture', 'cpu')} {torch.backends.cpu.get_cpu_capability()} {digest}"


def choice_of(dtype: str, form: str) -> str:
    """Name of the candidate that computed in this dtype and form."""
    return COMPILED if form == Form.COMPILED else dtype


def prepare_in_chosen_form(
    source_in: Callable[[torch.dtype], NetworkSource],
    dtypes: Sequence[torch.dtype],
    threads: int,
    most_rows: int,
    key: str,
    choices: SharedChoices,
    measure: Measure = rows_per_s,
) -> PreparedNetwork:
    """Prepare the network in the dtype and form that all workers use; the first worker to load its kind chooses.

    Of what is exact in batches the compiled kernels are taken unless they are clearly slower than torch's operations,
    and bfloat16 if it is clearly faster than either.

    Args:
        source_in: the network's source in a dtype.
        dtypes: those to choose from.
        most_rows: the largest batch that serves.

    Raises:
        OSError: the choices can't be reached now.
        ValueError: other workers chose what this one does not have.
    """
    chosen = choices.get(key)
    if chosen is not None:
        return _prepare_chosen(chosen, source_in, dtypes, threads, key)
    forms = _candidates(source_in, dtypes, threads)
    where = source_in(dtypes[0]).where
    if len(forms) == 1:
        proposed = next(iter(forms))
    else:
        proposed = _fastest(forms, where, source_in(dtypes[0]).inputs, most_rows, threads, measure)
    chosen = choices.settle(key, proposed)
    if chosen in forms:
        log.info("%s: computes in %s", where, chosen)
        return forms[chosen]
    return _prepare_chosen(chosen, source_in, dtypes, threads, key)


def prepare_beside(form: Form, source: NetworkSource, threads: int) -> PreparedNetwork:
    """Prepare a further network of a model whose first one runs in this form, which all workers agree on."""
    compiled = prepare_compiled(source, threads) if form is Form.COMPILED else None
    return compiled or prepare_on_cpu(source, threads)


def _prepare_chosen(
    chosen: str,
    source_in: Callable[[torch.dtype], NetworkSource],
    dtypes: Sequence[torch.dtype],
    threads: int,
    key: str,
) -> PreparedNetwork:
    known = [name for name, dtype in DTYPES.items() if dtype in dtypes]
    if chosen not in known:
        raise ValueError(f"need one of {', '.join(known)} as the {key}, other workers chose {chosen!r}")
    source = source_in(DTYPES[chosen])
    prepared = prepare_compiled(source, threads) if chosen == COMPILED else prepare_on_cpu(source, threads)
    if prepared is None:
        raise ValueError(f"other workers chose {chosen!r} as the {key}, and here no kernels can be compiled for it")
    log.info("%s: computes in %s, as all workers do since it was chosen", source.where, chosen)
    return prepared


def _candidates(
    source_in: Callable[[torch.dtype], NetworkSource], dtypes: Sequence[torch.dtype], threads: int
) -> dict[str, PreparedNetwork]:
    """The network in each form that this machine has."""
    forms: dict[str, PreparedNetwork] = {}
    for name, dtype in DTYPES.items():
        if dtype not in dtypes:
            continue
        if name == COMPILED:
            compiled = prepare_compiled(source_in(dtype), threads)
            if compiled is not None:
                forms[name] = compiled
        elif dtype is not torch.float32 or COMPILED not in forms or _bytes_of(forms[COMPILED]) <= MEASURED_BYTES:
            forms[name] = prepare_on_cpu(source_in(dtype), threads)
    return forms


def _bytes_of(prepared: PreparedNetwork) -> int:
    return sum(weight.nbytes for weight in prepared.network.parameters())


def _fastest(
    forms: Mapping[str, PreparedNetwork],
    where: str,
    inputs: InputSpec,
    most_rows: int,
    threads: int,
    measure: Measure,
) -> str:
    exact = {name: form.denoise for name, form in forms.items() if form.form is not Form.ONE_BY_ONE}
    if len(exact) < 2:
        chosen = next(iter(exact), "float32")
        log.info("%s: exact in batches: %s", where, ", ".join(exact) or "none")
        return chosen
    speeds = measure(exact, inputs, most_rows, threads)
    chosen = next(iter(exact))
    if chosen == COMPILED and speeds[COMPILED] < CLEARLY_SLOWER * speeds.get("float32", 0.0):
        chosen = "float32"
    if speeds.get("bfloat16", 0.0) >= CLEARLY_FASTER * speeds[chosen]:
        chosen = "bfloat16"
    measured = " and ".join(f"{speed:.1f} rows per CPU second in {name}" for name, speed in speeds.items())
    log.info("%s: %s is chosen, measured %s", where, chosen, measured)
    return chosen
