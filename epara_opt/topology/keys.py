"""Every key of a topology file, with its type, law and meaning. Reader and JSON Schema both obey this table."""

from __future__ import annotations

from dataclasses import fields
from enum import StrEnum
from typing import get_type_hints

from epara_opt.domain.category import Scale
from epara_opt.domain.service import Sensitivity, Task
from epara_opt.domain.topology import DeviceKind, ServerKind
from epara_opt.problem import PlanningRules
from epara_opt.topology.kinds import Choice, Flag, Key, ListOf, MapOf, Number, OneOrMany, Record, Text

VERSION = 1

POSITIVE = Number(above=0)
NOT_NEGATIVE = Number(least=0)
FREE_TEXT = Text()
NAME = Text(
    pattern=r"[A-Za-z0-9][A-Za-z0-9._-]*",
    law="expected a name of letters, digits, '.', '_' and '-', starting with a letter or digit",
)
ADDRESS = Text(
    pattern=r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):(6553[0-5]|655[0-2]\d|65[0-4]\d{2}|6[0-4]\d{3}|[1-5]\d{4}|[1-9]\d{0,3})",
    law="expected host:port with a port in 1 .. 65535",
)


def choice(words: type[StrEnum]) -> Choice:
    return Choice(options=tuple(word.value for word in words))


def _rules() -> Record:
    """Keys of `rules` follow PlanningRules field by field, so that a new rule needs no second entry here."""
    hints = get_type_hints(PlanningRules)
    kinds = {
        int: Number(integer=True),
        int | None: Number(integer=True),
        float: Number(),
        float | None: Number(),
        bool: Flag(),
    }
    about = {
        f.name: "planning rule, no limit unless given" if f.default is None else f"planning rule, default {f.default}"
        for f in fields(PlanningRules)
    }
    return Record(keys={name: Key(kind=kinds[hints[name]], about=text) for name, text in about.items()})


DEVICE_TYPE = Record(
    keys={
        "memory_gib": Key(
            kind=POSITIVE, required=True, about="memory of one device in GiB, runtime reserve already removed"
        ),
        "kind": Key(kind=choice(DeviceKind), required=True, about="what the device is"),
        "parts": Key(
            kind=Number(integer=True, least=1, most=100),
            about="a device is one of so many equal parts of a GPU, default 1",
        ),
    }
)

SERVER = Record(
    keys={
        "name": Key(kind=NAME, required=True, about="unique name of the server"),
        "kind": Key(kind=choice(ServerKind), required=True, about="class of machine"),
        "address": Key(kind=ADDRESS, about="host:port of its executor; needed to apply plans, not to make them"),
        "devices": Key(
            kind=ListOf(
                item=Record(
                    keys={
                        "type": Key(kind=NAME, required=True, about="a name from device_types"),
                        "count": Key(
                            kind=Number(integer=True, least=1), required=True, about="identical devices of this type"
                        ),
                    }
                )
            ),
            about="devices to place models on; none for a mere entry point of demand",
        ),
        "location": Key(
            kind=Record(
                keys={
                    "lat": Key(kind=Number(least=-90, most=90), required=True, about="degrees north"),
                    "lon": Key(kind=Number(least=-180, most=180), required=True, about="degrees east"),
                }
            ),
            about="where it stands, for maps",
        ),
    }
)

LINK = Record(
    keys={
        "between": Key(kind=ListOf(item=NAME, exactly=2), required=True, about="the two servers it joins"),
        "rtt_ms": Key(kind=NOT_NEGATIVE, required=True, about="round-trip time in ms"),
        "bandwidth_mbps": Key(
            kind=POSITIVE, required=True, about="bandwidth in megabits per second, in each direction"
        ),
    }
)

SERVICE = Record(
    keys={
        "name": Key(kind=NAME, required=True, about="unique name; clients ask for it as the model name"),
        "model": Key(
            kind=Record(
                keys={
                    "source": Key(
                        kind=FREE_TEXT, required=True, about="folder under the model root, or hub id; safetensors only"
                    ),
                    "task": Key(kind=choice(Task), required=True, about="what the model computes"),
                    "profile": Key(kind=FREE_TEXT, about="its name in the profile catalogue; default: source"),
                    "layers": Key(
                        kind=Number(integer=True, least=2), about="equal layers in a row, where it may be cut"
                    ),
                    "activation_kb": Key(
                        kind=NOT_NEGATIVE,
                        about="kB (1,000 bytes) from one layer to the next, per item, or per token (text-generation)",
                    ),
                }
            ),
            required=True,
            about="weights and what they compute",
        ),
        "sensitivity": Key(
            kind=choice(Sensitivity),
            required=True,
            about="latency: each request has a deadline; frequency: streams of frames",
        ),
        "scale": Key(
            kind=choice(Scale), about="optional claim; it is derived, and a claim that contradicts it is an error"
        ),
        "slo_ms": Key(kind=POSITIVE, about="deadline of a whole request in ms (latency)"),
        "ttft_ms": Key(kind=POSITIVE, about="deadline of the first token in ms (latency, text-generation)"),
        "tpot_ms": Key(kind=POSITIVE, about="time per output token in ms (latency, text-generation)"),
        "fps": Key(kind=POSITIVE, about="frames per second of one stream (frequency)"),
        "frame_deadline_ms": Key(kind=POSITIVE, about="deadline of each frame in ms (frequency)"),
        "request": Key(
            kind=Record(
                keys={
                    "input_kb": Key(kind=NOT_NEGATIVE, about="size of one request or frame in kB (1,000 bytes)"),
                    "output_kb": Key(kind=NOT_NEGATIVE, about="size of one answer in kB (1,000 bytes)"),
                    "prompt_tokens": Key(
                        kind=Number(integer=True, least=1), about="tokens of a typical prompt (text-generation)"
                    ),
                    "output_tokens": Key(
                        kind=Number(integer=True, least=1), about="tokens of a typical answer (text-generation)"
                    ),
                }
            ),
            about="what a typical request looks like",
        ),
        "weight": Key(kind=POSITIVE, about="value of one request per second, or of one satisfied stream; default 1"),
    },
    one_of=(("slo_ms",), ("ttft_ms", "tpot_ms"), ("fps", "frame_deadline_ms")),
)

DEMAND = Record(
    keys={
        "service": Key(kind=NAME, required=True, about="a name from services"),
        "origin": Key(kind=NAME, required=True, about="the server where it enters the edge"),
        "rate_per_s": Key(kind=NOT_NEGATIVE, about="requests per second (latency-sensitive services)"),
        "streams": Key(kind=NOT_NEGATIVE, about="concurrent streams (frequency-sensitive services)"),
        "burstiness_cv": Key(
            kind=NOT_NEGATIVE, about="coefficient of variation of inter-arrival times; default 1 (Poisson)"
        ),
    },
    one_of=(("rate_per_s",), ("streams",)),
)

TOPOLOGY = Record(
    keys={
        "version": Key(
            kind=Number(integer=True, least=VERSION, most=VERSION), required=True, about="format of this file"
        ),
        "name": Key(kind=FREE_TEXT, required=True, about="name of the edge"),
        "include": Key(kind=OneOrMany(item=FREE_TEXT), about="files read before this one, relative to it"),
        "device_types": Key(kind=MapOf(name=NAME, value=DEVICE_TYPE), required=True, about="kinds of devices by name"),
        "servers": Key(kind=ListOf(item=SERVER, named=True), required=True, about="machines of the edge"),
        "links": Key(kind=ListOf(item=LINK), about="links between servers"),
        "services": Key(kind=ListOf(item=SERVICE, named=True), required=True, about="models with their objectives"),
        "demand": Key(kind=ListOf(item=DEMAND), about="what is offered where; the live cycle replaces it by forecasts"),
        "profiles": Key(
            kind=OneOrMany(item=FREE_TEXT), about="profile CSV files, relative to the file that names them"
        ),
        "rules": Key(kind=_rules(), about="planning rules"),
    }
)
