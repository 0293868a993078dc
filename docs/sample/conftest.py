"""The plugin of dmuc; pytest.ini says where it is."""

pytest_plugins = ["dmuc_cluster"]
