"""What the page is made of, as it is kept in a file: what changed, not whole token tables.

A file is a line that names the format, and then records: 4 bytes (big endian) of length and that
much MessagePack. A record that was cut off, since its writer was stopped, is as if not written.
"""

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import msgspec

_FORMAT = b"raas-sglang view 1\n"
_LENGTH_BYTES = 4


class TableChange(msgspec.Struct, array_like=True, frozen=True):
    """What the heads of one rank did since the sample before. Heads count through its layers.

    Attributes:
        step: Decode step after which the sample was taken.
        layers: Y.
        heads: H, KV heads of this rank.
        gone: [2, *] int32. Head and generated token, for each that was given up.
        back: [2, *] int32. Likewise, for each that was computed again after a retraction.
        used: [*] int32. Tokens that a quarter or more of those heads used that hold them.
    """

    step: int
    layers: int
    heads: int
    gone: bytes
    back: bytes
    used: bytes


class Change(msgspec.Struct, array_like=True, frozen=True):
    """What became of one request.

    Attributes:
        key: The page's name of it, unique in a file.
        rid: SGLang's name of it.
        policy: Name of its policy.
        budget: L, in tokens; None if it keeps every token.
        prompt_len: P, in tokens.
        logical_len: Tokens of its text that were computed.
        resident_len: Slots that it holds.
        text_from: Position from which on its text is ``token_ids``; before it, nothing changed.
            None if the message does not say.
        token_ids: [*] int32.
        table: What its heads did; None in a message that does not say.
        finished: Why it has ended; None while it runs.
    """

    key: int
    rid: str
    policy: str
    budget: int | None
    prompt_len: int
    logical_len: int
    resident_len: int
    text_from: int | None
    token_ids: bytes
    table: TableChange | None = None
    finished: str | None = None


class Sample(msgspec.Struct, array_like=True, tag=True, frozen=True):
    """One message of a trace stream.

    Attributes:
        ts: Seconds since the epoch at which its step was launched.
        replica: Replica of the model.
        tp_rank: Rank among those that share the KV heads.
        changes: One entry for each request that it tells of.
        is_step: Whether a request of this replica that it does not tell of is not running.
        is_restart: Whether the server has started anew, so that what ran before does no more.
        server: As of `TraceBatch`.
    """

    ts: float
    replica: int
    tp_rank: int
    changes: list[Change]
    is_step: bool
    is_restart: bool
    server: int = 0


class Words(msgspec.Struct, array_like=True, tag=True, frozen=True):
    """Texts of tokens, or of tokens that only together are a character.

    Attributes:
        texts: Token ids and their text.
        tokenizer: Path or name of the tokenizer that has them.
    """

    texts: list[tuple[tuple[int, ...], str]]
    tokenizer: str = ""


Record = Sample | Words


class RecordWriter:
    """Appends records to a file.

    Args:
        path: The file; what it holds stays, except a record that was cut off.

    Raises:
        ValueError: it holds something else, or another viewer writes to it.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("r+b" if path.exists() else "w+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"{path} must be written by one viewer alone, got two; name another file"
            ) from error
        whole = sum(size for size, _ in _read(path))
        self._file.truncate(len(_FORMAT) + whole if whole else 0)
        self._file.seek(0, os.SEEK_END)
        if not whole:
            self._file.write(_FORMAT)
        self._encoder = msgspec.msgpack.Encoder()

    def write(self, record: Record) -> None:
        """Writes a record through to the operating system."""
        data = self._encoder.encode(record)
        self._file.write(len(data).to_bytes(_LENGTH_BYTES, "big") + data)
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> "RecordWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def read_records(path: Path) -> Iterator[Record]:
    """Yields the records of a file.

    Raises:
        ValueError: it is not a file of records.
    """
    return (record for _, record in _read(path))


def _read(path: Path) -> Iterator[tuple[int, Record]]:
    """Yields each record with its bytes in the file."""
    decoder = msgspec.msgpack.Decoder(Record)
    with path.open("rb") as file:
        found = file.read(len(_FORMAT))
        if found != _FORMAT[: len(found)]:
            raise ValueError(
                f"{path} must be what --record wrote, got {found!r}; name another file"
            )
        while len(head := file.read(_LENGTH_BYTES)) == _LENGTH_BYTES:
            begin = file.tell() - _LENGTH_BYTES
            data = file.read(int.from_bytes(head, "big"))
            if len(data) < int.from_bytes(head, "big"):
                return
            try:
                record = decoder.decode(data)
            except msgspec.MsgspecError as error:
                raise ValueError(
                    f"{path} must be what --record wrote, got something else after {begin} bytes "
                    f"({error}); cut it there (truncate -s {begin} FILE), or name another file"
                ) from error
            yield _LENGTH_BYTES + len(data), record
