"""`ServerSettings`: every limit of the server in one place, so that what a client can cost is known beforehand."""

from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt

MIB = 1 << 20


class ServerSettings(BaseModel):
    """Limits and time-outs. Sizes are in bytes or characters, times in seconds.

    The worst a set of clients can make the server hold is about `max_held_bytes` of request bodies, as much again of
    their parsed form, and `max_queued_characters` of texts waiting to be embedded.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    private: bool = False
    """Reading needs a key too, not only writing. Health checks stay open."""

    max_items: PositiveInt = 2048
    """Texts in one embedding request."""
    max_text_characters: PositiveInt = 100_000
    """Characters of one text to embed."""
    max_total_characters: PositiveInt = 1_000_000
    """Characters of all texts of one embedding request."""
    max_body_bytes: PositiveInt = 8 * MIB
    """A JSON body."""
    max_upload_bytes: PositiveInt = 32 * MIB
    """A multipart body with the files in it."""
    max_upload_files: PositiveInt = 16

    max_connections: PositiveInt = 1024
    """Open sockets; one more is answered 429 and closed."""
    max_in_flight: PositiveInt = 256
    """Requests being answered; one more is answered 429."""
    max_held_bytes: PositiveInt = 128 * MIB
    """Request bodies being read or worked on, together."""
    max_queued_characters: PositiveInt = 4_000_000
    """Texts waiting to be embedded, together."""
    max_wait_s: PositiveFloat = 30.0
    """An embedding request that would wait longer than this, at the rate seen lately, is answered 429."""
    search_threads: PositiveInt = 4
    max_waiting_searches: PositiveInt = 128
    max_waiting_writes: PositiveInt = 8

    header_timeout_s: PositiveFloat = 10.0
    """From a connection's opening, or a further request's first byte, to the end of its headers."""
    body_timeout_s: PositiveFloat = 30.0
    """For a body to arrive, plus a second for every `slowest_bytes_per_s` received; half of it without any byte."""
    slowest_bytes_per_s: PositiveInt = 16_384
    write_timeout_s: PositiveFloat = 30.0
    """For a client to take a piece of the answer."""
    request_timeout_s: PositiveFloat = 600.0
    """For everything from the headers to the end of the answer."""
    keep_alive_s: PositiveInt = 5
    drain_timeout_s: PositiveInt = 30
    """After SIGTERM, for requests in flight to finish."""
    conversion_timeout_s: PositiveFloat = 60.0
    """For an uploaded file to be read, in a process of its own."""
