"""dbt packages, fetched by the worker: what a project's package-lock.yml names, from allowed hosts, each byte kept.

The child that runs dbt has no network. An archive is stored in the lake under its hash, and which hash a version has is
written down once: a rerun gets the same bytes, whatever became of the hub.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha1
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Final
from urllib.parse import urlsplit

from pydantic import ValidationError

from runner.engines.dbt_files import install_path, listed_packages, read_yaml
from runner.log import logger
from runner.model.errors import DataError, InfrastructureError, LogicError, RunnerError, SpecError
from runner.model.hosts import HostRules
from runner.model.manifest import PackageRecord
from runner.model.names import hub_package_key, package_archive_key, tarball_package_key
from runner.model.spec import Source
from runner.model.strict import Strict, parse_json
from runner.ports import LogicSource, Objects

MAX_ARCHIVE_BYTES: Final = 50 * 1024**2
MAX_UNPACKED_BYTES: Final = 200 * 1024**2
MAX_FILES: Final = 20_000
MAX_PATH_CHARS: Final = 1000
_MAX_PART_BYTES: Final = 255
"""Linux opens no file whose name is longer (limits.h, NAME_MAX)."""
MAX_PACKAGES: Final = 200
FETCH_S: Final = 300.0
"""For one file, tries and waits included."""

_LOCK = "package-lock.yml"
_KINDS = ("package", "git", "tarball", "local", "private")
_AGAIN = "run `dbt deps` and commit package-lock.yml; or commit the packages themselves, in packages-install-path"
_HUB_PACKAGE = re.compile(r"[A-Za-z0-9_-]+/[A-Za-z0-9_-]+")
_HUB_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+-]{0,63}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")

Fetch = Callable[[Source, Path], Path]
"""Brings the file at a source's URL to a folder, and says where it is. Raises `RunnerError`."""


class DbtPackages:
    """Implements `Packages`. `hub` is the index's address, without a slash at its end."""

    def __init__(self, objects: Objects, logic: LogicSource, *, hub: str, allowed: HostRules, fetch: Fetch) -> None:
        self._objects = objects
        self._logic = logic
        self._hub = hub
        self._allowed = allowed
        self._fetch = fetch

    def install(self, project: Path, *, clone: Path, scratch: Path) -> tuple[PackageRecord, ...]:
        """What the commit does not hold, by its lock; local packages are for dbt's own side to link."""
        listed = [entry for entry in listed_packages(project, clone=clone) if "local" not in entry]
        for entry in listed:
            _refuse_private(entry)
        # A local package lists what the project lists as well: it is there once.
        wanted = sorted({_called(entry) for entry in listed})
        if not wanted:
            return ()
        folder = _inside(install_path(project), clone)
        held = {each.parent.name for each in folder.glob("*/dbt_project.yml")}
        lock = project / _LOCK
        if not lock.is_file():
            if len(held) >= len(wanted):
                return ()
            names = ", ".join(wanted)
            raise LogicError(f"{_LOCK}: expected it beside the list of {names}, got none", subject=_LOCK, hint=_AGAIN)
        document = read_yaml(lock)
        locked = [_Locked.parse(entry) for entry in _entries(document) if "local" not in entry]
        if len(held) >= max(len(wanted), len(locked)):
            return ()
        _require_agreement(document, wanted=listed_packages(project))
        if len(locked) > MAX_PACKAGES:
            raise LogicError(f"{_LOCK}: expected at most {MAX_PACKAGES} packages, got {len(locked)}", subject=_LOCK)
        scratch.mkdir(parents=True, exist_ok=True)
        made: list[PackageRecord] = []
        for each in locked:
            record = None if each.name in held else self._install(each, folder, scratch, made)
            made += [record] if record else []
        return tuple(made)

    def _install(
        self, locked: _Locked, folder: Path, scratch: Path, made: Sequence[PackageRecord]
    ) -> PackageRecord | None:
        """None where the commit turns out to hold it already: an old lock tells no names."""
        room = Path(mkdtemp(dir=scratch))
        with _told_of(locked):
            if locked.kind == "git":
                source, sha256, unpacked = self._check_out(locked, room)
            else:
                archive, sha256, source = self._archive(locked, room)
                unpacked = _unpack(archive, room / "unpacked")
            _require_links_inside(unpacked)
            name = _project_name(unpacked)
            place = folder / name
            if name in [each.name for each in made]:
                raise LogicError(f"expected a project of its own name, got another {name!r}", hint=_AGAIN)
            if place.exists() or place.is_symlink():
                logger.info("package %s is in the commit already, as %s", locked.called, name)
                return None
            folder.mkdir(parents=True, exist_ok=True)
            unpacked.rename(place)
        logger.info("package %s is %s (sha256 %s)", name, locked.called, sha256 or "none: a commit")
        return PackageRecord(name=name, version=locked.version, source=source, sha256=sha256)

    # ------------------------------------------------------------ git

    def _check_out(self, locked: _Locked, room: Path) -> tuple[str, None, Path]:
        try:
            url = urlsplit(locked.address)
            port = url.port
        except ValueError as exc:  # brackets that hold no IPv6 address, a port that is none
            raise LogicError(f"expected an http(s) address, got {_shown(locked.address)}") from exc
        if url.scheme not in ("http", "https") or not url.hostname or url.username or url.password:
            raise LogicError(
                f"expected an http(s) address without user and password, got {_shown(locked.address)}",
                hint="git over ssh needs a key, and the runner has none; commit the package, or name an https address",
            )
        port = port or {"http": 80, "https": 443}[url.scheme]
        self._allowed.require_host(url.hostname, port, what="git", subject=_LOCK)
        if not _COMMIT.fullmatch(locked.version):
            raise LogicError(f"expected a commit of 40 hex digits as revision, got {locked.version!r}", hint=_AGAIN)
        # The logic's own way: the objects are verified, and archived for the day when the repository has lost them.
        self._logic.checkout(locked.address, locked.version, room / "git")
        source = locked.address + (f"#{locked.subdirectory}" if locked.subdirectory else "")
        return source, None, _inside(room / "git" / locked.subdirectory, room / "git")

    # ------------------------------------------------------------ archives

    def _archive(self, locked: _Locked, room: Path) -> tuple[Path, str, str]:
        """The archive's file, its hash and what it is recorded as: the bytes that this version has always had."""
        key, source = self._key(locked)
        known = self._objects.get(key)
        if known is None:
            self._keep(self._download(self._address(locked, room), room), key)
            known = self._objects.get(key)
        if known is None:
            raise InfrastructureError(f"object {self._objects.uri(key)}: expected what was just written, got none")
        kept = parse_json(_Kept, known, what=key)
        archive = room / "archive"
        try:
            self._objects.get_file(package_archive_key(kept.sha256), archive)
        except FileNotFoundError:
            # The lake has lost it: only the very same bytes will do.
            archive = self._download(self._address(locked, room), room)
            if (came := _sha256(archive)) != kept.sha256:
                raise LogicError(
                    f"expected the archive of sha256 {kept.sha256}, as first fetched, got one of {came}",
                    hint="the package was changed where it comes from: name another version, or commit the package",
                ) from None
            self._objects.put_file(package_archive_key(kept.sha256), archive)
        if (came := _sha256(archive)) != kept.sha256:
            raise InfrastructureError(
                f"object {package_archive_key(kept.sha256)}: expected bytes of that hash, got {came}"
            )
        return archive, kept.sha256, source

    def _key(self, locked: _Locked) -> tuple[str, str]:
        if locked.kind == "tarball":
            return tarball_package_key(locked.address), locked.address
        if not _HUB_PACKAGE.fullmatch(locked.address) or not _HUB_VERSION.fullmatch(locked.version):
            raise LogicError(f"expected `namespace/name` and one version, got {locked.called}", hint=_AGAIN)
        return hub_package_key(locked.address, locked.version), f"{self._hub}/{locked.address}"

    def _keep(self, archive: Path, key: str) -> None:
        """The archive first: what is written down under `key` then has its bytes. The first to write it decides."""
        sha256 = _sha256(archive)
        if not self._objects.exists(package_archive_key(sha256)):
            self._objects.put_file(package_archive_key(sha256), archive)
        self._objects.put_if_absent(key, _Kept(sha256=sha256).to_json().encode())

    def _address(self, locked: _Locked, room: Path) -> str:
        """Where the archive is; for a hub's package, as the hub says."""
        if locked.kind == "tarball":
            return locked.address
        index = f"{self._hub}/api/v1/{locked.address}.json"
        try:
            versions = json.loads(self._download(index, room).read_bytes())["versions"]
            return str(versions[locked.version]["downloads"]["tarball"])
        except (KeyError, TypeError, ValueError, RecursionError) as exc:
            raise LogicError(f"expected version {locked.version} with a tarball in {index}, got none") from exc

    def _download(self, url: str, room: Path) -> Path:
        try:
            return self._fetch(Source(name="package", url=url), Path(mkdtemp(dir=room)))
        except ValidationError as exc:
            raise LogicError(f"expected an http(s) URL, got {_shown(url)}") from exc


class _Kept(Strict):
    """What the lake knows of a package's version."""

    sha256: str


# ---------------------------------------------------------------- the project's own files


@dataclass(frozen=True, kw_only=True)
class _Locked:
    """An entry of package-lock.yml."""

    kind: str
    address: str
    version: str
    subdirectory: str
    name: str | None
    """The project's name, which locks by dbt before 1.10 do not tell."""

    @property
    def called(self) -> str:
        return f"{_shown(self.address)} {self.version}"

    @classmethod
    def parse(cls, entry: Mapping[str, Any]) -> _Locked:
        kinds = [kind for kind in _KINDS if kind in entry]
        if len(kinds) != 1:
            came = ", ".join(map(str, entry)) or "nothing"
            raise LogicError(f"{_LOCK}: expected one of {', '.join(_KINDS)} in an entry, got {came}", subject=_LOCK)
        _refuse_private(entry)
        _refuse_jinja(entry, _LOCK)
        (kind,) = kinds
        version = {"package": entry.get("version"), "git": entry.get("revision")}.get(kind, kind)
        name = entry.get("name")
        return cls(
            kind=kind,
            address=str(entry[kind]),
            version=str(version),
            subdirectory=str(entry.get("subdirectory") or ""),
            name=None if name is None else str(name),
        )


def _entries(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    entries = document.get("packages") or []
    if not isinstance(entries, list) or not all(isinstance(each, dict) for each in entries):
        raise LogicError(f"{_LOCK}: packages: expected a list of mappings, got {entries!r:.80}", subject=_LOCK)
    return entries


def _require_agreement(lock: Mapping[str, Any], *, wanted: list[Mapping[str, Any]]) -> None:
    """A lock is of the list that it was made from: dbt would make another one, and fetch other packages."""
    for entry in wanted:
        _refuse_jinja(entry, "packages.yml")
    expected, came = sha1_hash(wanted), lock.get("sha1_hash")
    if came != expected:
        raise LogicError(
            f"{_LOCK}: expected the lock of the packages that are listed (sha1_hash {expected}), got {came}",
            subject=_LOCK,
            hint=_AGAIN,
        )


_ABSENT: Mapping[str, Mapping[str, Any]] = {
    "package": {"install_prerelease": False},
    "git": {"revision": None, "subdirectory": None, "warn-unpinned": None},
    "private": {"provider": None, "revision": None, "subdirectory": None, "warn-unpinned": None},
}


def sha1_hash(entries: list[Mapping[str, Any]]) -> str:
    """As dbt-core 1.7 to 1.11 writes it into a lock (`dbt.task.deps._create_sha1_hash`), of a list without Jinja."""
    lines = []
    for entry in entries:
        absent = next((_ABSENT[kind] for kind in _KINDS if kind in entry and kind in _ABSENT), {})
        whole = {**absent, **entry, "unrendered": entry}
        try:
            lines.append(json.dumps(whole, sort_keys=True, default=str))
        except TypeError as exc:  # a date as a key, or keys that cannot be sorted
            raise LogicError(f"packages.yml: expected keys that are text, got {_called(entry)}: {exc}") from exc
    return sha1("\n".join(sorted(lines)).encode(), usedforsecurity=False).hexdigest()


def _refuse_private(entry: Mapping[str, Any]) -> None:
    if "private" in entry:
        raise LogicError(
            f"packages.yml: expected packages that can be fetched, got private: {entry['private']}",
            subject="packages.yml",
            hint="dbt's own platform alone knows where a private package is; name it by `git:`, or commit it",
        )


def _refuse_jinja(entry: Mapping[str, Any], file: str) -> None:
    if "{{" in str(entry) or "{%" in str(entry):
        raise LogicError(
            f"{file}: expected packages named without Jinja, got {_called(entry)}",
            subject=file,
            hint="the worker fetches them before dbt runs, and has none of its variables; or commit the packages",
        )


def _called(entry: Mapping[str, Any]) -> str:
    return next((_shown(str(entry[kind])) for kind in _KINDS if kind in entry), "an entry of no kind")


def _shown(address: str) -> str:
    """Without user and password."""
    return re.sub(r"^([a-z+]+://)?[^/]*@", r"\1…@", address)[:200]


def _inside(path: Path, folder: Path) -> Path:
    """Where `path` leads. Raises `LogicError` unless that is in `folder`: the worker writes there."""
    there = Path(os.path.realpath(path))
    if not _leads_into(there, folder):
        raise LogicError(f"expected a folder of the repository, got {path.name!r}, which leads out of it")
    if any(len(os.fsencode(part)) > _MAX_PART_BYTES for part in there.parts):
        raise LogicError(f"expected a folder of the repository, got a name of more than {_MAX_PART_BYTES} bytes")
    return there


def _leads_into(path: Path, folder: Path) -> bool:
    """Whether all links on the way end in `folder`, or at it."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


# ---------------------------------------------------------------- what came


@contextmanager
def _told_of(locked: _Locked) -> Iterator[None]:
    """Errors name the package. What its host answered, and where it may not come from, is the logic's to mend."""
    try:
        yield
    except (DataError, SpecError, LogicError) as exc:
        message = exc.message.removeprefix("source package: ")
        raise LogicError(f"package {locked.called}: {message}", subject=_LOCK, hint=exc.hint) from exc
    except RunnerError as exc:
        message = f"package {locked.called}: {exc.message.removeprefix('source package: ')}"
        raise type(exc)(message, subject=_LOCK, hint=exc.hint, retry_after_s=exc.retry_after_s) from exc


def _unpack(archive: Path, folder: Path) -> Path:
    """The one folder that a package's archive holds. Raises `LogicError` for what no package needs."""
    plain, folder = archive.with_name("plain.tar"), Path(os.path.realpath(folder))
    try:
        _gunzip(archive, plain)
        with tarfile.open(plain, "r:") as members:
            size, files, links = 0, 0, list[tarfile.TarInfo]()
            for member in members:
                size, files = size + member.size, files + 1
                if size > MAX_UNPACKED_BYTES or files > MAX_FILES:
                    raise _too_large()
                if len(member.name) > MAX_PATH_CHARS or not (member.isfile() or member.isdir() or member.issym()):
                    raise LogicError(f"expected an archive of files, folders and symlinks, got {member.name!r:.80}")
                if member.issym():
                    links.append(member)
                else:
                    _write(members, member, _place_of(member.name, folder))
            # Symlinks last: then no file can be written through one, whatever a crafted archive holds.
            for link in links:
                _link(link, folder)
    except (tarfile.TarError, zlib.error, EOFError, ValueError) as exc:
        raise LogicError(f"expected a tar archive of plain files, got: {exc}") from exc
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS):
            raise InfrastructureError(f"{folder}: expected to write there, got {exc.strerror}") from exc
        raise LogicError(f"expected a tar archive of files that can be written, got: {exc.strerror}") from exc
    plain.unlink()
    found = list(folder.iterdir()) if folder.is_dir() else []
    if len(found) != 1 or found[0].is_symlink() or not found[0].is_dir():
        names = ", ".join(sorted(each.name for each in found)[:5]) or "nothing"
        raise LogicError(f"expected an archive of one folder, got {names}")
    return found[0]


def _place_of(name: str, folder: Path) -> Path:
    """Where a member belongs. By hand: Python has tarfile's own filters from 3.11.4 on only."""
    place = Path(os.path.realpath(folder / name.lstrip("/")))
    if not _leads_into(place, folder):
        raise ValueError(f"{name!r:.80} is outside of it")
    return place


def _write(members: tarfile.TarFile, member: tarfile.TarInfo, place: Path) -> None:
    if member.isdir():
        place.mkdir(parents=True, exist_ok=True)
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    source = members.extractfile(member)
    if source is not None:
        with source, place.open("wb") as out:
            shutil.copyfileobj(source, out)


def _link(link: tarfile.TarInfo, folder: Path) -> None:
    place = folder / link.name.lstrip("/")
    if link.linkname.startswith("/"):
        raise ValueError(f"{link.name!r:.80} leads to {link.linkname!r:.80}")
    _place_of(str(Path(link.name.lstrip("/")).parent / link.linkname), folder)
    if len(link.linkname) > MAX_PATH_CHARS or os.path.realpath(place.parent) != os.path.normpath(place.parent):
        raise LogicError(f"expected symlinks in folders of the archive, got {link.name!r:.80}")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(link.linkname)


def _gunzip(archive: Path, plain: Path) -> None:
    """First, and with a limit: tarfile would read a header of any length into memory."""
    with archive.open("rb") as packed, plain.open("wb") as out:
        if packed.read(2) != b"\x1f\x8b":
            packed.seek(0)
            shutil.copyfileobj(packed, out)
            return
        packed.seek(0)
        unpacker = zlib.decompressobj(wbits=31)
        while chunk := packed.read(65536):
            while chunk and not unpacker.eof:
                out.write(unpacker.decompress(chunk, 1024**2))
                chunk = unpacker.unconsumed_tail
                # Headers and padding come on top of what the files hold.
                if out.tell() > 2 * MAX_UNPACKED_BYTES:
                    raise _too_large()
        if not unpacker.eof:
            raise EOFError("it is cut off")


def _too_large() -> LogicError:
    return LogicError(f"expected at most {MAX_FILES:,} files and {MAX_UNPACKED_BYTES:,} bytes unpacked, got more")


def _require_links_inside(folder: Path) -> None:
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place, name)
            if path.is_symlink() and not _leads_into(path, folder):
                to = str(path.readlink())
                raise LogicError(f"expected symlinks that stay in the package, got {name!r} to {to!r}")


def _project_name(folder: Path) -> str:
    if not (folder / "dbt_project.yml").is_file():
        raise LogicError("expected a dbt_project.yml in the package, got none")
    name = str(read_yaml(folder / "dbt_project.yml").get("name"))
    if not _NAME.fullmatch(name):
        raise LogicError(f"dbt_project.yml: name: expected letters, digits and underscores, got {name!r:.80}")
    return name


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
