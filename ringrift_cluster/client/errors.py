"""What a call can raise: one tree, and every leaf carries the problem document.

ClientError
 |- Unreachable        no node answered; nothing was changed
 |- OutcomeUnknown     it may or may not have taken effect; repeat it under the same id
 |- Unavailable        nodes answered that they cannot now (no leader, too busy, not ready)
 |- NotFound           the named thing is not known
 |- Conflict           something else is there: another content, a newer fence, another state
 |- Invalid            the request itself is wrong
 |- Unauthorized       the token is missing, unknown or over, or not good for this
 '- Refused            any other refusal
"""

from __future__ import annotations

from ringrift_cluster.problem import Problem, read_problem


class ClientError(Exception):
    """Base. `problem.code` is for programs, the text for people."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail or problem.title or problem.code)
        self.problem = problem

    @property
    def code(self) -> str:
        return self.problem.code


class Unreachable(ClientError):  # noqa: N818 - these are answers
    """No node answered."""


class OutcomeUnknown(ClientError):  # noqa: N818
    """It may or may not have taken effect."""


class Unavailable(ClientError):  # noqa: N818
    """The cluster cannot do it now; nothing was changed."""


class NotFound(ClientError):  # noqa: N818
    """The named thing is not known."""


class Conflict(ClientError):  # noqa: N818
    """What is there does not agree with what was asked."""


class Invalid(ClientError):  # noqa: N818
    """The request cannot be understood or is out of bounds."""


class Unauthorized(ClientError):  # noqa: N818
    """The token is missing, unknown or over, or not good for this."""


class Refused(ClientError):  # noqa: N818
    """Refused for another reason; the code says which."""


_BY_STATUS: dict[int, type[ClientError]] = {
    400: Invalid,
    401: Unauthorized,
    403: Unauthorized,
    404: NotFound,
    409: Conflict,
    412: Conflict,
    413: Invalid,
    422: Invalid,
    429: Unavailable,
    431: Invalid,
    502: Unavailable,
    503: Unavailable,
    504: OutcomeUnknown,
}


def problem_of(status: int, body: bytes) -> Problem:
    """Read a problem document; whatever else came becomes one."""
    found = read_problem(body)
    if found.code:
        return found
    return Problem("unexpected", f"the node answered {status} without saying why", status)


def error_of(problem: Problem) -> ClientError:
    """The leaf that fits a problem document's status."""
    return _BY_STATUS.get(problem.status, Refused)(problem)
