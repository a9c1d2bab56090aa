"""The node of the installed package."""

from causaldao.client.app import app as _app

app = _app
