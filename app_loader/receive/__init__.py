"""The upload endpoint: TLS identity, connections, who may upload, and the upload itself."""
