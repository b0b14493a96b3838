"""Everything that crosses the line between the gateway and the workers: names, Redis keys and typed messages.

The gateway imports this package and nothing else of the worker, so it loads no torch.
"""

from worker.contract.keys import (
    CATALOGUE_KEY,
    CATALOGUE_TTL_S,
    chain_key,
    events_channel,
    progress_key,
    worker_key,
)
from worker.contract.message import Message
from worker.contract.names import (
    FUNCTION_NAME,
    KARRAS_SAMPLERS,
    MAX_FRAMES,
    MAX_JOB_FRAMES,
    MAX_PROMPT_CHARACTERS,
    MAX_SEED,
    MAX_SIDE_PX,
    MAX_STEPS,
    MODEL_NAME_PATTERN,
    PROMPT_GUIDANCE,
    QUEUE_NAME,
    VERSION_PATTERN,
    ImageFormat,
    SamplerName,
    Spacing,
    Takes,
)
from worker.contract.outcomes import ImageRecord, JobError, JobOutcome, Preview, PreviewSnapshot, ProgressSnapshot
from worker.contract.requests import Condition, Guidance, LabelCondition, NoCondition, SamplingRequest, TextCondition
from worker.contract.status import (
    Distribution,
    EngineCounters,
    MemoryUse,
    ModelInfo,
    QueueCounters,
    VersionInfo,
    WorkerStatus,
)

__all__ = [
    "CATALOGUE_KEY",
    "CATALOGUE_TTL_S",
    "FUNCTION_NAME",
    "KARRAS_SAMPLERS",
    "MAX_FRAMES",
    "MAX_JOB_FRAMES",
    "MAX_PROMPT_CHARACTERS",
    "MAX_SEED",
    "MAX_SIDE_PX",
    "MAX_STEPS",
    "MODEL_NAME_PATTERN",
    "PROMPT_GUIDANCE",
    "QUEUE_NAME",
    "VERSION_PATTERN",
    "Condition",
    "Distribution",
    "EngineCounters",
    "Guidance",
    "ImageFormat",
    "ImageRecord",
    "JobError",
    "JobOutcome",
    "LabelCondition",
    "MemoryUse",
    "Message",
    "ModelInfo",
    "NoCondition",
    "Preview",
    "PreviewSnapshot",
    "ProgressSnapshot",
    "QueueCounters",
    "SamplerName",
    "SamplingRequest",
    "Spacing",
    "Takes",
    "TextCondition",
    "VersionInfo",
    "WorkerStatus",
    "chain_key",
    "events_channel",
    "progress_key",
    "worker_key",
]
