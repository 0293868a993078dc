"""The core that the tasks are built on. It knows no component and no command."""
