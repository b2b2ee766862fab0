"""Which generation answers: the newest of an index folder, one beside it of another encoder, and the way back.

A change is one assignment. A request takes the generation once, at its beginning, and is answered by it alone.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Sequence

from siglip_jax.errors import UserError
from tools.serving.served import Generation, GenerationSource

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Standing:
    """What answers, what is compared with it, and what answered before."""

    active: Generation
    candidate: Generation | None = None
    previous: Generation | None = None


class Generations:
    """Threads may share one.

    Attributes:
      standing: read it once for a request.
      broken: {source: what is wrong with its newest generation}; the older one goes on.
    """

    def __init__(self, source: GenerationSource, candidate: GenerationSource | None = None):
        self._sources = {each.name: each for each in (source, candidate) if each is not None}
        loaded = {name: each.load() for name, each in self._sources.items()}
        self.standing = Standing(active=loaded[source.name], candidate=loaded[candidate.name] if candidate else None)
        self.broken: dict[str, str] = {}
        self._seen = {name: generation.stamp for name, generation in loaded.items()}
        self._change = threading.Lock()

    @property
    def sources(self) -> Sequence[str]:
        return tuple(self._sources)

    def poll(self) -> None:
        """Takes up what is new, and tells what is broken. Something broken is tried once, until it changes again."""
        for name, source in self._sources.items():
            with self._change:
                stamp = source.stamp()
                if stamp != self._seen[name]:
                    self._seen[name] = stamp
                    try:
                        self._take(source.load())
                    except Exception as error:
                        self._told(name, error)

    def reload(self, name: str = "index", *, folder: str | None = None) -> None:
        """Reads a source again, whether it changed or not.

        Args:
          folder: name of another folder, beside the one that is served.

        Raises:
          UserError: the newest is broken or of another encoder, or no such folder; what answered goes on answering.
        """
        with self._change:
            source = self._sources[name]
            try:
                self._take(source.load(folder))
            except Exception as error:
                if folder is not None:  # what is served is whole, whatever is in the folder that was asked for
                    raise UserError(_words(error)) from error
                self._seen[name] = source.stamp()
                raise UserError(self._told(name, error)) from error

    def switch(self) -> None:
        """The candidate answers, and what answered is the candidate; UserError where there is none."""
        with self._change:
            now = self.standing
            if now.candidate is None:
                raise UserError("no candidate to switch to; start the server with --candidate")
            self.standing = Standing(active=now.candidate, candidate=now.active, previous=now.active)

    def rollback(self) -> None:
        """What answered before answers again; once more goes forth again. UserError where nothing did."""
        with self._change:
            now = self.standing
            if now.previous is None:
                raise UserError("nothing answered before this generation")
            candidate = now.candidate
            if candidate is not None and candidate.source == now.previous.source != now.active.source:
                candidate = now.active
            self.standing = Standing(active=now.previous, candidate=candidate, previous=now.active)

    def _take(self, new: Generation) -> None:
        self._seen[new.source] = new.stamp
        self.broken.pop(new.source, None)
        now = self.standing
        if now.active.source != new.source:
            self.standing = dataclasses.replace(now, candidate=new)
        elif now.active.stamp != new.stamp:
            self.standing = dataclasses.replace(now, active=new, previous=now.active)
            _log.info("generation %s answers, of %d items", new.name, len(new.answers.index))

    def _told(self, name: str, error: Exception) -> str:
        self.broken[name] = _words(error)
        _log.error("%s: the newest generation is broken, the older one goes on: %s", name, self.broken[name])
        return self.broken[name]


def _words(error: Exception) -> str:
    said = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return " ".join(said.split())[:500]
