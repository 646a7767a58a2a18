"""Printable: text from elsewhere, without the characters that a terminal takes as commands."""

import re

# C0 and C1 control characters, but for the line feed; and those that turn the direction of writing.
_COMMANDS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """The text without what could move the cursor, colour the screen, or rename the window.

    A module may be called anything, and a recording may be anybody's.
    """
    return _COMMANDS.sub("", text)
