"""The page, read back by a parser: complete, escaped, self-contained."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from typing import Any

import pytest

from epara_opt.plan import Plan, Predicted, Stop
from epara_opt.problem import PlanningRules
from epara_opt.report.html import render

VOID = {"meta", "input", "br", "link", "img", "hr"}
HOSTILE = (
    ("<script>alert(1)</script>", "latency"),
    ("\"quoted\" & 'single'", "frequency"),
    ("</style><b>bold", "latency"),
    ("bell\x07 and \u202e turned", "latency"),
)


@dataclass
class Page(HTMLParser):
    """What a browser would make of the page, as far as tests care."""

    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    scripts: list[str] = field(default_factory=list)
    open_tags: list[str] = field(default_factory=list)
    misnested: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open_tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open_tags or self.open_tags.pop() != tag:
            self.misnested.append(tag)

    def handle_data(self, data: str) -> None:
        inside = self.open_tags[-1] if self.open_tags else ""
        (self.scripts if inside in ("script", "style") else self.texts).append(data)

    @property
    def text(self) -> str:
        return "\n".join(self.texts)

    def attributes(self, name: str) -> list[str]:
        return [v for _, a in self.tags if (v := a.get(name)) is not None]


def parse(html: str) -> Page:
    page = Page()
    page.feed(html)
    page.close()
    return page


@pytest.fixture(scope="module")
def page_of_three(three_shops: Any) -> Page:
    e = three_shops
    return parse(render(e.plan, e.topology, categories=e.categories, history=e.history, load=e.load))


def test_every_element_is_closed_where_it_belongs(page_of_three: Page) -> None:
    assert page_of_three.misnested == []
    assert page_of_three.open_tags == []


def test_every_server_replica_route_and_reason_appears(page_of_three: Page, three_shops: Any) -> None:
    plan, text = three_shops.plan, page_of_three.text
    for name in three_shops.topology.servers:
        assert name in page_of_three.texts
    titles = page_of_three.attributes("title")
    for r in plan.replicas:
        assert any(t.startswith(r.group) for t in titles)
        assert r.service in page_of_three.texts
    for u in plan.unserved:
        assert u.reason in text
    for a in plan.actions:
        assert a.kind.value in page_of_three.texts
        for g in a.groups:
            assert g in page_of_three.texts
    for p in three_shops.history:
        assert p.event in text
    assert plan.inputs_digest in text
    assert plan.solver in text
    for c in three_shops.categories.values():
        assert c.reason in text


def test_what_is_loaded_already_says_so(page_of_three: Page, three_shops: Any) -> None:
    assert page_of_three.texts.count("resident") == sum(r.load_s == 0 for r in three_shops.plan.replicas)


def test_the_header_carries_the_verdict(page_of_three: Page) -> None:
    assert any(t.startswith("Serves ") and t.endswith("more is possible, proven.") for t in page_of_three.texts)


def test_hostile_names_stay_text(make_edge: Callable[..., Any]) -> None:
    e = make_edge(3, names=HOSTILE)
    hostile = {"fitzroy": "<img src=x onerror=alert(2)>"}
    plan = replace(e.plan, notes=("<script>alert(3)</script>",), topology="</title><script>alert(4)</script>")
    html = render(plan, e.topology, categories=e.categories, history=e.history, load=e.load, title=hostile["fitzroy"])
    page = parse(html)
    assert sum(tag == "script" for tag, _ in page.tags) == 1  # ours
    assert not any("alert" in s for s in page.scripts)
    assert not any(tag in ("img", "b") and a for tag, a in page.tags)
    assert not any(name.startswith("on") for _, a in page.tags for name in a)
    assert "<script>alert(1)</script>" in page.texts
    assert "\"quoted\" & 'single'" in page.texts
    assert "\x07" not in html
    assert "\u202e" not in html
    assert page.misnested == []


def test_a_hostile_server_stays_text_on_the_map_and_in_the_tables(three_shops: Any) -> None:
    bad = '"><script>alert(5)</script>'
    old = three_shops.topology
    servers = {
        (bad if n == "carlton" else n): replace(s, name=bad if n == "carlton" else n) for n, s in old.servers.items()
    }
    topology = replace(
        old,
        servers=servers,
        links=tuple(replace(x, between=tuple(bad if n == "carlton" else n for n in x.between)) for x in old.links),
        demand=tuple(replace(d, origin=bad if d.origin == "carlton" else d.origin) for d in old.demand),
    )
    replicas = tuple(replace(r, server=bad if r.server == "carlton" else r.server) for r in three_shops.plan.replicas)
    page = parse(render(replace(three_shops.plan, replicas=replicas), topology))
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert bad in page.attributes("data-n")
    assert bad in page.texts
    assert page.misnested == []


@pytest.mark.parametrize("num_servers", [1, 3, 40])
def test_the_page_needs_no_network(make_edge: Callable[..., Any], num_servers: int) -> None:
    e = make_edge(num_servers)
    html = render(e.plan, e.topology, categories=e.categories, history=e.history, load=e.load)
    assert re.findall(r"(?:https?:)?//[a-z]", re.sub(r"/\*.*?\*/|^\s*// .*$", "", html, flags=re.M | re.S)) == []
    page = parse(html)
    assert page.attributes("src") == []
    assert all(h.startswith("#") for h in page.attributes("href"))
    assert "url(" not in "".join(page.scripts)
    assert "@import" not in "".join(page.scripts)
    assert any("default-src 'none'" in c for c in page.attributes("content"))


def test_links_inside_the_page_lead_somewhere(page_of_three: Page) -> None:
    ids = page_of_three.attributes("id")
    assert len(ids) == len(set(ids))
    assert {h.removeprefix("#") for h in page_of_three.attributes("href")} <= set(ids)


def test_a_hundred_servers_stay_under_a_megabyte(make_edge: Callable[..., Any]) -> None:
    e = make_edge(120)
    html = render(e.plan, e.topology, categories=e.categories, history=e.history, load=e.load)
    assert len(html.encode()) < 1_000_000
    page = parse(html)
    assert all(name in page.attributes("data-n") for name in e.topology.servers)
    assert any(a.get("type") == "search" for tag, a in page.tags if tag == "input")
    assert "node thin" in page.attributes("class")


def test_the_same_plan_gives_the_same_page(three_shops: Any) -> None:
    e = three_shops
    assert render(e.plan, e.topology) == render(e.plan, e.topology)


def test_history_and_load_are_left_out_when_there_are_none(three_shops: Any) -> None:
    ids = parse(render(three_shops.plan, three_shops.topology)).attributes("id")
    assert "history" not in ids
    assert "load" not in ids
    assert {"edge", "goodput", "unserved", "hosting", "routes", "actions", "appendix"} <= set(ids)


def test_rules_are_shown_when_given(three_shops: Any) -> None:
    rules = PlanningRules(horizon_s=17.5)
    assert "17.5" in parse(render(three_shops.plan, three_shops.topology, rules=rules)).texts


def test_an_empty_plan_is_a_page_too(three_shops: Any) -> None:
    plan = Plan(
        generation=1,
        topology="empty",
        inputs_digest="0",
        solver="greedy",
        stop=Stop.NO_DEMAND,
        objective=0.0,
        dual_bound=0.0,
        gap=0.0,
        wall_s=0.0,
        predicted=Predicted(goodput=0.0, offered=0.0, slo_attainment=1.0),
    )
    page = parse(render(plan, three_shops.topology))
    assert "Nothing is offered, so nothing is placed." in page.texts
    assert page.misnested == []


def test_a_plan_without_a_bound_claims_none(three_shops: Any) -> None:
    plan = replace(three_shops.plan, dual_bound=None, gap=None, stop=Stop.HEURISTIC)
    text = parse(render(plan, three_shops.topology)).text
    assert "how much more is possible was not proved" in text
    assert "no bound was proved" in text


def test_a_plan_that_names_servers_and_services_the_topology_lacks_is_still_shown(three_shops: Any) -> None:
    odd = replace(three_shops.plan.replicas[0], service="gone-service", server="gone-server", id="gone")
    plan = replace(three_shops.plan, replicas=(*three_shops.plan.replicas, odd))
    page = parse(render(plan, three_shops.topology))
    assert "gone-server" in page.texts
    assert "gone-service" in page.texts


def test_a_group_on_devices_that_do_not_adjoin_is_drawn_in_parts(three_shops: Any) -> None:
    first = next(r for r in three_shops.plan.replicas if r.server == "carlton")
    split = replace(first, devices=(0, 2), group="carlton/l4/0+2/3", tp=2)
    page = parse(render(replace(three_shops.plan, replicas=(split,), routes=()), three_shops.topology))
    titles = page.attributes("title")
    assert "carlton/l4/0+2/3 (part 1 of 2)" in titles
    assert "carlton/l4/0+2/3 (part 2 of 2)" in titles
