"""The service proxies, which make the ClusterIPs of Services reachable."""
