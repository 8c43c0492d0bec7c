"""The HTTP server that clients talk to. It exchanges data with workers through ``store`` and never imports them."""
