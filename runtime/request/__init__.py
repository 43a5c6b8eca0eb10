"""What a user may ask for, and the same without gaps."""

from __future__ import annotations

from tintype.request.request import InputFields, Request, RequestFields, ResolvedRequest, make_request, resolve

__all__ = ["InputFields", "Request", "RequestFields", "ResolvedRequest", "make_request", "resolve"]
