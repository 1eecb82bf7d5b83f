"""A chaincode package: a folder whose id stands in genesis (design D6).

The id is SHA-256 over the manifest and every `*.py`, sorted by POSIX path. The bytes that are hashed are the bytes that
are compiled. Contracts run under a short list of builtins and may import `bcami.contract` only; `bcami.contract.syntax`
says what their text must not hold.
"""

import builtins
import sys
import tomllib
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import msgspec

import bcami.contract
from bcami.contract.api import Contract
from bcami.contract.syntax import BUILTINS, check_syntax
from bcami.errors import InputError
from bcami.model.signing import prefixed, u64

MANIFEST: Final = "manifest.toml"
PACKAGE_BYTES_MAX: Final = 4 * 1024 * 1024


class ManifestContract(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    file: str
    class_name: str = msgspec.field(name="class")


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    version: str
    contracts: tuple[ManifestContract, ...]


class Package(msgspec.Struct, frozen=True):
    """A loaded package."""

    package_id: bytes
    manifest: Manifest
    contracts: tuple[type[Contract], ...]


def package_id(folder: Path) -> bytes:
    """Return the id of the package in a folder. Raises InputError when there is none."""
    return _id_of(_read_files(folder))


def load_package(folder: Path, expected_id: bytes | None) -> Package:
    """Return the package after all its checks; `expected_id` is genesis's, or None for a package not yet pinned.

    Raises InputError that names the file and line, or tells that the package is not the one in genesis.
    """
    files = _read_files(folder)
    found = _id_of(files)
    if expected_id is not None and found != expected_id:
        raise InputError(
            f"the chaincode has package id {found.hex()}, genesis names {expected_id.hex()}",
            where=str(folder),
            likely="a file of the chaincode was changed, added or removed after `init`",
            do="restore the folder from another node of the network",
        )
    manifest = _read_manifest(folder, files)
    contracts = []
    for entry in manifest.contracts:
        path = folder / entry.file
        if entry.file not in files:
            raise InputError(f"the manifest names {entry.file}, which is not there", where=str(folder / MANIFEST))
        check_syntax(path, files[entry.file])
        module = _execute(path, files[entry.file], found)
        contracts.append(_contract_class(path, module, entry.class_name))
    unused = sorted(set(files) - {entry.file for entry in manifest.contracts} - {MANIFEST})
    if unused:
        raise InputError(
            f"no contract of the manifest is in {unused[0]}",
            where=str(folder / unused[0]),
            do=f"name it in {MANIFEST} or remove it",
        )
    names = [contract.name for contract in contracts]
    if len(set(names)) != len(names):
        raise InputError("two contracts have one name", where=str(folder / MANIFEST))
    return Package(found, manifest, tuple(contracts))


def _read_files(folder: Path) -> dict[str, bytes]:
    """Return the manifest and every Python file by POSIX path; links are refused, they could show other bytes later."""
    if not (folder / MANIFEST).is_file():
        raise InputError(
            "not a chaincode package", where=str(folder), likely=f"there is no {MANIFEST}", do="check the path"
        )
    files: dict[str, bytes] = {}
    for path in (folder / MANIFEST, *folder.rglob("*.py")):
        if path.is_symlink() or not path.is_file():
            raise InputError("a chaincode package holds plain files only", where=str(path))
        files[path.relative_to(folder).as_posix()] = path.read_bytes()
    if sum(map(len, files.values())) > PACKAGE_BYTES_MAX:
        raise InputError(f"a chaincode package has at most {PACKAGE_BYTES_MAX} bytes", where=str(folder))
    return files


def _id_of(files: Mapping[str, bytes]) -> bytes:
    state = sha256(b"bcami/package/1")
    for name in sorted(files):
        state.update(prefixed(name.encode()) + u64(len(files[name])) + files[name])
    return state.digest()


def _read_manifest(folder: Path, files: Mapping[str, bytes]) -> Manifest:
    try:
        text = files[MANIFEST].decode()
        return msgspec.convert(tomllib.loads(text), Manifest)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise InputError(f"the manifest is not valid: {error}", where=str(folder / MANIFEST)) from None


def _execute(path: Path, source: bytes, found: bytes) -> ModuleType:
    """Return the module, under a name that no import statement can reach."""
    module = ModuleType(f"chaincode-{found.hex()[:16]}.{path.stem}")
    module.__file__ = str(path)
    allowed: dict[str, Any] = {name: getattr(builtins, name) for name in BUILTINS}
    allowed |= {"__build_class__": builtins.__build_class__, "__import__": _import}
    module.__dict__["__builtins__"] = allowed
    # msgspec finds the annotations of a contract's own records through sys.modules.
    sys.modules[module.__name__] = module
    try:
        exec(compile(source, str(path), "exec", dont_inherit=True), module.__dict__)  # noqa: S102  the package is pinned
    except Exception as error:
        raise InputError(f"the contract does not load: {type(error).__name__}: {error}", where=str(path)) from error
    return module


def _import(name: str, *_: object, **__: object) -> ModuleType:
    if name != "bcami.contract":
        raise ImportError(f"a contract imports bcami.contract only, not {name}")
    return bcami.contract


def _contract_class(path: Path, module: ModuleType, name: str) -> type[Contract]:
    contract = getattr(module, name, None)
    if not isinstance(contract, type) or not issubclass(contract, Contract) or contract is Contract:
        raise InputError(f"there is no contract class {name}", where=str(path))
    return contract
