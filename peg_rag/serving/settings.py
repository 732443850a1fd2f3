"""The server's limits in one place, so that what a client can cost is known beforehand, and its language model."""

import ipaddress

from pydantic import BaseModel, ConfigDict, Field, HttpUrl, PositiveFloat, PositiveInt, SecretStr, field_validator

MIB = 1 << 20


class ServerSettings(BaseModel):
    """Limits and timeouts. Sizes are in bytes or characters, times in seconds.

    All clients together can make the server hold at most about `max_held_bytes` of request bodies, the same
    again in parsed form, and `max_queued_characters` of texts waiting to be embedded.
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
    """Open connections. A further one displaces one that is inactive, or is answered 429."""
    max_in_flight: PositiveInt = 256
    """Requests in progress; a further one is answered 429."""
    max_held_bytes: PositiveInt = 128 * MIB
    """Bytes of all request bodies in progress."""
    max_queued_characters: PositiveInt = 4_000_000
    """Characters of all texts waiting to be embedded."""
    max_wait_s: PositiveFloat = 30.0
    """An embedding request that would wait longer than this, at the recent rate, is answered 429."""
    search_threads: PositiveInt = 4
    max_waiting_searches: PositiveInt = 128
    write_threads: PositiveInt = 2
    """Concurrent deletions and uploads of small plain-text files."""
    max_waiting_writes: PositiveInt = 64
    conversion_threads: PositiveInt = 2
    """Concurrent uploads of other files, which keep no small write waiting."""
    max_waiting_conversions: PositiveInt = 64
    max_write_wait_s: PositiveFloat = 60.0
    """A write that has waited longer than this is answered 429."""
    small_upload_bytes: PositiveInt = 256 * 1024
    """A larger plain-text file waits its turn among the conversions."""

    header_timeout_s: PositiveFloat = 10.0
    """From the opening of a connection, or the first byte of a further request, to the end of the headers."""
    body_timeout_s: PositiveFloat = 30.0
    """For a body to arrive, plus a second for every `slowest_bytes_per_s` received; at most half of it in silence."""
    slowest_bytes_per_s: PositiveInt = 16_384
    write_timeout_s: PositiveFloat = 30.0
    """For a client to read a piece of the response."""
    request_timeout_s: PositiveFloat = 600.0
    """From the headers of a request to the end of its response."""
    keep_alive_s: PositiveInt = 75
    """For an idle connection. Longer than most clients and load balancers keep theirs (5 to 60 s), so that they close
    it first: otherwise a request would now and then meet a connection that the server is closing."""
    drain_timeout_s: PositiveInt = 30
    """After SIGTERM, for requests in flight to finish."""
    conversion_timeout_s: PositiveFloat = 60.0
    """For an uploaded file to be read, in a separate process."""


class LanguageModelSettings(BaseModel):
    """A chat model behind an OpenAI-compatible endpoint: OpenAI, Ollama, vLLM and many others. Times in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    base_url: HttpUrl
    """The base URL of OpenAI's clients, such as `http://localhost:11434/v1`."""
    model: str = Field(min_length=1, max_length=200)
    api_key: SecretStr = SecretStr("")
    """Sent as a Bearer token; empty for an endpoint without keys."""
    connect_timeout_s: PositiveFloat = 10.0
    silence_timeout_s: PositiveFloat = 60.0
    """The longest time between two pieces of the answer. The first comes late where the model runs on a CPU."""
    answer_timeout_s: PositiveFloat = 300.0
    """For a whole answer."""
    max_at_once: PositiveInt = 8
    """Answers being written; a further one is answered 429."""

    @field_validator("base_url")
    @classmethod
    def _check_bare_url(cls, url: HttpUrl) -> HttpUrl:
        if url.username or url.password or url.query or url.fragment:
            raise ValueError("expected a plain URL such as http://localhost:11434/v1; the key has its own setting")
        return url

    @field_validator("api_key")
    @classmethod
    def _check_key(cls, key: SecretStr) -> SecretStr:
        if not all("!" <= c <= "~" for c in key.get_secret_value()):
            raise ValueError("expected printable ASCII characters without spaces: the key is sent in a header")
        return key

    @property
    def completions_url(self) -> str:
        return f"{str(self.base_url).rstrip('/')}/chat/completions"

    @property
    def host(self) -> str:
        """The host that receives the texts, as shown to users."""
        return self.base_url.host or ""

    @property
    def local(self) -> bool:
        """Whether the endpoint is on this machine, so that no text leaves it."""
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return self.host == "localhost"
