"""HTML and SVG as a tree from the standard library, so that text is escaped by construction, not by care."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable

from epara_opt.report.figures import plain

Child = ET.Element | str | None | Iterable["Child"]


def el(tag: str, *children: Child, **attributes: str | float | bool | None) -> ET.Element:
    """One element. Strings are text; None is left out; iterables are spliced in.

    Attribute names: `class_` for class, an inner underscore stands for a hyphen; True gives a bare attribute,
    None and False leave it out, numbers are written with at most one decimal.
    """
    node = ET.Element(tag)
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        name = key.rstrip("_").replace("_", "-")
        node.set(
            _SVG_CAMEL.get(name, name),
            name if value is True else plain(value) if isinstance(value, str) else num(value),
        )
    _append(node, children)
    return node


def num(value: float) -> str:
    """A coordinate: one decimal at most."""
    text = f"{value:.1f}"
    return "0" if text == "-0.0" else text.removesuffix(".0")


def raw(tag: str, text: str) -> ET.Element:
    """A style or script element: the browser takes its text as it stands, so it must be ours alone."""
    node = ET.Element(tag)
    node.text = text
    return node


def to_html(root: ET.Element) -> str:
    return "<!DOCTYPE html>\n" + ET.tostring(root, encoding="unicode", method="html") + "\n"


_SVG_CAMEL = {
    "viewbox": "viewBox",
    "preserveaspectratio": "preserveAspectRatio",
    "markerwidth": "markerWidth",
    "markerheight": "markerHeight",
    "refx": "refX",
    "refy": "refY",
    "markerunits": "markerUnits",
}


def _append(node: ET.Element, children: Iterable[Child]) -> None:
    for child in children:
        if child is None:
            continue
        if isinstance(child, str):
            text = plain(child)
            if len(node):
                node[-1].tail = (node[-1].tail or "") + text
            else:
                node.text = (node.text or "") + text
        elif isinstance(child, ET.Element):
            node.append(child)
        else:
            _append(node, child)
