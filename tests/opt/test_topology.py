"""Reading topology YAML: every way of getting it wrong has its message; every right way its objects."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from epara_opt.domain.service import Sensitivity, Task
from epara_opt.domain.topology import DeviceKind, ServerKind
from epara_opt.errors import InputError
from epara_opt.problem import PlanningRules, build_problem
from epara_opt.topology import COLUMNS, LoadedTopology, load_topology, topology_schema
from epara_opt.topology.keys import TOPOLOGY
from epara_opt.topology.kinds import Kind, ListOf, MapOf, Record

PROFILES = """\
model,device,tp,pp,batch,frames,latency_ms,interval_ms,prefill_ms,prompt_tokens,decode_step_ms,memory_gib,load_s,source
seg,gpu,1,1,1,1,10,,,,,1,2,measured
seg,gpu,1,1,8,1,40,,,,,2,2,measured
llm,gpu,1,1,1,1,,,20,16,,2,5,measured
llm,gpu,1,1,1,1,,,60,128,,2,5,measured
llm,gpu,1,1,1,1,,,,,8,2,5,measured
llm,gpu,1,1,4,1,,,,,12,3,5,measured
"""

EDGE = """\
version: 1
name: two-shops
device_types:
  gpu: {memory_gib: 8, kind: gpu}
servers:
  - {name: shop-a, kind: edge-server, address: "127.0.0.1:7101", devices: [{type: gpu, count: 2}]}
  - {name: shop-b, kind: embedded, devices: [{type: gpu, count: 1}], location: {lat: -37.8, lon: 144.9}}
links:
  - {between: [shop-a, shop-b], rtt_ms: 4, bandwidth_mbps: 200}
services:
  - name: chat
    model: {source: models/llm, task: text-generation, profile: llm}
    sensitivity: latency
    slo_ms: 2000
    request: {input_kb: 4, output_kb: 2, prompt_tokens: 64, output_tokens: 32}
    weight: 2.5
  - name: lanes
    model: {source: seg, task: image-segmentation}
    sensitivity: frequency
    fps: 20
    frame_deadline_ms: 100
    request: {input_kb: 60}
demand:
  - {service: chat, origin: shop-a, rate_per_s: 3, burstiness_cv: 1.2}
  - {service: lanes, origin: shop-b, streams: 2}
profiles: profiles.csv
"""

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes edge.yaml beside profiles.csv, in a directory that messages need not name."""
    monkeypatch.chdir(tmp_path)
    Path("profiles.csv").write_text(PROFILES)

    def put(text: str) -> Path:
        Path("edge.yaml").write_text(text)
        return Path("edge.yaml")

    return put


@pytest.fixture
def edit(write: Write) -> Callable[[str, str], Path]:
    """The good edge with one piece of its text replaced."""

    def put(old: str, new: str) -> Path:
        assert old in EDGE
        return write(EDGE.replace(old, new, 1))

    return put


Edit = Callable[[str, str], Path]


def errors(path: Path) -> list[str]:
    with pytest.raises(InputError) as caught:
        load_topology(path)
    return [str(v) for v in caught.value.violations]


# --- what is right ---------------------------------------------------------------------------------------------


def test_a_good_file_becomes_the_domain(write: Write) -> None:
    loaded = load_topology(write(EDGE))
    edge = loaded.topology
    assert edge.name == "two-shops"
    assert edge.device_types["gpu"].memory_bytes == 8 * 1024**3
    assert edge.device_types["gpu"].kind is DeviceKind.GPU
    assert edge.servers["shop-a"].address == "127.0.0.1:7101"
    assert edge.servers["shop-b"].kind is ServerKind.EMBEDDED
    assert edge.servers["shop-b"].location is not None
    assert edge.links[0].bandwidth_bytes_per_s == 200e6 / 8
    chat = edge.services["chat"]
    assert (chat.slo_ms, chat.weight, chat.model.task) == (2000.0, 2.5, Task.TEXT_GENERATION)
    assert (chat.request.input_bytes, chat.request.prompt_tokens) == (4000.0, 64)
    lanes = edge.services["lanes"]
    assert (lanes.sensitivity, lanes.fps, lanes.frame_deadline_ms) == (Sensitivity.FREQUENCY, 20.0, 100.0)
    assert [(d.service, d.offered, d.is_streams) for d in edge.demand] == [("chat", 3.0, False), ("lanes", 2.0, True)]
    assert set(loaded.catalogue.profiles) == {("seg", "gpu"), ("llm", "gpu")}
    assert loaded.files == (Path("edge.yaml"), Path("profiles.csv"))
    assert loaded.profile_files == (Path("profiles.csv"),)
    assert loaded.rules == PlanningRules()


def test_a_good_file_can_be_planned(write: Write) -> None:
    loaded = load_topology(write(EDGE))
    problem = build_problem(loaded.topology, loaded.catalogue, rules=loaded.rules)
    assert len(problem.edges) == 4
    assert not any(problem.misfits.values())


def test_rules_reach_the_planning_rules(write: Write) -> None:
    loaded = load_topology(
        write(
            EDGE
            + "rules: {max_tenants: 2, horizon_s: 10.5, max_utilization: 0.7, max_moves: 3, on_time_target: 0.95,\n"
            + "  make_before_break: true}\n"
        )
    )
    expected = PlanningRules(
        max_tenants=2, horizon_s=10.5, max_utilization=0.7, max_moves=3, on_time_target=0.95, make_before_break=True
    )
    assert loaded.rules == expected


@pytest.mark.parametrize("demand", ["", "demand:\n", "demand: []\n"])
def test_no_demand_is_allowed_and_plans_nothing(write: Write, demand: str) -> None:
    start, end = EDGE.index("demand:"), EDGE.index("profiles:")
    loaded = load_topology(write(EDGE[:start] + demand + EDGE[end:]))
    assert loaded.topology.demand == ()
    assert build_problem(loaded.topology, loaded.catalogue).demand == ()


def test_anchors_and_merge_keys_are_resolved(edit: Edit) -> None:
    path = edit(
        "  - {service: chat, origin: shop-a, rate_per_s: 3, burstiness_cv: 1.2}",
        "  - &base {service: chat, origin: shop-a, rate_per_s: 3, burstiness_cv: 1.2}\n  - {<<: *base, origin: shop-b}",
    )
    assert [(d.origin, d.offered, d.burstiness_cv) for d in load_topology(path).topology.demand[:2]] == [
        ("shop-a", 3.0, 1.2),
        ("shop-b", 3.0, 1.2),
    ]


def test_exponents_with_a_point_are_numbers(edit: Edit) -> None:
    assert (
        load_topology(edit("bandwidth_mbps: 200", "bandwidth_mbps: 2.0e+2")).topology.links[0]
        == (load_topology(edit("bandwidth_mbps: 200", "bandwidth_mbps: 2.0e2")).topology.links[0])
    )


def test_quoted_words_of_yaml_are_plain_names(write: Write) -> None:
    loaded = load_topology(write(EDGE.replace("shop-a", '"no"')))
    assert "no" in loaded.topology.servers


def test_profiles_need_not_exist_before_they_are_measured(edit: Edit) -> None:
    loaded = load_topology(edit("profiles: profiles.csv", "profiles: later.csv"), with_profiles=False)
    assert loaded.catalogue.rows == ()


# --- one thing wrong, one message ------------------------------------------------------------------------------

CASES = {
    "unknown key": (
        "kind: embedded, devices:",
        "kind: embedded, device:",
        "edge.yaml:7: servers.shop-b.device: unknown key; did you mean devices?",
    ),
    "unknown key like no other": (
        "version: 1",
        "version: 1\nzebra: 1",
        "edge.yaml:2: zebra: unknown key; known are version, name, include, device_types, servers, links, services, "
        "demand, profiles, rules",
    ),
    "missing unit": (
        "memory_gib: 8",
        "memory: 8",
        "edge.yaml:4: device_types.gpu.memory: unknown key, its unit is missing; did you mean memory_gib?",
    ),
    "wrong unit": (
        "memory_gib: 8",
        "memory_gb: 8",
        "edge.yaml:4: device_types.gpu.memory_gb: unknown key; did you mean memory_gib?",
    ),
    "unit in the value": (
        "rtt_ms: 4",
        "rtt_ms: 4 ms",
        "edge.yaml:9: links[0].rtt_ms: expected a number; write 4, the unit is in the key rtt_ms, got 4 ms",
    ),
    "1e9 is text in YAML": (
        "bandwidth_mbps: 200",
        "bandwidth_mbps: 1e9",
        "edge.yaml:9: links[0].bandwidth_mbps: expected a number; write 1.0e+9, got 1e9",
    ),
    "base 60": (
        "rtt_ms: 4",
        "rtt_ms: 12:30",
        "edge.yaml:9: links[0].rtt_ms: expected a number (YAML reads base 60), got 12:30",
    ),
    "hexadecimal": (
        "count: 2",
        "count: 0x10",
        "edge.yaml:6: servers.shop-a.devices[0].count: expected a whole number in decimal (YAML reads base 16, 8 or 2)"
        ", got 0x10",
    ),
    "octal": (
        "count: 2",
        "count: 010",
        "edge.yaml:6: servers.shop-a.devices[0].count: expected a whole number in decimal (YAML reads base 16, 8 or 2)"
        ", got 010",
    ),
    "decimal comma": (
        "weight: 2.5",
        "weight: 2,5",
        "edge.yaml:16: services.chat.weight: expected a number with a decimal point; write 2.5 or 25, got 2,5",
    ),
    "underscores": (
        "bandwidth_mbps: 200",
        "bandwidth_mbps: 10_000",
        "edge.yaml:9: links[0].bandwidth_mbps: expected a number without _; write 10000, got 10_000",
    ),
    "quoted number": (
        "slo_ms: 2000",
        'slo_ms: "2000"',
        'edge.yaml:14: services.chat.slo_ms: expected a number without quotes, got "2000"',
    ),
    "infinity": (
        "slo_ms: 2000",
        "slo_ms: .inf",
        "edge.yaml:14: services.chat.slo_ms: expected a number that is finite, got .inf",
    ),
    "not a number": (
        "weight: 2.5",
        "weight: .nan",
        "edge.yaml:16: services.chat.weight: expected a number that is finite, got .nan",
    ),
    "too large for a float": (
        "weight: 2.5",
        "weight: 1.0e+999",
        "edge.yaml:16: services.chat.weight: expected a number that is finite, got 1.0e+999",
    ),
    "negative": ("rtt_ms: 4", "rtt_ms: -4", "edge.yaml:9: links[0].rtt_ms: expected >= 0, got -4"),
    "zero memory": ("memory_gib: 8", "memory_gib: 0", "edge.yaml:4: device_types.gpu.memory_gib: expected > 0, got 0"),
    "zero weight": ("weight: 2.5", "weight: 0", "edge.yaml:16: services.chat.weight: expected > 0, got 0"),
    "half a device": (
        "count: 2",
        "count: 1.5",
        "edge.yaml:6: servers.shop-a.devices[0].count: expected a whole number, got 1.5",
    ),
    "zero devices in a pool": (
        "count: 2",
        "count: 0",
        "edge.yaml:6: servers.shop-a.devices[0].count: expected >= 1, got 0",
    ),
    "nothing where a number is due": (
        "slo_ms: 2000",
        "slo_ms:",
        "edge.yaml:14: services.chat.slo_ms: expected a number, got nothing",
    ),
    "true where a number is due": (
        "slo_ms: 2000",
        "slo_ms: yes",
        "edge.yaml:14: services.chat.slo_ms: expected a number, got yes",
    ),
    "a list where a number is due": (
        "slo_ms: 2000",
        "slo_ms: [2000]",
        "edge.yaml:14: services.chat.slo_ms: expected a number, got a list",
    ),
    "no as a name": (
        "name: two-shops",
        "name: no",
        'edge.yaml:2: name: expected text; quote it: "no", got no (YAML reads a truth value)',
    ),
    "a number as a name": (
        "name: two-shops",
        "name: 12",
        'edge.yaml:2: name: expected text; quote it: "12", got 12 (YAML reads a number)',
    ),
    "a date as a name": (
        "name: two-shops",
        "name: 2026-11-23",
        'edge.yaml:2: name: expected text; quote it: "2026-11-23", got 2026-11-23 (YAML reads a date)',
    ),
    "no name": ("name: two-shops", "name:", "edge.yaml:2: name: expected text, got nothing"),
    "blank name": (
        "name: two-shops",
        'name: " "',
        'edge.yaml:2: name: expected text that is not blank, got " "',
    ),
    "a name with a slash": (
        "  - name: lanes",
        "  - name: lanes/left",
        "edge.yaml:17: services.lanes/left.name: expected a name of letters, digits, '.', '_' and '-', starting with a "
        "letter or digit, got lanes/left\n"
        "edge.yaml:25: demand[1].service: expected a name from services, got lanes",
    ),
    "address without port": (
        '"127.0.0.1:7101"',
        '"127.0.0.1"',
        'edge.yaml:6: servers.shop-a.address: expected host:port with a port in 1 .. 65535, got "127.0.0.1"',
    ),
    "port out of range": (
        '"127.0.0.1:7101"',
        '"127.0.0.1:71010"',
        'edge.yaml:6: servers.shop-a.address: expected host:port with a port in 1 .. 65535, got "127.0.0.1:71010"',
    ),
    "misspelt kind": (
        "kind: edge-server",
        "kind: edge_server",
        "edge.yaml:6: servers.shop-a.kind: expected one of edge-server, embedded, microcomputer, cloud; did you mean "
        "edge-server?, got edge_server",
    ),
    "unknown task": (
        "task: text-generation",
        "task: chat",
        "edge.yaml:12: services.chat.model.task: expected one of text-generation, image-segmentation, "
        "image-classification, object-detection, feature-extraction, automatic-speech-recognition, tensor, got chat",
    ),
    "south of the pole": (
        "lat: -37.8",
        "lat: -137.8",
        "edge.yaml:7: servers.shop-b.location.lat: expected >= -90, got -137.8",
    ),
    "duplicate key": (
        "slo_ms: 2000",
        "slo_ms: 2000\n    slo_ms: 3000",
        "edge.yaml:15: services.chat.slo_ms: expected each key once, first at edge.yaml:14",
    ),
    "duplicate server": (
        "name: shop-b",
        "name: shop-a",
        "edge.yaml:7: servers.shop-a: expected each name once, first at edge.yaml:6\n"
        "edge.yaml:9: links[0].between: expected names of servers, got shop-b\n"
        "edge.yaml:25: demand[1].origin: expected the name of a server, got shop-b",
    ),
    "duplicate service": (
        "name: lanes",
        "name: chat",
        "edge.yaml:17: services.chat: expected each name once, first at edge.yaml:11\n"
        "edge.yaml:25: demand[1].service: expected a name from services, got lanes",
    ),
    "duplicate device type": (
        "  gpu: {memory_gib: 8, kind: gpu}",
        "  gpu: {memory_gib: 8, kind: gpu}\n  gpu: {memory_gib: 9, kind: gpu}",
        "edge.yaml:5: device_types.gpu: expected each key once, first at edge.yaml:4",
    ),
    "missing key": (
        ", bandwidth_mbps: 200",
        "",
        "edge.yaml:9: links[0].bandwidth_mbps: expected a number, got nothing",
    ),
    "missing version": ("version: 1\n", "", "edge.yaml:1: version: expected a whole number, got nothing"),
    "a version of the future": ("version: 1", "version: 2", "edge.yaml:1: version: expected <= 1, got 2"),
    "link to nowhere": (
        "between: [shop-a, shop-b]",
        "between: [shop-a, shop-c]",
        "edge.yaml:9: links[0].between: expected names of servers, got shop-c",
    ),
    "link to itself": (
        "between: [shop-a, shop-b]",
        "between: [shop-a, shop-a]",
        "edge.yaml:9: links[0].between: expected two different servers, got shop-a",
    ),
    "link with one end": (
        "between: [shop-a, shop-b]",
        "between: [shop-a]",
        "edge.yaml:9: links[0].between: expected exactly 2, got 1",
    ),
    "unknown device type": (
        "[{type: gpu, count: 1}]",
        "[{type: tpu, count: 1}]",
        "edge.yaml:7: servers.shop-b.devices[0].type: expected a name from device_types, got tpu",
    ),
    "demand for nothing known": (
        "service: lanes",
        "service: lane",
        "edge.yaml:25: demand[1].service: expected a name from services, got lane",
    ),
    "demand from nowhere": (
        "origin: shop-b",
        "origin: shop-z",
        "edge.yaml:25: demand[1].origin: expected the name of a server, got shop-z",
    ),
    "demand twice": (
        "streams: 2}",
        "streams: 2}\n  - {service: lanes, origin: shop-b, streams: 1}",
        "edge.yaml:26: demand[2]: expected one entry per service and origin, got lanes at shop-b",
    ),
    "demand in both units": (
        "streams: 2}",
        "streams: 2, rate_per_s: 1}",
        "edge.yaml:25: demand[1]: expected exactly one of rate_per_s, streams, got rate_per_s and streams",
    ),
    "demand in no unit": (
        ", streams: 2}",
        "}",
        "edge.yaml:25: demand[1]: expected exactly one of rate_per_s, streams, got none",
    ),
    "requests asked of a stream": (
        "streams: 2}",
        "rate_per_s: 2}",
        "edge.yaml:25: demand[1]: expected streams for the frequency-sensitive lanes, got the other",
    ),
    "two objectives": (
        "slo_ms: 2000",
        "slo_ms: 2000\n    fps: 3\n    frame_deadline_ms: 9",
        "edge.yaml:11: services.chat: expected exactly one of slo_ms, ttft_ms with tpot_ms, fps with "
        "frame_deadline_ms, got slo_ms and fps and frame_deadline_ms",
    ),
    "half an objective": (
        "slo_ms: 2000",
        "ttft_ms: 2000",
        "edge.yaml:11: services.chat: expected exactly one of slo_ms, ttft_ms with tpot_ms, fps with "
        "frame_deadline_ms, got ttft_ms",
    ),
    "generation without tokens": (
        ", prompt_tokens: 64, output_tokens: 32",
        ", prompt_tokens: 64",
        "edge.yaml:15: services.chat.request.output_tokens: expected >= 1, got 0",
    ),
    "streams of text": (
        "task: image-segmentation",
        "task: text-generation",
        "edge.yaml:19: services.lanes.sensitivity: expected latency for text-generation, got frequency\n"
        "edge.yaml:22: services.lanes.request.prompt_tokens: expected >= 1, got 0\n"
        "edge.yaml:22: services.lanes.request.output_tokens: expected >= 1, got 0",
    ),
    "zero devices anywhere": (
        "servers:\n"
        '  - {name: shop-a, kind: edge-server, address: "127.0.0.1:7101", devices: [{type: gpu, count: 2}]}\n'
        "  - {name: shop-b, kind: embedded, devices: [{type: gpu, count: 1}], location: {lat: -37.8, lon: 144.9}}\n",
        "servers:\n  - {name: shop-a, kind: edge-server}\n  - {name: shop-b, kind: embedded, devices: []}\n",
        "edge.yaml:5: servers: expected at least one device in the whole edge, got zero devices",
    ),
    "missing profile file": (
        "profiles: profiles.csv",
        "profiles: [profiles.csv, gone.csv]",
        "edge.yaml:26: profiles[1]: expected a profile file that exists, got gone.csv",
    ),
    "a device type with a slash": (
        "  gpu: {memory_gib: 8, kind: gpu}",
        "  gpu: {memory_gib: 8, kind: gpu}\n  gpu/2: {memory_gib: 8, kind: gpu}",
        "edge.yaml:5: device_types.gpu/2: expected a name of letters, digits, '.', '_' and '-', starting with a letter "
        "or digit, got gpu/2",
    ),
    "unknown rule": (
        "profiles: profiles.csv",
        "profiles: profiles.csv\nrules: {max_tenant: 2}",
        "edge.yaml:27: rules.max_tenant: unknown key; did you mean max_tenants?",
    ),
    "a rule out of range": (
        "profiles: profiles.csv",
        "profiles: profiles.csv\nrules:\n  max_utilization: 1.5",
        "edge.yaml:28: rules.max_utilization: expected in (0, 1], got 1.5",
    ),
    "a claim that contradicts": (
        "sensitivity: latency",
        "sensitivity: latency\n    scale: multi-device",
        "edge.yaml:14: services.chat.scale: expected single-device (one gpu holds it (3.00 of 8.00 GiB), answers in "
        "570 of 2000 ms, serves 7.5 requests/s), or nothing, got multi-device",
    ),
    "profile with a missing point": (
        "prompt_tokens: 64",
        "prompt_tokens: 512",
        "edge.yaml:15: services.chat.request.prompt_tokens: profile with a missing point: llm on gpu tp1 pp1 is "
        "measured at 16 .. 128 prompt tokens (profiles.csv:4), got 512",
    ),
    "latency rows for generation": (
        "profile: llm",
        "profile: seg",
        "edge.yaml:12: services.chat.model.task: expected prefill and decode rows for seg on gpu tp1 pp1 "
        "(profiles.csv:2), got text-generation",
    ),
    "a tab": (
        "  gpu: {memory_gib",
        "\tgpu: {memory_gib",
        "edge.yaml:4: expected spaces: YAML allows no tab in indentation",
    ),
    "servers as a mapping": (
        'servers:\n  - {name: shop-a, kind: edge-server, address: "127.0.0.1:7101", devices: [{type: gpu, count: 2}]}\n'
        "  - {name: shop-b,",
        "servers:\n  shop-b: {",
        "edge.yaml:6: servers: expected a list, got a mapping",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_each_fault_is_named_with_line_path_law_and_value(edit: Edit, case: str) -> None:
    old, new, message = CASES[case]
    assert errors(edit(old, new)) == message.split("\n")


# --- many things wrong, or in several files --------------------------------------------------------------------


def test_everything_wrong_is_told_at_once_in_the_order_of_the_file(write: Write) -> None:
    text = (
        EDGE.replace("memory_gib: 8", "memory: 8")
        .replace("rtt_ms: 4", "rtt_ms: -4")
        .replace("slo_ms: 2000", "slo_ms: 1e3")
    )
    text = text.replace("origin: shop-a", "origin: shop-q")
    Path("profiles.csv").write_text(PROFILES.replace("seg,gpu,1,1,1,1,10", "seg,gpu,1,1,one,1,-10"))
    assert errors(write(text)) == [
        "edge.yaml:4: device_types.gpu.memory: unknown key, its unit is missing; did you mean memory_gib?",
        "edge.yaml:9: links[0].rtt_ms: expected >= 0, got -4",
        "edge.yaml:14: services.chat.slo_ms: expected a number; write 1.0e+3, got 1e3",
        "edge.yaml:24: demand[0].origin: expected the name of a server, got shop-q",
        "profiles.csv:2: batch: expected a whole number, got one",
        "profiles.csv:2: latency_ms: expected a finite number >= 0, got -10",
    ]


def test_what_depends_on_something_broken_is_not_told_twice(edit: Edit) -> None:
    assert errors(edit("kind: embedded", "kind: embedded, port: 1")) == [
        "edge.yaml:7: servers.shop-b.port: unknown key; known are name, kind, address, devices, location"
    ]


def test_indexes_are_those_of_the_file_even_after_a_broken_entry(write: Write) -> None:
    text = EDGE.replace("burstiness_cv: 1.2", "burstiness_cv: -1").replace("origin: shop-b", "origin: shop-z")
    assert errors(write(text)) == [
        "edge.yaml:24: demand[0].burstiness_cv: expected >= 0, got -1",
        "edge.yaml:25: demand[1].origin: expected the name of a server, got shop-z",
    ]


def test_an_origin_without_a_path_to_any_device_is_told(write: Write) -> None:
    text = EDGE.replace("  - {between", "  # - {between").replace(
        "links:", "  - {name: kiosk, kind: microcomputer}\nlinks:"
    )
    assert errors(write(text.replace("origin: shop-b", "origin: kiosk"))) == [
        "edge.yaml:26: demand[1].origin: expected a path to some server with devices, got kiosk"
    ]


def test_no_servers_at_all_is_told(write: Write) -> None:
    start, end = EDGE.index("servers:"), EDGE.index("links:")
    text = EDGE[:start] + "servers: []\n" + EDGE[end : EDGE.index("links:") + 7] + EDGE[EDGE.index("services:") :]
    found = errors(write(text))
    assert "edge.yaml:5: servers: expected at least one server, got none" in found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "edge.yaml: expected a topology, the file is empty"),
        ("# only a comment\n", "edge.yaml: expected a topology, the file is empty"),
        ("- a\n- b\n", "edge.yaml:1: expected a mapping with version, name, servers, ..., got a list"),
        ("hello\n", "edge.yaml:1: expected a mapping with version, name, servers, ..., got hello"),
    ],
)
def test_a_file_that_is_no_mapping_is_told(write: Write, text: str, message: str) -> None:
    assert errors(write(text)) == [message]


def test_broken_yaml_is_told_with_its_line(edit: Edit) -> None:
    (message,) = errors(edit("between: [shop-a, shop-b]", "between: [shop-a, shop-b"))
    assert message.startswith("edge.yaml:9: expected YAML: ")


def test_a_file_that_is_not_utf8_is_told(write: Write) -> None:
    path = write(EDGE)
    path.write_bytes(EDGE.replace("two-shops", "caf\xe9").encode("latin-1"))
    (message,) = errors(path)
    assert message.startswith("edge.yaml: expected YAML in UTF-8: ")


def test_a_file_that_is_not_there_is_told() -> None:
    with pytest.raises(InputError, match=r"nowhere\.yaml: expected a file that can be read: No such file or directory"):
        load_topology("nowhere.yaml")


# --- include ---------------------------------------------------------------------------------------------------

BASE = """\
device_types:
  gpu: {memory_gib: 8, kind: gpu}
servers:
  - {name: shop-a, kind: edge-server, devices: [{type: gpu, count: 2}]}
profiles: ../profiles.csv
"""


@pytest.fixture
def split(write: Write) -> Path:
    """edge.yaml with its device types, one server and the profiles in parts/base.yaml."""
    Path("parts").mkdir()
    Path("parts/base.yaml").write_text(BASE)
    text = EDGE.replace("name: two-shops\n", "name: two-shops\ninclude: parts/base.yaml\n")
    text = text.replace("device_types:\n  gpu: {memory_gib: 8, kind: gpu}\n", "")
    text = text.replace(
        '  - {name: shop-a, kind: edge-server, address: "127.0.0.1:7101", devices: [{type: gpu, count: 2}]}\n', ""
    )
    return write(text.replace("profiles: profiles.csv\n", ""))


def test_includes_concatenate_lists_and_merge_mappings(split: Path) -> None:
    loaded = load_topology(split)
    assert list(loaded.topology.servers) == ["shop-a", "shop-b"]
    assert [str(f) for f in loaded.files] == ["edge.yaml", "parts/base.yaml", "parts/../profiles.csv"]


def test_how_a_topology_is_split_over_files_does_not_change_its_digest(split: Path) -> None:
    parted = load_topology(split).topology.digest
    whole = split.with_name("whole.yaml")
    whole.write_text(EDGE.replace(', address: "127.0.0.1:7101"', ""))
    assert load_topology(whole).topology.digest == parted


def test_a_fault_in_an_included_file_names_that_file(split: Path) -> None:
    Path("parts/base.yaml").write_text(BASE.replace("count: 2", "count: two"))
    assert errors(split) == ["parts/base.yaml:4: servers.shop-a.devices[0].count: expected a whole number, got two"]


def test_a_circle_of_includes_is_told(split: Path) -> None:
    Path("parts/base.yaml").write_text("include: ../edge.yaml\n" + BASE)
    assert errors(split) == [
        "parts/base.yaml:1: include: expected no circle of includes, got edge.yaml -> base.yaml -> edge.yaml"
    ]


def test_an_include_that_is_not_there_is_told(split: Path) -> None:
    split.write_text(split.read_text().replace("include: parts/base.yaml", "include: [parts/base.yaml, gone.yaml]"))
    assert errors(split) == ["edge.yaml:3: include[1]: expected a file that exists, got gone.yaml"]


def test_two_files_that_contradict_each_other_are_told(split: Path) -> None:
    Path("parts/base.yaml").write_text("name: three-shops\n" + BASE)
    assert errors(split) == [
        "edge.yaml:2: name: expected the value given at parts/base.yaml:1: three-shops, got two-shops"
    ]


def test_the_same_server_in_two_files_is_told(split: Path) -> None:
    split.write_text(split.read_text().replace("name: shop-b", "name: shop-a"))
    assert errors(split)[0] == "edge.yaml:5: servers.shop-a: expected each name once, first at parts/base.yaml:4"


# --- what validation says beyond errors ------------------------------------------------------------------------


def test_a_service_that_fits_no_device_has_its_reason(edit: Edit) -> None:
    loaded = load_topology(edit("memory_gib: 8", "memory_gib: 1.5"))
    problem = build_problem(loaded.topology, loaded.catalogue, rules=loaded.rules)
    assert problem.misfits["chat"] == ("no_memory: needs 2.00 GiB per gpu, which has 1.50",)


def test_an_slo_that_no_route_can_meet_has_its_reason(edit: Edit) -> None:
    loaded = load_topology(edit("slo_ms: 2000", "slo_ms: 100"))
    problem = build_problem(loaded.topology, loaded.catalogue, rules=loaded.rules)
    assert problem.misfits["chat"] == ("no_route_in_time: gpu answers in 330 ms at best, deadline 100 ms",)


def test_a_model_that_was_never_measured_has_its_reason(edit: Edit) -> None:
    loaded = load_topology(edit("profile: llm", "profile: llm-x"))
    problem = build_problem(loaded.topology, loaded.catalogue, rules=loaded.rules)
    assert problem.misfits["chat"] == ("no_profile: llm-x was never measured on gpu",)


# --- digest and schema -----------------------------------------------------------------------------------------


def digest(loaded: LoadedTopology) -> str:
    return loaded.topology.digest


def test_comments_order_and_formatting_do_not_change_the_digest(write: Write) -> None:
    plain = digest(load_topology(write(EDGE)))
    tree = yaml.safe_load(EDGE)
    tree["servers"].reverse()
    tree["services"].reverse()
    turned = "# a comment\n" + yaml.safe_dump(tree, sort_keys=True, default_flow_style=False)
    Path("profiles.csv").write_text("# another\n" + PROFILES)
    assert digest(load_topology(write(turned))) == plain


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("rtt_ms: 4", "rtt_ms: 5"),
        ("weight: 2.5", "weight: 2"),
        ("fps: 20", "fps: 21"),
        ("lat: -37.8", "lat: -37.9"),
    ],
)
def test_any_change_of_content_changes_the_digest(write: Write, edit: Edit, old: str, new: str) -> None:
    assert digest(load_topology(write(EDGE))) != digest(load_topology(edit(old, new)))


def test_demand_and_rules_are_not_the_edge_and_leave_its_digest_alone(write: Write, edit: Edit) -> None:
    plain = digest(load_topology(write(EDGE)))
    assert digest(load_topology(edit("streams: 2", "streams: 3"))) == plain
    assert digest(load_topology(write(EDGE + "rules: {max_tenants: 2}\n"))) == plain


def test_a_change_in_the_profiles_changes_the_digest(write: Write) -> None:
    plain = digest(load_topology(write(EDGE)))
    Path("profiles.csv").write_text(PROFILES.replace(",20,16,", ",21,16,"))
    assert digest(load_topology(write(EDGE))) != plain


def test_the_schema_is_valid_and_accepts_what_the_reader_accepts() -> None:
    jsonschema.Draft202012Validator.check_schema(topology_schema())
    jsonschema.validate(yaml.safe_load(EDGE), topology_schema(), cls=jsonschema.Draft202012Validator)


@pytest.mark.parametrize(
    "case",
    [
        "unknown key",
        "1e9 is text in YAML",
        "negative",
        "no as a name",
        "two objectives",
        "demand in no unit",
        "missing key",
    ],
)
def test_the_schema_refuses_what_the_reader_refuses(case: str) -> None:
    old, new, _ = CASES[case]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(
            yaml.safe_load(EDGE.replace(old, new, 1)), topology_schema(), cls=jsonschema.Draft202012Validator
        )


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.data())
def test_no_garbled_file_makes_the_reader_stumble(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Any cut and any splice either loads or is refused with an InputError; nothing else is ever raised."""
    folder = tmp_path_factory.mktemp("garbled")
    (folder / "profiles.csv").write_text(PROFILES)
    at = data.draw(st.integers(0, len(EDGE)))
    length = data.draw(st.integers(0, 40))
    patch = data.draw(st.text(alphabet="{}[]:,-&*<>#\"'\n\t 0123456789abc.~!|%@", max_size=12))
    path = folder / "edge.yaml"
    path.write_text(EDGE[:at] + patch + EDGE[at + length :])
    with contextlib.suppress(InputError):
        load_topology(path)


def test_the_reference_page_knows_every_key_and_its_law() -> None:
    """docs/topology.md names each key of the table and each planning rule."""
    page = (Path(__file__).parents[2] / "docs" / "topology.md").read_text()

    def names(kind: Kind) -> set[str]:
        match kind:
            case Record():
                return set(kind.keys).union(*(names(k.kind) for k in kind.keys.values()))
            case ListOf():
                return names(kind.item)
            case MapOf():
                return names(kind.value)
            case _:
                return set()

    missing = {n for n in names(TOPOLOGY) if not re.search(rf"`([a-z]+\.)?{n}[`.]", page)}
    assert missing == set()
    assert ",".join(COLUMNS) in page
