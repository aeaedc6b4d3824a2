"""What the server of commands does before it forks: the report's scripts are bundled once, which takes a second."""

import PIL.Image  # noqa: F401

from splore.report.page import bundle

bundle()
