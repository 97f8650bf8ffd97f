"""The user's browser, where there is a display."""

import os
import sys
import webbrowser


def open_page(url: str) -> bool:
    """Open a page in a browser; return False where there is no display or no browser."""
    has_display = sys.platform == "darwin" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
    return has_display and webbrowser.open(url)
