"""What a client is told: a status and one sentence, never a traceback."""

import json

from starlette.responses import Response

from dmpt.base.errors import one_line


class Refused(Exception):
    """A request that is not answered as it was meant.

    Args:
        status: of HTTP, from 400 on.
        sentence: what was wrong, and what to do next; it shows no path of this machine.
        headers: beside it.
    """

    def __init__(self, status: int, sentence: str, **headers: str):
        super().__init__(sentence)
        self.status, self.sentence, self.headers = status, one_line(sentence)[:500], headers

    @property
    def response(self) -> Response:
        """As JSON: ``{"error": "..."}``."""
        headers = {name.replace("_", "-"): value for name, value in self.headers.items()}
        content = json.dumps({"error": self.sentence}).encode()
        return Response(content, self.status, headers, "application/json")


def unforeseen() -> Refused:
    """What is told of an error of ours."""
    return Refused(500, "something went wrong here; the server's log says more")
