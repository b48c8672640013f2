"""The HTTP service. It needs the extra `service`."""
