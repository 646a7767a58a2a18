"""Printable: text without the control characters that a terminal would execute."""

import re

# C0 and C1 control characters, but for the line feed; and those that change the direction of
# writing.
_COMMANDS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """The text without characters that could move the cursor, colour the screen, or rename the
    window.

    Names of modules are arbitrary, and a recording may come from anybody.
    """
    return _COMMANDS.sub("", text)
