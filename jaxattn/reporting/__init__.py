"""One self-contained HTML page of predictions and explanations.

`jaxattn.report` writes it. The folder is not called `report`, since the import of a submodule would
then replace the function of that name.
"""

from jaxattn.reporting.page import report

__all__ = ["report"]
