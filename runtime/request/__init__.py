"""What a user may ask for, and the same without gaps."""

from __future__ import annotations

from tintype.request.request import (
    InputFields,
    Request,
    RequestFields,
    ResolvedRequest,
    make_request,
    resolve,
    resolve_encoding,
)

__all__ = [
    "InputFields",
    "Request",
    "RequestFields",
    "ResolvedRequest",
    "make_request",
    "resolve",
    "resolve_encoding",
]
