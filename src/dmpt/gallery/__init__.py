"""What was embedded, as a table that lasts, and search in it. What is here needs the extra ``gallery``."""

from dmpt.base.errors import UserError

try:
    import lance  # noqa: F401
    import pyarrow  # noqa: F401
except ModuleNotFoundError as error:
    raise UserError(f"a gallery needs {error.name}, which is not installed; pip install 'dmpt[gallery]'") from error
