"""`ServerSettings`: every limit of the server in one place, so that what a client can cost is known beforehand.

`LanguageModelSettings`, where answers are written by a language model: which one, and how long to wait for it.
"""

import ipaddress

from pydantic import BaseModel, ConfigDict, Field, HttpUrl, PositiveFloat, PositiveInt, SecretStr, field_validator

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
    write_threads: PositiveInt = 2
    """Deletions, and small files of plain text, at once."""
    max_waiting_writes: PositiveInt = 64
    conversion_threads: PositiveInt = 2
    """Other uploads that are read and embedded at once; they keep no small write waiting."""
    max_waiting_conversions: PositiveInt = 64
    max_write_wait_s: PositiveFloat = 60.0
    """A write that has waited longer than this is answered 429."""
    small_upload_bytes: PositiveInt = 256 * 1024
    """A larger text waits its turn among the conversions."""

    header_timeout_s: PositiveFloat = 10.0
    """From a connection's opening, or a further request's first byte, to the end of its headers."""
    body_timeout_s: PositiveFloat = 30.0
    """For a body to arrive, plus a second for every `slowest_bytes_per_s` received; half of it without any byte."""
    slowest_bytes_per_s: PositiveInt = 16_384
    write_timeout_s: PositiveFloat = 30.0
    """For a client to take a piece of the answer."""
    request_timeout_s: PositiveFloat = 600.0
    """For everything from the headers to the end of the answer."""
    keep_alive_s: PositiveInt = 75
    """For an idle connection; longer than most clients and load balancers keep theirs (5 to 60 s), so that it is they
    who let go: a request would else now and then meet a connection that is just being closed."""
    drain_timeout_s: PositiveInt = 30
    """After SIGTERM, for requests in flight to finish."""
    conversion_timeout_s: PositiveFloat = 60.0
    """For an uploaded file to be read, in a process of its own."""


class LanguageModelSettings(BaseModel):
    """A chat model behind an OpenAI-compatible endpoint: OpenAI, Ollama, vLLM and many others. Times in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    base_url: HttpUrl
    """As OpenAI's clients take it, such as `http://localhost:11434/v1`."""
    model: str = Field(min_length=1, max_length=200)
    api_key: SecretStr = SecretStr("")
    """Sent as a Bearer token; empty where the endpoint wants none."""
    connect_timeout_s: PositiveFloat = 10.0
    silence_timeout_s: PositiveFloat = 60.0
    """The longest time without a word. The first comes late where the model runs on a CPU."""
    answer_timeout_s: PositiveFloat = 300.0
    """For a whole answer."""
    max_at_once: PositiveInt = 8
    """Answers being written; one more is answered 429."""

    @field_validator("base_url")
    @classmethod
    def _bare(cls, url: HttpUrl) -> HttpUrl:
        if url.username or url.password or url.query or url.fragment:
            raise ValueError("expected a bare address such as http://localhost:11434/v1; a key has its own setting")
        return url

    @field_validator("api_key")
    @classmethod
    def _sendable(cls, key: SecretStr) -> SecretStr:
        if not all("!" <= c <= "~" for c in key.get_secret_value()):
            raise ValueError("expected printable ASCII characters without spaces: the key travels in a header")
        return key

    @property
    def completions_url(self) -> str:
        return f"{str(self.base_url).rstrip('/')}/chat/completions"

    @property
    def host(self) -> str:
        """Where the texts go, as it is shown to readers."""
        return self.base_url.host or ""

    @property
    def local(self) -> bool:
        """Whether the endpoint is this machine, so that no text leaves it."""
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return self.host == "localhost"
