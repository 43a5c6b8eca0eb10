"""What a user may ask for, and the same without gaps."""

from __future__ import annotations

from tintype.request.fields import InputFields, Request, RequestFields, make_request
from tintype.request.request import ResolvedRequest, demand_resolved, fields_of, resolve, resolve_encoding

__all__ = [
    "InputFields",
    "Request",
    "RequestFields",
    "ResolvedRequest",
    "demand_resolved",
    "fields_of",
    "make_request",
    "resolve",
    "resolve_encoding",
]
