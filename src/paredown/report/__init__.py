"""Pages and terminal tables, made from plain result records only: no torch, no models."""

from paredown.report.page import html as html
from paredown.report.page import write as write
