"""What a run leaves on disk: where it lies (`runs`), its types, and its one reader and writer (`contents`)."""
