"""Records of benchmarks: frozen dataclasses whose fields, in their order, are the keys of the JSON."""

from dataclasses import dataclass, field, fields

from slicemill.bench.harness.clock import now
from slicemill.bench.harness.headline import Record
from slicemill.common.documents import to_document
from slicemill.common.machine import machine_info


@dataclass(frozen=True, kw_only=True)
class BenchmarkRecord:
    """What all records share. A subclass gives `benchmark` its name, and adds the figures."""

    benchmark: str
    date: str = field(default_factory=now)

    def as_json(self) -> Record:
        """Return the JSON values, and the machine as the last key if no field has that name.

        Metadata of a field may change its JSON: ``key`` is a key that is no Python name, and ``optional`` leaves the
        key out if the value is None.

        >>> from dataclasses import make_dataclass
        >>> figure = ("rate", float, field(metadata={"key": "slices a second"}))
        >>> kind = make_dataclass("Kind", [figure], bases=(BenchmarkRecord,), frozen=True, kw_only=True)
        >>> kind(benchmark="x", rate=2.0).as_json().keys()
        dict_keys(['benchmark', 'date', 'slices a second', 'machine'])
        """
        document = to_document(self)
        record = {
            one.metadata.get("key", one.name): document[one.name]
            for one in fields(self)
            if not (document[one.name] is None and one.metadata.get("optional"))
        }
        record.setdefault("machine", machine_info())
        return record
