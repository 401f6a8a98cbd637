"""What Prometheus and a planner see of an executor: the counts of what was sent, nothing invented."""

import concurrent.futures
import os
import subprocess
import sys
import threading
import urllib.request

import numpy as np
import psutil
import pytest
from epara_executors.infer_client import InferError
from prometheus_client.parser import text_string_to_metric_families

from epara_opt.errors import FleetError

IDLE_AGENT_BYTES = 60 * 2**20
PROMPT = np.array([b"to be or not"], dtype=np.object_)


def scrape(executor):
    """Samples by name and labels."""
    with urllib.request.urlopen(f"http://{executor.metrics}/metrics", timeout=10) as response:
        families = text_string_to_metric_families(response.read().decode())
        return {(s.name, *sorted(s.labels.items())): s.value for f in families for s in f.samples}


def of(samples, name, **labels):
    return samples.get((name, *sorted(labels.items())))


@pytest.fixture
def scraped(echo_edge):
    """One executor that is scraped: `echo` in batches of 4, and `chat` of two slots."""
    executor = echo_edge.start("a", "127.0.0.1:0", "--metrics", "127.0.0.1:0")
    echo = echo_edge.group("a", echo_edge.tenant(source="echo?latency_ms=20&refuse_above=100", deadline_ms=5000.0))
    chat = echo_edge.tenant(
        service="chat", group="g1", source="echo?latency_ms=5", task="text-generation", batch=2, output_tokens=8
    )
    echo_edge.apply("a", echo, echo_edge.group("a", chat, name="g1", device=1))
    return executor


ECHO = {"service": "echo", "replica": "echo@g0", "group": "g0"}
CHAT = {"service": "chat", "replica": "chat@g1", "group": "g1"}


def test_counts_equal_what_was_sent(echo_edge, scraped, ones):
    client = echo_edge.client("a")
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: client.infer("echo", {"x": ones}), range(24)))
    for inputs, params in (({"x": ones * 101}, {}), ({"x": ones}, {"timeout": 1})):
        with pytest.raises(InferError):
            client.infer("echo", inputs, params=params)
    seen = scrape(scraped)
    assert of(seen, "epara_arrivals_total", service="echo") == 26
    outcomes = {o: of(seen, "epara_requests_total", service="echo", outcome=o) for o in ("on_time", "shed", "failed")}
    assert outcomes == {"on_time": 24, "shed": 1, "failed": 1}
    assert of(seen, "epara_requests_total", service="echo", outcome="late") == 0
    assert of(seen, "epara_served_total", service="echo") == 24
    assert of(seen, "epara_forwarded_total", service="echo") == 0
    assert of(seen, "epara_edge_latency_seconds_count", service="echo") == 24
    assert of(seen, "epara_request_latency_seconds_count", **ECHO) == 24
    assert of(seen, "epara_replica_arrivals_total", **ECHO) == 25
    assert of(seen, "epara_replica_served_total", **ECHO) == 24
    for name in ("epara_request_queue_seconds", "epara_request_service_seconds"):
        assert of(seen, f"{name}_count", **ECHO) == 25
        assert of(seen, f"{name}_bucket", le="+Inf", **ECHO) == 25
    assert of(seen, "epara_batch_rows_sum", **ECHO) == 25
    assert of(seen, "epara_batch_rows_bucket", le="4.0", **ECHO) == of(seen, "epara_batch_rows_count", **ECHO)
    assert of(seen, "epara_batch_rows_count", **ECHO) < 25  # some were batched
    assert of(seen, "epara_request_service_seconds_bucket", le="0.016", **ECHO) == 0  # a batch takes 20 ms
    assert of(seen, "epara_request_latency_seconds_sum", **ECHO) >= 24 * 0.02
    assert of(seen, "epara_replica_busy_seconds_total", **ECHO) >= 0.02 * of(seen, "epara_batch_rows_count", **ECHO)
    assert of(seen, "epara_queue_length", **ECHO) == of(seen, "epara_in_flight_requests", **ECHO) == 0
    assert of(seen, "epara_replica_ready", **ECHO) == 1
    assert of(seen, "epara_replica_memory_bytes", **ECHO) == 2**20
    assert of(seen, "epara_model_bytes_received_total") == of(seen, "epara_model_bytes_sent_total") == 0
    assert of(seen, "epara_group_restarts_total", group="g0") == 0


def test_token_times_are_of_generations_that_stream(echo_edge, scraped):
    client = echo_edge.client("a")
    client.infer("chat", {"text": PROMPT}, params={"max_tokens": 3})
    assert of(scrape(scraped), "epara_time_to_first_token_seconds_count", **CHAT) is None
    assert len(list(client.stream("chat", {"text": PROMPT}, params={"max_tokens": 5}))) == 5
    assert len(list(client.stream("chat", {"text": PROMPT}, params={"max_tokens": 1}))) == 1
    echo_edge.until(lambda: of(scrape(scraped), "epara_request_latency_seconds_count", **CHAT) == 3)
    seen = scrape(scraped)
    assert of(seen, "epara_time_to_first_token_seconds_count", **CHAT) == 2
    assert of(seen, "epara_time_to_first_token_seconds_sum", **CHAT) >= 2 * 0.005
    assert of(seen, "epara_time_per_output_token_seconds_count", **CHAT) == 1
    assert of(seen, "epara_time_per_output_token_seconds_sum", **CHAT) >= 0.004
    assert of(seen, "epara_batch_rows_count", **CHAT) == 3
    assert of(seen, "epara_time_to_first_token_seconds_count", **ECHO) is None


def test_a_planner_sees_the_same_and_histograms_only_where_it_asks(echo_edge, scraped, ones):
    for _ in range(3):
        echo_edge.client("a").infer("echo", {"x": ones})
    plain = echo_edge.state("a")
    assert [r.histograms for r in plain.replicas] == [None, None]
    assert all(s.e2e_s is None for s in plain.services)
    state = echo_edge.fleet.observe({"a": echo_edge.address("a")}, with_histograms=True).executors["a"]
    replica = next(r for r in state.replicas if r.service == "echo")
    assert replica.histograms is not None
    assert replica.histograms.queue_s.count == replica.histograms.e2e_s.count == 3
    assert (replica.arrived, replica.waiting, replica.queued, replica.restarts) == (3, 0, 0, 0)
    assert replica.memory_bytes == 2**20
    assert [(b.rows, b.num_batches) for b in replica.batch_times] == [(1, 3)]
    assert replica.batch_times[0].median_ms >= 20.0
    service = next(s for s in state.services if s.service == "echo")
    assert service.e2e_s is not None
    assert service.e2e_s.count == 3
    assert (state.devices, state.draining) == ((), False)


def test_rates_and_busy_share_follow_within_seconds(echo_edge, scraped, ones):
    client = echo_edge.client("a")

    def replica():
        return next(r for r in echo_edge.state("a").replicas if r.service == "echo")

    echo_edge.until(lambda: client.infer("echo", {"x": ones}) and replica().busy_share > 0)
    assert 0 < replica().busy_share <= 1
    assert replica().arrived_per_s > 0
    assert next(s for s in echo_edge.state("a").services if s.service == "echo").arrived_per_s > 0


def test_a_restart_of_a_worker_is_counted_and_its_counts_stay(echo_edge, ones):
    executor = echo_edge.start("a", "127.0.0.1:0", "--metrics", "127.0.0.1:0")
    echo_edge.apply("a", echo_edge.group("a", echo_edge.tenant(source="echo?crash_above=10", deadline_ms=2000.0)))
    client = echo_edge.client("a")
    client.infer("echo", {"x": ones})
    with pytest.raises(InferError):
        client.infer("echo", {"x": ones * 11})
    echo_edge.until(lambda: of(scrape(executor), "epara_group_restarts_total", group="g0") == 1)
    echo_edge.until(lambda: of(scrape(executor), "epara_replica_ready", **ECHO) == 1)
    assert of(scrape(executor), "epara_replica_served_total", **ECHO) == 1


def test_it_can_be_scraped_while_it_drains(echo_edge, ones):
    executor = echo_edge.start("a", "127.0.0.1:0", "--metrics", "127.0.0.1:0")
    echo_edge.apply("a", echo_edge.group("a", echo_edge.tenant(source="echo?latency_ms=2000")))
    client = echo_edge.client("a")
    asking = threading.Thread(target=lambda: client.infer("echo", {"x": ones}))
    asking.start()
    echo_edge.until(lambda: of(scrape(executor), "epara_in_flight_requests", **ECHO) == 1)
    executor.process.terminate()
    drained = []

    def draining():
        drained[:] = [scrape(executor)]
        return of(drained[0], "epara_executor_draining") == 1

    echo_edge.until(draining)
    assert of(drained[0], "epara_in_flight_requests", **ECHO) == 1
    asking.join()
    assert executor.stop(timeout_s=30) == 0


def test_what_a_peer_answered_is_counted_at_both(echo_edge, ones):
    for server in ("a", "b"):
        echo_edge.start(server, "127.0.0.1:0", "--metrics", "127.0.0.1:0")
    tenant = echo_edge.tenant()
    echo_edge.apply("b", echo_edge.group("b", tenant))
    echo_edge.apply("a", routes=(echo_edge.route(tenant, "b"),), peers=(echo_edge.peer("echo", "b"),))
    for _ in range(5):
        echo_edge.client("a").infer("echo", {"x": ones})
    a, b = (scrape(echo_edge.executors[s]) for s in ("a", "b"))
    assert of(a, "epara_forwarded_total", service="echo") == of(b, "epara_served_total", service="echo") == 5
    assert of(a, "epara_edge_latency_seconds_count", service="echo") == 5
    assert of(b, "epara_edge_latency_seconds_count", service="echo") is None
    assert of(b, "epara_request_latency_seconds_count", **ECHO) == 5


def test_many_scrapes_at_once_disturb_no_request(echo_edge, scraped, ones):
    client = echo_edge.client("a")
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        scrapes = [pool.submit(scrape, scraped) for _ in range(16)]
        answers = [pool.submit(client.infer, "echo", {"x": ones}) for _ in range(16)]
        assert all(s.result() for s in scrapes)
        assert len([a.result() for a in answers]) == 16


def test_a_metrics_address_in_use_ends_with_status_5_and_names_it(echo_edge, scraped):
    with pytest.raises(FleetError):
        echo_edge.start("b", "127.0.0.1:0", "--metrics", scraped.metrics)
    assert f"cannot listen on {scraped.metrics} for metrics" in (echo_edge.folder / "b.log").read_text()


def test_a_metrics_address_is_checked_before_anything_starts(tmp_path):
    command = [sys.executable, "-m", "epara_executors.agent", "--server", "a", "--listen", "127.0.0.1:0"]
    command += ["--state-dir", str(tmp_path / "s"), "--model-root", str(tmp_path), "--metrics", "9100"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert said.returncode == 2
    assert "metrics: expected HOST:PORT, got 9100" in said.stderr


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="resident memory is read from Linux")
def test_an_idle_agent_that_is_scraped_stays_small(echo_edge, scraped):
    for _ in range(20):
        scrape(scraped)
    assert psutil.Process(scraped.pid).memory_info().rss <= IDLE_AGENT_BYTES
