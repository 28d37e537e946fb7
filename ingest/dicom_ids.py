"""Ids of DICOM cases: the series' UID as case id on request, and the patients as salted hashes."""

from collections.abc import Sequence
from dataclasses import replace

from slicemill.common.errors import PairingError, ScanError
from slicemill.ct.formats.dicom.lookup import find_series
from slicemill.ct.formats.dicom.planes import show_uid
from slicemill.ct.formats.dicom.series import identify
from slicemill.ct.formats.open import is_dicom
from slicemill.ingest.discover import CaseFiles, Collection, check_case_ids
from slicemill.store.patients import hash_patient

MANY = 3
"""From this number of cases on, one PatientID for all of them is noted."""


def find_identities(collection: Collection) -> Collection:
    """Read what DICOM images are called in their hospital, for cases that a table or patterns list."""
    return replace(collection, cases=tuple(map(_identify, collection.cases)))


def _identify(case: CaseFiles) -> CaseFiles:
    if case.dicom is not None or not is_dicom(case.image):
        return case
    try:
        return replace(case, dicom=identify(find_series(case.image)))
    except ScanError:  # the case fails with this reason
        return case


def use_series_uids(collection: Collection) -> Collection:
    """Use the SeriesInstanceUID of each DICOM series as its case id; patients that were named after it follow.

    Raises
    ------
    PairingError
        A DICOM case has no UID, or two have the same.
    """
    cases = []
    for case in collection.cases:
        if case.dicom is None:
            cases.append(case)
            continue
        uid = case.dicom.series_uid
        if not uid or show_uid(uid) != uid:
            raise PairingError("has no SeriesInstanceUID (0020,000E); leave out --case-id series.", where=case.image)
        patient = uid if case.patient_id == case.case_id else case.patient_id
        cases.append(replace(case, case_id=uid, patient_id=patient))
    named = replace(collection, cases=tuple(cases))
    check_case_ids(named)
    return named


def hash_patients(cases: Sequence[CaseFiles], salt: str) -> list[CaseFiles]:
    """Return cases whose patients are hashes of their PatientIDs, and which no longer hold what identifies anyone.

    Cases without PatientID, and those whose patient was given by a table or a pattern, keep theirs.
    """
    hashed = []
    for case in cases:
        identity = case.dicom
        if identity is not None and identity.patient_id and case.patient_id == case.case_id:
            hashed.append(replace(case, patient_id=hash_patient(identity.patient_id, salt), dicom=None))
        else:
            hashed.append(replace(case, dicom=None))
    return hashed


def note_patients(cases: Sequence[CaseFiles]) -> list[str]:
    """Return a note if all DICOM cases have one PatientID, as de-identified collections may have."""
    of_dicom = [case for case in cases if case.dicom is not None and case.patient_id == case.case_id]
    ids = {case.dicom.patient_id for case in of_dicom if case.dicom}
    if len(of_dicom) < MANY or len(ids) > 1:
        return []
    if ids == {""}:
        return [f"the {len(of_dicom)} DICOM series have no PatientID; each counts as a patient (--patient changes it)."]
    note = f"all {len(of_dicom)} DICOM series have one PatientID and count as one patient"
    return [f"{note}. If they are several patients, pass --patient."]


def needs_salt(cases: Sequence[CaseFiles]) -> bool:
    """Return whether there is a patient to hash."""
    return any(case.dicom is not None and case.dicom.patient_id for case in cases)
