# Made from ../_async/__init__.py by `make sdk`. Edit that one.

"""Where requests are made. `_async` is written by hand; `_sync` is made from it by `make sdk`."""
