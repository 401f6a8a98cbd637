"""What a status may say: its details travel in trailing metadata, which has a limit, percent-encoded."""

from __future__ import annotations

MAX_DETAILS_BYTES = 4096  # encoded; beyond 8 KiB of metadata a client may, beyond 16 it must, see RESOURCE_EXHAUSTED
_CUT = " ... (cut)"


def details_of(message: str) -> str:
    """The message, or its beginning where all of it would cost the client the status itself."""
    left = MAX_DETAILS_BYTES
    for at, letter in enumerate(message):
        left -= 1 if " " <= letter <= "~" and letter != "%" else 3 * len(letter.encode(errors="replace"))
        if left < 0:
            return message[:at] + _CUT
    return message
