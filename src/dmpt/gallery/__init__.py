"""What was embedded, as a table that lasts, and search in it. What is here needs the extra ``gallery``."""

import os

from dmpt.base.errors import UserError

if os.environ.get("LANCE_IO_THREADS") in ("0", "1"):  # with a single one, the second write hangs for ever
    os.environ["LANCE_IO_THREADS"] = "2"

try:
    import lance  # noqa: F401
    import pyarrow  # noqa: F401
except ModuleNotFoundError as error:
    raise UserError(f"a gallery needs {error.name}, which is not installed; pip install 'dmpt[gallery]'") from error
