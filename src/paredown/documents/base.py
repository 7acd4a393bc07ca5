"""What every document is made of: records, machines, tensors; and the document of an error."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Record(BaseModel):
    """Base of all records: unknown keys are an error, so a golden file shows every change."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class Document(Record):
    """Base of all documents written by ``--json``."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    paredown: str = "0.1.0"

    def to_json(self, indent: int | None = 2) -> str:
        """The document as JSON text, keys by alias; never NaN."""
        return self.model_dump_json(by_alias=True, indent=indent)


class Fingerprint(Record):
    """What identifies a machine for a measurement; ``probe`` holds one-second rates."""

    cpu: str
    isa: list[str]
    caches: dict[str, int]
    cores: int
    memory_bytes: int
    kernel: str
    versions: dict[str, str]
    probe: dict[str, float] = {}
    gpu: str | None = None

    @property
    def key(self) -> str:
        """A short hash of what does not change between runs (the probe and versions left out)."""
        import hashlib
        import json

        stable = self.model_dump(include={"cpu", "isa", "caches", "cores", "memory_bytes", "gpu"})
        return hashlib.sha256(json.dumps(stable, sort_keys=True).encode()).hexdigest()[:12]


class TensorInfo(Record):
    """Name, shape and dtype of one input."""

    name: str
    shape: list[int]
    dtype: str


class ErrorBody(Record):
    """One refused request."""

    type: str
    message: str
    exit_code: int


class ErrorDoc(Document):
    """What ``--json -`` writes when a verb is refused."""

    error: ErrorBody
