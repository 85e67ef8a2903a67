"""A load test's result as JUnit XML: a test case for each condition, and one for each window."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree

from gridveil.loadtest.report import figures, window_name
from gridveil.loadtest.run import Result
from gridveil.loadtest.thresholds import Threshold

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 has no way to write."""


def as_junit(thresholds: Sequence[Threshold], result: Result) -> bytes:
    """The document. A case that fails says why."""
    found = figures(result)
    suite = ElementTree.Element("testsuite", name="gridveil loadtest", errors="0", skipped="0")
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in found.items():
        ElementTree.SubElement(properties, "property", name=name, value=f"{value:g}")
    for one in thresholds:
        why = one.told(found) if one.holds(found) else ""
        _case(suite, "threshold", f"fail if {one.text}", 0.0, why)
    for window in result.windows:
        why = window.compared.why if window.compared else "the test was interrupted"
        begun, ended = window.tally.begun, window.tally.ended
        took = ended - begun if begun is not None and ended is not None else 0.0
        _case(suite, "window", f"total of {window_name(window.start)} is exact", took, why)
    if result.interrupted or not result.windows:
        _case(suite, "test", "the test came to its end", 0.0, "it was interrupted")
    suite.set("tests", str(len(suite.findall("testcase"))))
    suite.set("failures", str(len(suite.findall("testcase/failure"))))
    suite.set("time", f"{sum(float(case.get('time', 0)) for case in suite):.3f}")
    suites = ElementTree.Element("testsuites")
    suites.append(suite)
    ElementTree.indent(suites)
    document: bytes = ElementTree.tostring(suites, "utf-8", xml_declaration=True)
    return document + b"\n"


def _case(suite: ElementTree.Element, of: str, name: str, took: float, why: str) -> None:
    case = ElementTree.SubElement(
        suite,
        "testcase",
        classname=f"gridveil.loadtest.{of}",
        name=_NOT_XML.sub("?", name),
        time=f"{max(0.0, took):.3f}",
    )
    if why:
        ElementTree.SubElement(case, "failure", message=_NOT_XML.sub("?", why), type=of)
