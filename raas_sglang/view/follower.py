"""Takes in what is watched: a server's trace stream, or a file."""

import threading
import time
import urllib.error
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import msgspec

from raas_sglang.trace import Subscription
from raas_sglang.view.backlog import Backlog
from raas_sglang.view.book import Book
from raas_sglang.view.record import Record, RecordWriter, Words, read_records
from raas_sglang.view.server import NoTraceError, WatchedServer
from raas_sglang.view.tracker import Tracker
from raas_sglang.view.words import Dictionary

_PATIENCE_S = 1.0
_FAULT = "stopped by a fault that the log of the viewer names"
# Seconds without a message after which the server is asked whether it is still the one that it was.
_QUIET_S = 15.0


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
        self.dictionary = Dictionary(None if server is None else self._detokenize, self._keep)
        self._source, self._trouble = f"recorded in {replay}" if replay else "", ""
        self._ended = threading.Event()
        for path in (record, replay):
            if path is not None and (path == replay or path.exists()):
                for item in read_records(path):
                    self._take(item)
        if record is not None:
            self._writer = RecordWriter(record)
        if server is not None:
            self._source = f"waiting for {server.url}"
            for target in (self._follow, self._receive):
                name = target.__name__.strip("_")
                threading.Thread(target=target, args=(server,), name=name, daemon=True).start()

    @property
    def status(self) -> str:
        """What the page says of the server, for people."""
        return "; ".join(filter(None, (self._source, self._trouble)))

    def _detokenize(self, lists: Sequence[Sequence[int]]) -> list[str]:
        assert self._server is not None, "asked only with it"
        tokenizer = self._server.about().tokenizer
        if tokenizer != self.dictionary.tokenizer:
            raise ConnectionError(f"{self._server.url} has the tokenizer {tokenizer}")
        return self._server.detokenize(lists)

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
                self._trouble = f"no longer recorded: {error}"

    def _follow(self, server: WatchedServer) -> None:
        tracker = Tracker(*self.book.known())
        try:
            while True:
                sample = tracker.take(self._backlog.get().batch)
                self.book.take(sample, time.time())
                for change in sample.changes:
                    self.dictionary.want(memoryview(change.token_ids).cast("i"))
                self._keep(sample)
        finally:
            self._stop(_FAULT)

    def _receive(self, server: WatchedServer) -> None:
        """Passes messages on; asks the server anew when it is quiet, or is another one."""
        senders: dict[tuple[int, int], int] = {}
        is_connected, message = False, None
        why = _FAULT
        try:
            with closing(Subscription()) as subscription:
                while not self._ended.is_set():
                    if message is None:
                        is_connected = self._connect(subscription, server) or is_connected
                    if not is_connected:
                        time.sleep(_PATIENCE_S)
                        continue
                    message = subscription.receive(_QUIET_S)
                    if message is None:
                        continue
                    batch = message.batch
                    rank = batch.attn_dp_rank, batch.tp_rank
                    if senders.get(rank) != batch.server:
                        if not self._connect(subscription, server):
                            continue  # it may have other tokens now
                        senders[rank] = batch.server
                    self._source = f"listening to {server.url}"
                    self._backlog.put(message)
        except (RuntimeError, msgspec.MsgspecError) as error:
            why = f"stopped listening: {error}"
        finally:
            self._stop(why)

    def _stop(self, why: str) -> None:
        if not self._ended.is_set():
            self._source = why
            self._ended.set()

    def _connect(self, subscription: Subscription, server: WatchedServer) -> bool:
        """Listens to all ranks that a server has; returns whether it said which.

        Raises:
            RuntimeError: its tokens are others than those that are shown already.
        """
        try:
            about = server.about()
        except urllib.error.URLError as error:
            self._source = f"waiting for {server.url}"
            if isinstance(error, urllib.error.HTTPError):
                self._source = f"{server.url} refuses to tell about itself: {error}"
            return False
        except OSError as error:
            self._source = f"waiting for {server.url}: {error}"
            return False
        except NoTraceError as error:
            self._source = str(error)
            return False
        if self.dictionary.tokenizer not in ("", about.tokenizer):
            raise RuntimeError(
                f"the server must have the tokenizer {self.dictionary.tokenizer} of what is shown, "
                f"got {about.tokenizer}; start another viewer, with another file to record to"
            )
        self.dictionary.tokenizer = about.tokenizer
        subscription.connect(about.endpoints)
        self._source = f"listening to {server.url}"
        return True
