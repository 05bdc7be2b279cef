"""Where requests are made. `_async` is written by hand; `_sync` is made from it by `make sdk`."""
