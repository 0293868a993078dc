"""The service proxies: what makes a Service's ClusterIP reachable."""
