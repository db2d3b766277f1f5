"""Where trials run: in this process, or on Ray. Ray lives here only (and in cluster/, which sends jobs)."""
