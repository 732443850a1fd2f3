"""Fetches the documents of this set that are not in the repository: they are in packages of Debian 12.

    python fetch.py

Needs `apt-get` with Debian's package archive, and `dpkg-deb`. A package is downloaded to a temporary folder and never
installed; only the named file is taken from it, and is kept if its checksum is the one below.
"""

import gzip
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

FILES = Path(__file__).resolve().parent / "files"
_TEX = "usr/share/doc/texlive-doc"


@dataclass(frozen=True)
class Document:
    """A file of a package. `member`: its path there; `sha256`: of the file as it is kept, unpacked."""

    name: str
    package: str
    version: str
    member: str
    sha256: str

    @property
    def path(self) -> Path:
        return FILES / self.name

    def is_fetched(self) -> bool:
        return self.path.is_file() and hashlib.sha256(self.path.read_bytes()).hexdigest() == self.sha256


DOCUMENTS = (
    Document(
        "debian-reference.zh-cn.pdf",
        "debian-reference-zh-cn",
        "2.100",
        "usr/share/debian-reference/debian-reference.zh-cn.pdf",
        "93697b9d4a024eaf5adb2def25a646740fad405cb245032a6414222ae0e71bb1",
    ),
    Document(
        "install.zh_CN.txt",
        "installation-guide-amd64",
        "20230508+deb12u1",
        "usr/share/doc/installation-guide-amd64/zh_CN/install.zh_CN.txt.gz",
        "50ba9fcd5823f6cc84a8bc75ede1b9fd23aeadbfd69a2eb74219db42300678dc",
    ),
    Document(
        "calc-shortcuts.html",
        "libreoffice-help-zh-cn",
        "4:7.4.7-1+deb12u14",
        "usr/share/libreoffice/help/zh-CN/text/scalc/04/01020000.html",
        "cd265609bcc29148f9d243eecfec9b4ed2481176b414f01b271229275696b2a8",
    ),
    Document(
        "lshort-zh-cn.pdf",
        "texlive-lang-chinese",
        "2022.20230122-1",
        f"{_TEX}/latex/lshort-chinese/lshort-zh-cn.pdf",
        "4f6b11c04054fcdbb23d6d3c8527b145d27c21abb9efa7e57f96be2b7def484c",
    ),
    Document(
        "fduthesis.pdf",
        "texlive-lang-chinese",
        "2022.20230122-1",
        f"{_TEX}/latex/fduthesis/fduthesis.pdf",
        "b92af9f47649fc7281df0cebfd00312350b40e1baf73f0c433e8e3467a06d79c",
    ),
    Document(
        "nanicolle-doc-zh.pdf",
        "texlive-lang-chinese",
        "2022.20230122-1",
        f"{_TEX}/xelatex/nanicolle/nanicolle-doc-zh.pdf",
        "34c6e2ac32771853daa5aef1f205454eff916e561d61d8bb61fb0f4b75d18a04",
    ),
)


def main() -> None:
    missing = [document for document in DOCUMENTS if not document.is_fetched()]
    for tool in ("apt-get", "dpkg-deb") if missing else ():
        if shutil.which(tool) is None:
            sys.exit(f"{tool} is not here; run this on Debian 12, and copy its files/ folder to this machine")
    for package, version in sorted({(document.package, document.version) for document in missing}):
        fetch_package(package, version, [document for document in missing if document.package == package])
    print(f"{FILES}: {len(missing)} documents fetched, {len(DOCUMENTS) - len(missing)} were there")


def fetch_package(package: str, version: str, documents: list[Document]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        archive = download_package(package, version, Path(folder))
        contents = read_members(archive, {document.member for document in documents})
    for document in documents:
        content = contents.get(document.member, b"")
        if document.member.endswith(".gz") and content:
            content = gzip.decompress(content)
        checksum = hashlib.sha256(content).hexdigest()
        if checksum != document.sha256:
            sys.exit(
                f"{document.member} of {archive.name} has the checksum {checksum}, expected {document.sha256}; "
                f"this set was made from {package} {version} of Debian 12"
            )
        partial = document.path.with_name(f"{document.name}.part")
        partial.write_bytes(content)
        partial.replace(document.path)


def download_package(package: str, version: str, folder: Path) -> Path:
    """The package of this version, or where the archive has replaced it, the one that it offers now."""
    for name in (f"{package}={version}", package):
        result = subprocess.run(["apt-get", "download", name], cwd=folder, capture_output=True, text=True, check=False)
        archives = list(folder.glob("*.deb"))
        if result.returncode == 0 and archives:
            return archives[0]
    sys.exit(f"apt-get cannot download {package}: {result.stderr.strip()}; it may need `apt-get update` first")


def read_members(archive: Path, names: Iterable[str]) -> dict[str, bytes]:
    """The named files of a package, by their paths."""
    contents: dict[str, bytes] = {}
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(archive)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
            for entry in tar:
                file = tar.extractfile(entry) if entry.name.removeprefix("./") in names else None
                if file is not None:
                    contents[entry.name.removeprefix("./")] = file.read()
    return contents


if __name__ == "__main__":
    main()
