"""The coordinator of the installed package."""

from causaldao.server.app import app as _app

app = _app
