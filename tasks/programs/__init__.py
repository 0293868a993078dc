"""The programs of the cluster: the catalog, the download sites, and the build of Kubernetes."""
