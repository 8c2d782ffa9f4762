"""What lives in the Jupyter server: provisioner, extension, projection into rooms and files."""
