"""What a user may ask for, and the same without gaps."""

from __future__ import annotations

from tintype.request.request import Request, RequestFields, ResolvedRequest, make_request, resolve

__all__ = ["Request", "RequestFields", "ResolvedRequest", "make_request", "resolve"]
