"""The programs: which there are, where they come from, how Kubernetes is built."""
