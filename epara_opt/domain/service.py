"""What is served: models, service-level objectives, and the demand for them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from epara_opt.errors import InputError, Violation


class Sensitivity(StrEnum):
    """EPARA's request level: what a service's users feel."""

    LATENCY = "latency"  # each request has a deadline
    FREQUENCY = "frequency"  # a stream needs frames per second, each frame on time


class Task(StrEnum):
    TEXT_GENERATION = "text-generation"
    IMAGE_SEGMENTATION = "image-segmentation"
    IMAGE_CLASSIFICATION = "image-classification"
    OBJECT_DETECTION = "object-detection"
    FEATURE_EXTRACTION = "feature-extraction"
    SPEECH_RECOGNITION = "automatic-speech-recognition"
    TENSOR = "tensor"  # any network, as a program of torch.export


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """Weights and what they compute."""

    source: str  # a folder with weights, relative to the executor's model root, or a hub id
    task: Task
    profile: str = ""  # name in the profile catalogue; empty means `source`
    layers: int | None = None  # equal blocks in a row, where it may be cut; None: it is never cut across servers
    activation_bytes: float | None = None  # per item (per token for generation) from one layer to the next

    def __post_init__(self) -> None:
        path = f"model.{self.source}"
        if (self.layers is None) != (self.activation_bytes is None):
            law = "expected layers and activation_kb together"
            raise InputError(Violation(path=path, law=law, value="one of them"))
        if self.layers is not None and self.layers < 2:
            raise InputError(Violation(path=f"{path}.layers", law="expected >= 2", value=str(self.layers)))
        if self.activation_bytes is not None and not (
            math.isfinite(self.activation_bytes) and self.activation_bytes >= 0
        ):
            law = "expected a finite number >= 0"
            value = str(self.activation_bytes)
            raise InputError(Violation(path=f"{path}.activation_kb", law=law, value=value))

    @property
    def profile_name(self) -> str:
        return self.profile or self.source


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestShape:
    """A typical request: what crosses the network and, for generation, how many tokens."""

    input_bytes: float = 0.0
    output_bytes: float = 0.0
    prompt_tokens: int = 0  # generation only
    output_tokens: int = 0  # generation only

    def __post_init__(self) -> None:
        for key, value in (("input_bytes", self.input_bytes), ("output_bytes", self.output_bytes)):
            if not (math.isfinite(value) and value >= 0):
                law = "expected a finite number >= 0"
                raise InputError(Violation(path=f"request.{key}", law=law, value=str(value)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A model with its objective. Exactly one of the SLO forms below is set.

    latency:    slo_ms, or (generation only) ttft_ms and tpot_ms
    frequency:  fps and frame_deadline_ms
    """

    name: str
    model: Model
    sensitivity: Sensitivity
    request: RequestShape
    weight: float = 1.0  # value of one request per second, or of one satisfied stream
    slo_ms: float | None = None
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    fps: float | None = None
    frame_deadline_ms: float | None = None
    declared_multi_device: bool | None = None  # what the operator says; None: derive it

    def __post_init__(self) -> None:
        found: list[Violation] = []
        path = f"services.{self.name}"

        def need(ok: bool, key: str, law: str, value: object) -> None:
            if not ok:
                found.append(Violation(path=f"{path}.{key}" if key else path, law=law, value=str(value)))

        for key in ("weight", "slo_ms", "ttft_ms", "tpot_ms", "fps", "frame_deadline_ms"):
            value = getattr(self, key)
            need(value is None or (math.isfinite(value) and value > 0), key, "expected a finite number > 0", value)
        law = f"expected at most {MOST_WEIGHT:g} and at least {1 / MOST_WEIGHT:g}: weights only compare services"
        in_reach = not math.isfinite(self.weight) or self.weight <= 0 or 1 / MOST_WEIGHT <= self.weight <= MOST_WEIGHT
        need(in_reach, "weight", law, self.weight)
        generates = self.model.task is Task.TEXT_GENERATION
        if self.sensitivity is Sensitivity.LATENCY:
            by_token = self.ttft_ms is not None or self.tpot_ms is not None
            need(
                (self.slo_ms is not None) != by_token, "", "expected slo_ms, or ttft_ms with tpot_ms", "both or neither"
            )
            need((self.ttft_ms is None) == (self.tpot_ms is None), "", "expected ttft_ms and tpot_ms together", "one")
            need(not by_token or generates, "ttft_ms", "expected only for text-generation", self.model.task.value)
            need(self.fps is None, "fps", "expected only for sensitivity: frequency", self.fps)
            need(
                self.frame_deadline_ms is None,
                "frame_deadline_ms",
                "expected only for sensitivity: frequency",
                self.frame_deadline_ms,
            )
        else:
            need(not generates, "sensitivity", "expected latency for text-generation", self.sensitivity.value)
            need(self.fps is not None, "fps", "expected for sensitivity: frequency", "nothing")
            need(
                self.frame_deadline_ms is not None,
                "frame_deadline_ms",
                "expected for sensitivity: frequency",
                "nothing",
            )
            for key in ("slo_ms", "ttft_ms", "tpot_ms"):
                need(getattr(self, key) is None, key, "expected only for sensitivity: latency", getattr(self, key))
        if generates:
            need(self.request.prompt_tokens >= 1, "request.prompt_tokens", "expected >= 1", self.request.prompt_tokens)
            need(self.request.output_tokens >= 1, "request.output_tokens", "expected >= 1", self.request.output_tokens)
        if found:
            raise InputError(found)

    @property
    def is_stream(self) -> bool:
        return self.sensitivity is Sensitivity.FREQUENCY

    @property
    def deadline_ms(self) -> float:
        """What response time plus network time must stay within: SLO, TTFT, or frame deadline."""
        return self.slo_ms or self.ttft_ms or self.frame_deadline_ms or 0.0  # one is set: checked at birth

    @property
    def events_per_work(self) -> float:
        """Requests (or frames) per second behind one unit of work: 1, or fps for a stream."""
        return self.fps if self.fps is not None else 1.0

    @property
    def work_unit(self) -> str:
        return "streams" if self.is_stream else "requests/s"


MOST_WEIGHT = 1e15  # and its inverse: products of larger ones with demand and prices leave the range of floats
MOST_OFFERED = 1e7  # planners take a billionth of a demand for nothing: of more than this that would be real work


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What is offered at one origin, in the service's unit of work (requests/s, or concurrent streams)."""

    service: str
    origin: str
    offered: float
    is_streams: bool = False  # how it was written; must agree with the service
    burstiness_cv: float = 1.0  # coefficient of variation of inter-arrival times; 1 = Poisson

    def __post_init__(self) -> None:
        path = f"demand.{self.service}@{self.origin}"
        if not (math.isfinite(self.offered) and self.offered >= 0):
            raise InputError(Violation(path=path, law="expected a finite number >= 0", value=str(self.offered)))
        if self.offered > MOST_OFFERED:
            law = f"expected at most {MOST_OFFERED:g} of a service at one server; is the unit right?"
            raise InputError(Violation(path=path, law=law, value=str(self.offered)))
        if not (math.isfinite(self.burstiness_cv) and self.burstiness_cv >= 0):
            raise InputError(
                Violation(
                    path=f"{path}.burstiness_cv", law="expected a finite number >= 0", value=str(self.burstiness_cv)
                )
            )
