"""JUnit XML for CI services: a test case for each site, and for each other place not judged.

It fails if the site is over its limit, or was not judged though it has one. The numbers are
properties of the test case.
"""

import re
from collections.abc import Sequence
from typing import IO
from xml.etree import ElementTree

from reludiag.diagnosis.diagnosis import Diagnosis
from reludiag.diagnosis.gate import TO_ALLOW, Check
from reludiag.measure.verdicts import VERDICTS
from reludiag.reports.run.formats import ReportOptions

WHOLE_MODEL = "(whole model)"

# Characters that XML 1.0 cannot represent, not even escaped (section 2.2).
_UNWRITABLE = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write_junit(diagnosis: Diagnosis, stream: IO[str], choices: ReportOptions) -> None:
    """What the gate says of each site."""
    stream.write(junit(diagnosis, choices.checks))


def junit(diagnosis: Diagnosis, checks: Sequence[Check]) -> str:
    """The XML text; `checks` are the gate's results for this diagnosis."""
    head = diagnosis.head
    skipped = [check for check in checks if check.unjudged is not None and not check.fails]
    counts = {
        "tests": str(len(checks)),
        "failures": str(sum(check.fails for check in checks)),
        "errors": "0",
        "skipped": str(len(skipped)),
    }
    suites = ElementTree.Element("testsuites", {"name": "reludiag", **counts})
    suite = ElementTree.SubElement(suites, "testsuite", {"name": _text(head.subject), **counts})
    about = ElementTree.SubElement(suite, "properties")
    for name, value in (("model", head.model), ("evidence", head.evidence)):
        ElementTree.SubElement(about, "property", {"name": name, "value": _text(value)})
    rows = {str(row["site"]): row for row in diagnosis.sites.to_dict("records")}
    for check in checks:
        case = ElementTree.SubElement(
            suite,
            "testcase",
            {"classname": _text(head.model), "name": _name(check), "time": "0"},
        )
        numbers = {"units": check.units or 0, "lost": check.lost}
        row = rows.get(check.site or "")
        if row is not None:
            numbers |= {verdict: int(row[verdict]) for verdict in VERDICTS}
            numbers["samples"] = int(row["samples"])
        properties = ElementTree.SubElement(case, "properties")
        for name, number in numbers.items():
            ElementTree.SubElement(properties, "property", {"name": name, "value": str(number)})
        reasons = [check.sentence] if check.exceeded else []
        if check.fails_unjudged and check.unjudged is not None:
            reasons.append(f"{check.unjudged.sentence} {TO_ALLOW}")
        if reasons:
            ElementTree.SubElement(case, "failure", {"message": _text(" ".join(reasons))})
        elif check.unjudged is not None:
            message = _text(check.unjudged.sentence)
            ElementTree.SubElement(case, "skipped", {"message": message})
    ElementTree.indent(suites)
    text = ElementTree.tostring(suites, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'


def _name(check: Check) -> str:
    if check.site is None:
        return WHOLE_MODEL
    return _text(check.site or (check.unjudged.reason if check.unjudged else ""))


def _text(text: str) -> str:
    return _UNWRITABLE.sub("\ufffd", text)
