"""Reading topology YAML and profile CSV into the domain, strictly. docs/topology.md is the reference.

keys      the table of every key with type, law and meaning
nodes     YAML files, with their includes, to one tree that knows file and line
reader    tree and table to plain values and violations
build     plain values to domain objects
loading   the whole way, plus the checks of services against profiles
schema    the table as JSON Schema
"""

from epara_opt.topology.loading import LoadedTopology, load_topology
from epara_opt.topology.profiles_csv import COLUMNS, read_profiles, write_profiles
from epara_opt.topology.schema import topology_schema

__all__ = ["COLUMNS", "LoadedTopology", "load_topology", "read_profiles", "topology_schema", "write_profiles"]
