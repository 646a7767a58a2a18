"""HTML: the whole report as one page that needs nothing else, and a short form for notebooks.

`content` and `charts` compute what is shown, the templates lay it out, `report.js` draws it.
"""

from reludiag.reports.html.page import fragment, page

__all__ = ["fragment", "page"]
