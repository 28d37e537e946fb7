"""Patients of a store's DICOM cases: their ids are hashes, with a salt that belongs to the store.

So a split keeps the scans of a patient together, and no PatientID is in the store. The salt is settled once, before any
case: made at random and kept in the store, or read from a file of the user's, of which the store keeps only a check.
"""

import hashlib
import secrets
from dataclasses import dataclass

from slicemill.common.documents import read_document, to_document
from slicemill.common.errors import StoreError, UsageError
from slicemill.common.files import Location, read_text, write_json
from slicemill.common.locks import wait_for_claim
from slicemill.store.layout import PATIENTS

CLAIM = ".patients"
"""Name of the claim of a run that settles the salt."""
SALT_BYTES = 16
MAX_SALT_CHARACTERS = 4096
PATIENT_DIGITS = 12


@dataclass(frozen=True, kw_only=True)
class PatientsDocument:
    """The document ``patients.json``."""

    format: int = 1
    salt: str | None
    """The salt; None if it is in a file of the user's."""
    check: str
    """First digits of the salt's SHA-256, which show whether another file is the same."""


def hash_patient(patient_id: str, salt: str) -> str:
    """Return the id of a patient in a store: the first digits of SHA-256 over the salt and the PatientID.

    >>> hash_patient("CRLM-CT-1004", "pepper")
    'e06b11e3888f'
    """
    return hashlib.sha256(f"{salt}\0{patient_id}".encode()).hexdigest()[:PATIENT_DIGITS]


def read_salt(path: Location) -> str:
    """Return the salt that a file holds.

    Raises
    ------
    UsageError
        The file is empty or has more than MAX_SALT_CHARACTERS.
    """
    text = read_text(path).strip()
    if not 0 < len(text) <= MAX_SALT_CHARACTERS:
        raise UsageError(f"must hold 1 to {MAX_SALT_CHARACTERS:,} characters; it has {len(text):,}.", where=path)
    return text


def settle_salt(root: Location, chosen: str | None) -> str:
    """Return the salt of a store; the first run settles it.

    Parameters
    ----------
    chosen
        The salt from the user's file; None for the one of the store.

    Raises
    ------
    StoreError
        The store has another salt, or needs the user's file.
    """
    with wait_for_claim(root, CLAIM):
        path = root / PATIENTS
        if not path.exists():
            salt = chosen or secrets.token_hex(SALT_BYTES)
            document = PatientsDocument(salt=None if chosen else salt, check=_check(salt))
            write_json(path, to_document(document))
            return salt
        stored = read_document(PatientsDocument, path, error=StoreError)
    known = chosen if chosen is not None else stored.salt
    if known is None:
        raise StoreError(
            "the patients of this store are hashed with a salt from a file; pass the same file with --salt.", where=root
        )
    if _check(known) != stored.check:
        raise StoreError(
            "the patients of this store are hashed with another salt, so that a patient would get two ids. "
            + ("Leave --salt out, or use another store." if stored.salt else "Pass the file that it was made with."),
            where=root,
        )
    return known


def _check(salt: str) -> str:
    return hashlib.sha256(salt.encode()).hexdigest()[:16]
