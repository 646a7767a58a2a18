"""HTML: whole reports as one page that needs nothing else, and short forms for notebooks.

`content`, `charts`, `heat_maps` and `sweep_content` compute what is shown, the templates lay it
out, and `report.js` draws it.
"""
