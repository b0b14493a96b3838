"""A request whose defaults are filled in asks for the same chain."""

from dataclasses import replace

import pytest

from worker.contract import KARRAS_SAMPLERS, SamplerName, SamplingRequest, Spacing
from worker.diffusion.plan_hash import plan_sha256
from worker.models.chain_config import ChainConfig, read_chain_config

SCHEDULERS = ("DDPMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler")


def hash_of(chain: ChainConfig, request: SamplingRequest) -> str:
    return plan_sha256(chain.plan(request))


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("sampler", list(SamplerName))
@pytest.mark.parametrize("spacing", [None, *Spacing])
@pytest.mark.parametrize("karras", [False, True])
def test_filling_in_the_spacing_changes_no_number(
    scheduler: str, sampler: SamplerName, spacing: Spacing | None, karras: bool
) -> None:
    chain = read_chain_config({"_class_name": scheduler, "num_train_timesteps": 1000}, "tiny")
    if karras and sampler not in KARRAS_SAMPLERS:
        pytest.skip("not this sampler's")
    request = SamplingRequest(model="tiny", seed=1, steps=10, batch=1, sampler=sampler, spacing=spacing, karras=karras)
    resolved = request.model_copy(update={"spacing": chain.spacing_of(request)})
    assert hash_of(chain, resolved) == hash_of(chain, request)
    assert chain.spacing_of(resolved) == resolved.spacing


def test_a_plans_hash_is_of_its_numbers() -> None:
    chain = read_chain_config({"_class_name": "DDPMScheduler"}, "tiny")
    request = SamplingRequest(model="tiny", seed=1, steps=10, batch=1)
    plan = chain.plan(request)
    assert plan_sha256(plan) == hash_of(chain, request.model_copy(update={"seed": 2, "batch": 3}))
    other = plan.coefficients.clone()
    other[3, 2] += 2**-20
    hashes = {
        plan_sha256(plan),
        plan_sha256(plan, plan),
        plan_sha256(replace(plan, coefficients=other)),
        hash_of(chain, request.model_copy(update={"steps": 11})),
        hash_of(chain, request.model_copy(update={"eta": 0.5})),
    }
    assert len(hashes) == 5
