"""Text from tokens as they come, never half a character and never part of a stop string. Knows no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class IncrementalTranscript:
    """Decodes a window of recent tokens, so that the cost of a token does not grow with the text.

    A tokenizer may need neighbours to decode a token (spaces, bytes of one character), so the window starts at the
    last boundary where its text was complete; the idea is that of vLLM's and TGI's incremental detokenizers.
    """

    def __init__(self, decode: Callable[[list[int]], str], stop: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stop = tuple(s for s in stop if s)
        self._tokens: list[int] = []
        self._window = 0  # first token of the window
        self._settled = 0  # tokens whose text is in `_known`
        self._known = ""  # all text so far, including what is held back
        self._sent = 0  # characters of `_known` handed out
        self.stopped = False

    @property
    def text(self) -> str:
        """What was handed out."""
        return self._known[: self._sent]

    def push(self, token: int) -> str:
        """Text that this token makes certain."""
        self._tokens.append(token)
        before = self._decode(self._tokens[self._window : self._settled])
        now = self._decode(self._tokens[self._window :])
        if now.endswith(_INCOMPLETE):
            return ""
        self._known += now[len(before) :]
        self._window, self._settled = self._settled, len(self._tokens)
        return self._hand_out(final=False)

    def close(self) -> str:
        """The rest: incomplete characters as they are, and what looked like the start of a stop string."""
        before = self._decode(self._tokens[self._window : self._settled])
        self._known += self._decode(self._tokens[self._window :])[len(before) :]
        self._window = self._settled = len(self._tokens)
        return self._hand_out(final=True)

    def _hand_out(self, *, final: bool) -> str:
        if self.stopped:
            return ""
        hits = [at for at in (self._known.find(s, max(0, self._sent - len(s))) for s in self._stop) if at >= 0]
        if hits:
            self.stopped = True
            end = max(self._sent, min(hits))
        else:
            end = len(self._known) - (0 if final else self._held_back())
        text = self._known[self._sent : end]
        self._sent = end
        return text

    def _held_back(self) -> int:
        """Characters at the end that may be the start of a stop string."""
        longest = max(map(len, self._stop), default=1) - 1
        limit = min(longest, len(self._known) - self._sent)
        return next((n for n in range(limit, 0, -1) if any(s.startswith(self._known[-n:]) for s in self._stop)), 0)
