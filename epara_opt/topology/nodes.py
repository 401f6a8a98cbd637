"""YAML files to one tree of nodes, each of which knows its file and line; `include` is resolved here.

PyYAML's node graph (`yaml.compose`) is used instead of `yaml.load` because nodes remember where and how
something was written: a message can then quote `no` as typed, where `load` has already made it False.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml

from epara_opt.errors import Violation

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C one is ten times faster, same nodes
_MERGE_TAG = "tag:yaml.org,2002:merge"


@dataclass(slots=True)
class Tree:
    """One mapping made of a file and all it includes, with what was wrong on the way."""

    pairs: list[tuple[yaml.Node, yaml.Node]] = field(default_factory=list[tuple[yaml.Node, yaml.Node]])
    start: tuple[str, int] = ("", 0)  # file and line of the root mapping
    files: list[Path] = field(default_factory=list[Path])
    violations: list[Violation] = field(default_factory=list[Violation])


def place(node: yaml.Node) -> tuple[str, int]:
    """File and 1-based line."""
    mark = node.start_mark
    return str(mark.name), int(mark.line) + 1


def violation(node: yaml.Node, path: str, law: str, value: str = "") -> Violation:
    file, line = place(node)
    return Violation(path=path, law=law, value=value, file=file, line=line)


def pairs_of(node: yaml.MappingNode) -> list[tuple[yaml.Node, yaml.Node]]:
    """The mapping's pairs with merge keys (`<<: *base`) unfolded; own keys win over merged ones."""
    return _unfold(node, frozenset())


def _unfold(node: yaml.MappingNode, seen: frozenset[int]) -> list[tuple[yaml.Node, yaml.Node]]:
    own: list[tuple[yaml.Node, yaml.Node]] = []
    merged: list[tuple[yaml.Node, yaml.Node]] = []
    for key, value in cast("list[tuple[yaml.Node, yaml.Node]]", node.value):
        if key.tag != _MERGE_TAG:
            own.append((key, value))
            continue
        sources = cast("list[yaml.Node]", value.value) if isinstance(value, yaml.SequenceNode) else [value]
        for source in sources:
            if isinstance(source, yaml.MappingNode) and id(source) not in seen:
                merged += _unfold(source, seen | {id(node)})
    names = {str(key.value) for key, _ in own}
    for key, value in merged:
        if str(key.value) not in names:
            names.add(str(key.value))
            own.append((key, value))
    return own


def read_tree(path: Path) -> Tree:
    """Read a file and everything it includes. Never raises for what is in the files: see `violations`."""
    tree = Tree()
    _read_into(tree, path, stack=())
    return tree


def _read_into(tree: Tree, path: Path, stack: tuple[Path, ...]) -> None:
    root = _compose(tree, path)
    if root is None:
        return
    if not tree.start[0] or not stack:
        tree.start = place(root)
    chain = (*stack, path.resolve())
    own: list[tuple[yaml.Node, yaml.Node]] = []
    for key, value in pairs_of(root):
        if key.value != "include":
            own.append((key, value))
            continue
        named = cast("list[yaml.Node]", value.value) if isinstance(value, yaml.SequenceNode) else [value]
        for i, item in enumerate(named):
            where = f"include[{i}]" if isinstance(value, yaml.SequenceNode) else "include"
            if not isinstance(item, yaml.ScalarNode) or not str(item.value).strip():
                tree.violations.append(violation(item, where, "expected the path of a file"))
                continue
            target = path.parent / str(item.value)
            if target.resolve() in chain:
                tree.violations.append(
                    violation(
                        item, where, "expected no circle of includes", " -> ".join(p.name for p in (*chain, target))
                    )
                )
            elif not target.is_file():
                tree.violations.append(violation(item, where, "expected a file that exists", str(target)))
            elif target.resolve() not in {p.resolve() for p in tree.files}:
                _read_into(tree, target, chain)
    _merge(tree, own)


def _compose(tree: Tree, path: Path) -> yaml.MappingNode | None:
    """The file's root mapping, or None with the reason in `tree.violations`."""
    tree.files.append(path)

    def fail(law: str, line: int = 0, value: str = "") -> None:
        tree.violations.append(Violation(path="", law=law, value=value, file=str(path), line=line))

    try:
        with path.open("rb") as stream:
            root = cast("yaml.Node | None", yaml.compose(stream, Loader=_LOADER))
    except OSError as e:
        fail(f"expected a file that can be read: {e.strerror}")
        return None
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        line = int(mark.line) + 1 if mark else 0
        if "\\t" in (e.problem or "") or "'\t'" in (e.problem or "") or _has_tab_indent(path, line):
            fail("expected spaces: YAML allows no tab in indentation", line)
        else:
            fail(f"expected YAML: {e.problem or e.context or 'cannot be parsed'}", line)
        return None
    except yaml.YAMLError as e:
        fail(f"expected YAML in UTF-8: {str(e).splitlines()[0]}")
        return None
    if root is None:
        fail("expected a topology, the file is empty")
        return None
    if not isinstance(root, yaml.MappingNode):
        fail("expected a mapping with version, name, servers, ...", place(root)[1], _what(root))
        return None
    return root


def _what(node: yaml.Node) -> str:
    return "a list" if isinstance(node, yaml.SequenceNode) else str(node.value)


def _has_tab_indent(path: Path, line: int) -> bool:
    lines = path.read_text(errors="replace").splitlines()
    return any("\t" in text[: len(text) - len(text.lstrip())] for text in lines[max(0, line - 2) : line])


def _merge(tree: Tree, own: list[tuple[yaml.Node, yaml.Node]]) -> None:
    """Add a file's pairs to the tree: lists and mappings grow, scalars must agree. Own duplicates stay, to be told."""
    before = {str(key.value): i for i, (key, _) in enumerate(tree.pairs)}
    for key, value in own:
        at = before.get(str(key.value))
        if at is None:
            tree.pairs.append((key, value))
            continue
        first_key, first = tree.pairs[at]
        grows = str(key.value) == "profiles"  # one path or several: always a list in the end
        if grows or (isinstance(first, yaml.SequenceNode) and isinstance(value, yaml.SequenceNode)):
            joined = [*_items(first), *_items(value)]
            tree.pairs[at] = (first_key, yaml.SequenceNode(first.tag, joined, first.start_mark, first.end_mark))
        elif isinstance(first, yaml.MappingNode) and isinstance(value, yaml.MappingNode):
            both = [*pairs_of(first), *pairs_of(value)]
            tree.pairs[at] = (first_key, yaml.MappingNode(first.tag, both, first.start_mark, first.end_mark))
        elif first.value != value.value:
            file, line = place(first)
            tree.violations.append(
                violation(
                    value, str(key.value), f"expected the value given at {file}:{line}: {_what(first)}", _what(value)
                )
            )


def _items(node: yaml.Node) -> list[yaml.Node]:
    return cast("list[yaml.Node]", node.value) if isinstance(node, yaml.SequenceNode) else [node]
