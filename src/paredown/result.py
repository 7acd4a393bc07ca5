"""Plain records of everything paredown reports. Each document carries ``schema: 1``; no torch here.

The records are in `documents`. ``docs/schemas/`` holds the JSON Schema of every document,
written by ``scripts/schemas.py``.
"""

from __future__ import annotations

from paredown.documents.base import Document, ErrorBody, ErrorDoc, Fingerprint, Record, TensorInfo
from paredown.documents.lists import (
    CardsDoc,
    CardVerdict,
    DeviceDoc,
    DoctorDoc,
    DoctorRow,
    Finding,
    PaperRow,
    PapersDoc,
    ShowDoc,
    TechniqueRow,
    TechniquesDoc,
    ZooDoc,
    ZooRow,
)
from paredown.documents.paring import (
    EXIT_CODES,
    CheckDoc,
    CompareDoc,
    ConstraintResult,
    DownDoc,
    PlanDoc,
    Side,
    SiteReport,
    Trial,
    Verdict,
)
from paredown.documents.pipeline import PipelineDoc, PipelinePicture, PipelineRun
from paredown.documents.plans import (
    MemoryPlanDoc,
    NativePlanDoc,
    NativeStep,
    PlacedBuffer,
    ServingLink,
    ServingPlanDoc,
    ServingPool,
    ServingSplit,
)
from paredown.documents.profile import (
    MemoryPoint,
    ModuleRow,
    OperatorRow,
    PricedShare,
    ProfileDoc,
    Totals,
)

__all__ = [
    "EXIT_CODES",
    "CardVerdict",
    "CardsDoc",
    "CheckDoc",
    "CompareDoc",
    "ConstraintResult",
    "DeviceDoc",
    "DoctorDoc",
    "DoctorRow",
    "Document",
    "DownDoc",
    "ErrorBody",
    "ErrorDoc",
    "Finding",
    "Fingerprint",
    "MemoryPlanDoc",
    "MemoryPoint",
    "ModuleRow",
    "NativePlanDoc",
    "NativeStep",
    "OperatorRow",
    "PaperRow",
    "PapersDoc",
    "PipelineDoc",
    "PipelinePicture",
    "PipelineRun",
    "PlacedBuffer",
    "PlanDoc",
    "PricedShare",
    "ProfileDoc",
    "Record",
    "ServingLink",
    "ServingPlanDoc",
    "ServingPool",
    "ServingSplit",
    "ShowDoc",
    "Side",
    "SiteReport",
    "TechniqueRow",
    "TechniquesDoc",
    "TensorInfo",
    "Totals",
    "Trial",
    "Verdict",
    "ZooDoc",
    "ZooRow",
]
