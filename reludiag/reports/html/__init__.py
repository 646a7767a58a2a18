"""HTML: the whole report as one page that needs nothing else, and a short form for notebooks.

`content`, `charts`, `heat_maps` and `sweep` compute what is shown, the templates lay it out, and
`report.js` draws it.
"""

from reludiag.reports.html.page import effects_fragment, effects_page, fragment, page

__all__ = ["effects_fragment", "effects_page", "fragment", "page"]
