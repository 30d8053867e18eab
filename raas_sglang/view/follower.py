"""Takes in what is watched: a server's trace stream, or a file."""

import threading
import time
import urllib.error
from pathlib import Path

import msgspec

from raas_sglang.trace import listen
from raas_sglang.view.backlog import Backlog
from raas_sglang.view.book import Book
from raas_sglang.view.record import Record, RecordWriter, Words, read_records
from raas_sglang.view.server import WatchedServer
from raas_sglang.view.tracker import Tracker
from raas_sglang.view.words import Dictionary

_PATIENCE_S = 1.0


class Follower:
    """Owns what the page shows, and follows a server if there is one.

    Args:
        server: The server to follow; None to show a file alone.
        record: File to write to what is taken in; what it holds is shown first.
        replay: File to show.

    Raises:
        ValueError: a file is not one of records.
        FileNotFoundError: the file to show does not exist.

    Attributes:
        book: The requests.
        dictionary: The texts of their tokens.
        status: What the page says of the server, for people.
    """

    def __init__(
        self,
        server: WatchedServer | None,
        record: Path | None = None,
        replay: Path | None = None,
    ) -> None:
        self.book = Book()
        self._writer: RecordWriter | None = None
        self._writing = threading.Lock()
        self._server = server
        self._backlog = Backlog()
        self.dictionary = Dictionary(None if server is None else server.detokenize, self._keep)
        self.status = f"recorded in {replay}" if replay else ""
        for path in (record, replay):
            if path is not None and (path == replay or path.exists()):
                for item in read_records(path):
                    self._take(item)
        if record is not None:
            self._writer = RecordWriter(record)
        if server is not None:
            self.status = f"waiting for {server.url}"
            threading.Thread(target=self._follow, name="follow", daemon=True).start()

    def _take(self, item: Record) -> None:
        if isinstance(item, Words):
            self.dictionary.take(item)
        else:
            self.book.take(item)

    def _keep(self, item: Record) -> None:
        with self._writing:
            if self._writer is None:
                return
            try:
                self._writer.write(item)
            except OSError as error:
                self._writer = None
                self.status = f"no longer recorded: {error}"

    def _follow(self) -> None:
        assert self._server is not None, "runs only with it"
        while not (endpoints := self._endpoints(self._server)):
            time.sleep(_PATIENCE_S)
        self.status = f"listening to {self._server.url}"
        threading.Thread(
            target=self._receive, args=(endpoints,), name="receive", daemon=True
        ).start()
        tracker = Tracker(*self.book.known())
        try:
            while True:
                sample = tracker.take(*self._backlog.get())
                self.book.take(sample, time.time())
                for change in sample.changes:
                    self.dictionary.want(memoryview(change.token_ids).cast("i"))
                self._keep(sample)
        finally:
            self.status = "stopped by a fault that the log of the viewer names"

    def _receive(self, endpoints: list[str]) -> None:
        try:
            for message in listen(endpoints):
                self._backlog.put(message)
        except (RuntimeError, msgspec.MsgspecError) as error:
            self.status = f"stopped listening: {error}"

    def _endpoints(self, server: WatchedServer) -> list[str]:
        try:
            return server.endpoints()
        except urllib.error.HTTPError as error:
            self.status = f"{server.url} refuses to tell about itself: {error}"
        except OSError:
            self.status = f"waiting for {server.url}"
        except RuntimeError as error:
            self.status = str(error)
        return []
