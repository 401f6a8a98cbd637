"""Maps become plannable documents; the generator is seeded and covers every category."""

from __future__ import annotations

from pathlib import Path

import networkx as nx
import pytest

from epara_opt.domain.profile import ProfileCatalogue
from epara_opt.errors import InputError
from epara_opt.importers.catalogue import shipped_profiles
from epara_opt.importers.document import Document, to_yaml, write_document
from epara_opt.importers.eua import import_eua
from epara_opt.importers.generate import generate
from epara_opt.importers.geography import Site, distance_km, nearest_neighbour_links, rtt_ms
from epara_opt.importers.graphml import Imported, import_graphml
from epara_opt.problem import PlacementProblem, PlanningRules, build_problem
from epara_opt.topology import load_topology, read_profiles

ZOO = Path(__file__).resolve().parents[3] / "shared" / "data" / "topologies"  # real maps, where they are at hand

GRAPHML = """\
<?xml version="1.0" encoding="utf-8"?>
<graphml xmlns="http://graphml.graphdrawing.org/xmlns">
  <key id="d0" for="node" attr.name="label" attr.type="string"/>
  <key id="d1" for="node" attr.name="Latitude" attr.type="double"/>
  <key id="d2" for="node" attr.name="Longitude" attr.type="double"/>
  <key id="d3" for="edge" attr.name="LinkSpeedRaw" attr.type="double"/>
  <graph edgedefault="undirected">
    <node id="0"><data key="d0">Old Town</data><data key="d1">50.0</data><data key="d2">8.0</data></node>
    <node id="1"><data key="d0">Port</data><data key="d1">50.0</data><data key="d2">9.0</data></node>
    <node id="2"><data key="d0">Port</data><data key="d1">50.5</data><data key="d2">9.0</data></node>
    <node id="3"><data key="d0">Ghost</data></node>
    <node id="4"><data key="d0">Far Isle</data><data key="d1">60.0</data><data key="d2">0.0</data></node>
    <node id="5"><data key="d0">Mill</data><data key="d1">50.2</data><data key="d2">8.5</data></node>
    <edge id="a" source="0" target="1"><data key="d3">2500000000</data></edge>
    <edge id="b" source="0" target="1"><data key="d3">2500000000</data></edge>
    <edge id="c" source="1" target="2"/>
    <edge id="e" source="2" target="2"/>
    <edge id="f" source="2" target="3"/>
    <edge id="g" source="0" target="5"/>
  </graph>
</graphml>
"""

SITES = """\
SITE_ID,LATITUDE,LONGITUDE,NAME
11,-37.810,144.960,One
12,-37.812,144.965,Two
13,-37.815,144.970,"Three, with a comma"
14,-37.815,144.970,On the same mast as three
15,-37.818,144.955,Five
"""

USERS = "Latitude,Longitude\n-37.8101,144.9601\n-37.8102,144.9602\n-37.8121,144.9651\n"


@pytest.fixture(scope="module")
def catalogue() -> ProfileCatalogue:
    return read_profiles([shipped_profiles()])


@pytest.fixture
def graphml(tmp_path: Path) -> Path:
    path = tmp_path / "small.graphml"
    path.write_text(GRAPHML)
    return path


@pytest.fixture
def sites(tmp_path: Path) -> Path:
    path = tmp_path / "sites.csv"
    path.write_text(SITES)
    return path


def planned(document: Document, catalogue: ProfileCatalogue, folder: Path) -> PlacementProblem:
    """The document through its file and the strict reader to a problem."""
    path, _ = write_document(document, folder / "edge.yaml", catalogue.rows, comment="made by a test")
    loaded = load_topology(path)
    rules = PlanningRules(max_tenants=1)  # what is asked here needs no companies, which take long to enumerate
    return build_problem(loaded.topology, loaded.catalogue, rules=rules)


# --- geography -------------------------------------------------------------------------------------------------


def test_a_degree_of_latitude_is_111_km() -> None:
    assert distance_km(Site(name="a", lat=0, lon=0), Site(name="b", lat=1, lon=0)) == pytest.approx(111.2, abs=0.1)


def test_round_trips_are_ten_microseconds_a_kilometre_above_a_floor() -> None:
    a, b = Site(name="a", lat=0, lon=0), Site(name="b", lat=1, lon=0)
    assert rtt_ms(a, b, floor_ms=0.2) == pytest.approx(1.112, abs=0.001)
    assert rtt_ms(a, a, floor_ms=0.2) == 0.2


@pytest.mark.parametrize("neighbours", [1, 2, 3])
def test_neighbour_links_leave_no_island_and_no_duplicate(neighbours: int) -> None:
    sites = [Site(name=f"s{i}", lat=(i * 37 % 11) / 10, lon=(i * 17 % 13) / 10) for i in range(12)]
    links = nearest_neighbour_links(sites, neighbours=neighbours, floor_ms=0.1, bandwidth_mbps=100)
    graph = nx.Graph([link.between for link in links])
    assert set(graph) == {s.name for s in sites}
    assert nx.is_connected(graph)
    assert len({frozenset(link.between) for link in links}) == len(links)


def test_many_sites_in_far_apart_towns_are_linked_without_looking_at_every_pair(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    town = [(i * 37 % 11 / 100, i * 17 % 13 / 100) for i in range(40)]
    sites = [Site(name=f"{t}-{i}", lat=t * 10 + a, lon=b) for t in range(3) for i, (a, b) in enumerate(town)]
    every_pair = nearest_neighbour_links(sites, neighbours=2, floor_ms=0.1, bandwidth_mbps=100)
    monkeypatch.setattr("epara_opt.importers.geography.FEW", 1)  # and NEAR is 32: a town's sites see their town alone
    assert set(nearest_neighbour_links(sites, neighbours=2, floor_ms=0.1, bandwidth_mbps=100)) == set(every_pair)


# --- GraphML ---------------------------------------------------------------------------------------------------


@pytest.fixture
def imported(graphml: Path, catalogue: ProfileCatalogue) -> Imported:
    return import_graphml(graphml, catalogue=catalogue, services=4, seed=1)


def test_nodes_become_servers_with_unique_names(imported: Imported) -> None:
    assert [s["name"] for s in imported.document["servers"]] == ["Old-Town", "Port", "Port-2", "Mill"]


def test_edges_become_links_with_round_trips_from_distance(imported: Imported) -> None:
    links = {tuple(link["between"]): link for link in imported.document["links"]}
    assert set(links) == {("Old-Town", "Port"), ("Port", "Port-2"), ("Mill", "Old-Town")}
    assert links["Old-Town", "Port"]["rtt_ms"] == pytest.approx(0.715, abs=0.001)  # 71.5 km


def test_what_was_odd_about_a_map_is_told(imported: Imported) -> None:
    assert imported.notes == (
        "left out 1 node(s) without coordinates: Ghost",
        "numbered 1 node(s) whose label was taken: Port-2",
        "joined 1 parallel edge(s): their bandwidths add up",
        "dropped 1 edge(s) from a node to itself",
        "assumed 1000 Mb/s for 2 edge(s) without LinkSpeedRaw",
        "kept the largest of 2 connected parts: 4 of 5 nodes; left out Far-Isle",
    )


def test_an_imported_map_can_be_planned_at_once(
    imported: Imported, catalogue: ProfileCatalogue, tmp_path: Path
) -> None:
    problem = planned(imported.document, catalogue, tmp_path)
    assert problem.edges
    assert not any(problem.misfits.values())


def test_a_map_without_coordinates_is_refused(tmp_path: Path, catalogue: ProfileCatalogue) -> None:
    path = tmp_path / "bare.graphml"
    nx.write_graphml(nx.path_graph(3), path)
    with pytest.raises(InputError, match=r"nodes: expected nodes with Latitude and Longitude, got none has both"):
        import_graphml(path, catalogue=catalogue)


@pytest.mark.parametrize(
    ("text", "law"),
    [("<graphml>", "expected XML"), ("<html></html>", "expected GraphML"), ("", "expected XML")],
)
def test_what_is_no_graphml_is_refused(tmp_path: Path, catalogue: ProfileCatalogue, text: str, law: str) -> None:
    path = tmp_path / "odd.graphml"
    path.write_text(text)
    with pytest.raises(InputError, match=law):
        import_graphml(path, catalogue=catalogue)


def test_a_map_that_is_not_there_is_refused(tmp_path: Path, catalogue: ProfileCatalogue) -> None:
    with pytest.raises(InputError, match="expected a file that can be read: No such file"):
        import_graphml(tmp_path / "gone.graphml", catalogue=catalogue)


@pytest.mark.skipif(not ZOO.is_dir(), reason="the Internet Topology Zoo's maps are not at hand")
@pytest.mark.parametrize("name", ["Abilene", "Belnet2010", "Renater2010", "Telecomserbia"])
def test_real_maps_can_be_planned(name: str, catalogue: ProfileCatalogue, tmp_path: Path) -> None:
    made = import_graphml(ZOO / "zoo_graphml" / f"{name}.graphml", catalogue=catalogue, services=6, seed=2)
    assert planned(made.document, catalogue, tmp_path).edges


# --- EUA -------------------------------------------------------------------------------------------------------


def test_sites_become_servers_and_shared_masts_are_joined(sites: Path, catalogue: ProfileCatalogue) -> None:
    made = import_eua(sites, catalogue=catalogue, services=4)
    assert [s["name"] for s in made.document["servers"]] == ["site-11", "site-12", "site-13", "site-15"]
    assert made.notes[0] == "joined 1 site(s) that stand exactly where another stands"


def test_users_share_the_demand(sites: Path, catalogue: ProfileCatalogue, tmp_path: Path) -> None:
    users = tmp_path / "users.csv"
    users.write_text("Latitude,Longitude\n" + "-37.8101,144.9601\n" * 500)
    made = import_eua(sites, users, catalogue=catalogue, services=6)
    origins = [d["origin"] for d in made.document["demand"]]
    assert origins.count("site-11") >= 6
    assert made.notes[1] == "shared demand by 500 users, each at the nearest site"


def test_imported_sites_can_be_planned_at_once(sites: Path, catalogue: ProfileCatalogue, tmp_path: Path) -> None:
    users = tmp_path / "users.csv"
    users.write_text(USERS)
    problem = planned(import_eua(sites, users, catalogue=catalogue, services=4).document, catalogue, tmp_path)
    assert problem.edges
    assert not any(problem.misfits.values())


def test_fewer_sites_can_be_asked_for(sites: Path, catalogue: ProfileCatalogue) -> None:
    made = import_eua(sites, catalogue=catalogue, services=2, max_sites=2)
    assert len(made.document["servers"]) == 2
    assert "kept the first 2 of 4 sites" in made.notes


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("SITE_ID", "ID", "sites.csv:1: header: expected the columns SITE_ID, LATITUDE, LONGITUDE, got no SITE_ID"),
        (
            "-37.812",
            "south",
            "sites.csv:3: site: expected SITE_ID, LATITUDE and LONGITUDE in degrees, got 12, south, 144.965",
        ),
        (
            "-37.812",
            "-97.812",
            "sites.csv:3: site: expected SITE_ID, LATITUDE and LONGITUDE in degrees, got 12, -97.812, 144.965",
        ),
        ("12,", "11,", "sites.csv:3: SITE_ID: expected each SITE_ID once, got 11"),
    ],
)
def test_bad_sites_are_told_with_their_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, catalogue: ProfileCatalogue, old: str, new: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sites.csv").write_text(SITES.replace(old, new, 1))
    with pytest.raises(InputError) as caught:
        import_eua(Path("sites.csv"), catalogue=catalogue)
    assert str(caught.value) == message


def test_no_sites_are_refused(tmp_path: Path, catalogue: ProfileCatalogue) -> None:
    path = tmp_path / "sites.csv"
    path.write_text("SITE_ID,LATITUDE,LONGITUDE\n")
    with pytest.raises(InputError, match="expected at least one site, got none"):
        import_eua(path, catalogue=catalogue)


@pytest.mark.skipif(not ZOO.is_dir(), reason="the EUA data set is not at hand")
def test_the_real_sites_of_melbourne_are_read(catalogue: ProfileCatalogue) -> None:
    made = import_eua(ZOO / "eua_optus_melbcbd_sites.csv", ZOO / "eua_users_melbcbd_generated.csv", catalogue=catalogue)
    assert len(made.document["servers"]) == 125


# --- the generator ---------------------------------------------------------------------------------------------


def test_equal_seeds_give_equal_documents(catalogue: ProfileCatalogue) -> None:
    make = [generate(servers=10, services=12, seed=s, catalogue=catalogue) for s in (5, 5, 6)]
    assert to_yaml(make[0]) == to_yaml(make[1])
    assert to_yaml(make[0]) != to_yaml(make[2])


@pytest.mark.parametrize(("servers", "services", "seed"), [(8, 8, 0), (14, 24, 1), (30, 60, 2)])
def test_generated_edges_have_all_four_categories_and_can_be_planned(
    servers: int, services: int, seed: int, catalogue: ProfileCatalogue, tmp_path: Path
) -> None:
    problem = planned(generate(servers=servers, services=services, seed=seed, catalogue=catalogue), catalogue, tmp_path)
    assert len(problem.topology.services) == services
    assert {str(c) for c in problem.categories.values()} == {
        "latency, single-device",
        "latency, multi-device",
        "frequency, single-device",
        "frequency, multi-device",
    }
    assert not any(problem.misfits.values())
    assert {d.service for d in problem.demand} == set(problem.topology.services)


@pytest.mark.parametrize("servers", [1, 2, 3, 5])
def test_even_tiny_edges_get_services_that_they_can_serve(
    servers: int, catalogue: ProfileCatalogue, tmp_path: Path
) -> None:
    problem = planned(generate(servers=servers, services=6, seed=3, catalogue=catalogue), catalogue, tmp_path)
    assert not any(problem.misfits.values())


def test_overload_scales_the_demand(catalogue: ProfileCatalogue) -> None:
    def rates(overload: float) -> float:
        made = generate(servers=10, services=12, seed=4, catalogue=catalogue, overload=overload)
        return sum(d["rate_per_s"] for d in made["demand"] if d["service"] == "chat-7b")

    assert rates(2.0) == pytest.approx(2 * rates(1.0), rel=0.15)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"servers": 0}, "servers: expected >= 1, got 0"),
        ({"services": 0}, "services: expected >= 1, got 0"),
        ({"overload": 0.0}, "overload: expected a finite number > 0, got 0.0"),
    ],
)
def test_impossible_wishes_are_refused(arguments: dict[str, float], message: str, catalogue: ProfileCatalogue) -> None:
    with pytest.raises(InputError) as caught:
        generate(**({"servers": 3, "services": 3, "seed": 1, "catalogue": catalogue} | arguments))
    assert str(caught.value) == message


def test_yaml_text_survives_names_that_yaml_would_misread(catalogue: ProfileCatalogue) -> None:
    document = generate(servers=1, services=1, seed=1, catalogue=catalogue, name="no")
    assert "name: 'no'" in to_yaml(document)


def test_profiles_written_beside_hold_only_what_the_services_need(catalogue: ProfileCatalogue, tmp_path: Path) -> None:
    document = generate(servers=3, services=3, seed=1, catalogue=catalogue)
    _, beside = write_document(document, tmp_path / "edge.yaml", catalogue.rows)
    assert {r.model for r in read_profiles([beside]).rows} == {s["model"]["source"] for s in document["services"]}


def test_the_shipped_catalogue_is_the_default(tmp_path: Path) -> None:
    path, _ = write_document(generate(servers=3, services=3, seed=1), tmp_path / "new" / "edge.yaml")
    assert len(load_topology(path).topology.services) == 3
