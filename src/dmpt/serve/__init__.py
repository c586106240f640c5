"""Models and a gallery behind HTTP. What is here needs the extra ``serve``."""

from dmpt.base.errors import UserError

try:
    import fastapi  # noqa: F401
    import prometheus_client  # noqa: F401
    import uvicorn  # noqa: F401
except ModuleNotFoundError as error:
    raise UserError(f"a service needs {error.name}, which is not installed; pip install 'dmpt[serve]'") from error
